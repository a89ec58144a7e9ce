"""DICOM, PNG and JPEG files to 8-bit gray as a viewer would show them; resizing as one affine that moves gaze too.

Images are uint8 (rows, cols). Sizes, points and rectangles are as in `gazeprep.schema`.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from openjpeg.utils import get_parameters
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
)

from gazeprep.gdcm_process import stored_pixels
from gazeprep.remote_paths import RemotePath, located
from gazeprep.schema import FloatArray, ImageRef, InputError, Rectangle, Size

GrayImage = npt.NDArray[np.uint8]  # (rows, cols)
ImageFormat = Literal["png", "jpg"]
ResizeRule = Literal["short_edge", "long_edge", "letterbox", "none"]

CHECKED_EDGE = 32  # of each DICOM image, about so many rows and columns are computed without the lookup table too
MAX_PIXELS = 2**27  # about 17 times a 2544 x 3056 radiograph; more is a damaged header, not a picture
MAX_FILE_BYTES = 2**29  # of an image file, unpacked where it is deflated: twice the largest image of 16 bits
MAX_JPEG_SCANS = 100  # progressive files have about ten; each passes over all pixels, and may take no bytes

# What pydicom, its decoder plugins, struct and OpenCV raise on damaged files.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # and NotImplementedError
    StopIteration,  # pydicom, where frames are missing
    TypeError,
    ValueError,
    cv2.error,
    struct.error,
    zlib.error,
)
_CURE = "download it again and compare its checksum"
# EXIF orientation is ignored: gaze is in the coordinates of the stored rows and columns.
_RASTER_FLAGS = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_JPEG_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(ref: ImageRef) -> GrayImage:
    """Read an image as uint8 (rows, cols), ready for display: 0 is black.

    PNG and JPEG pixels are taken as `decode` gives them. DICOM runs modality LUT -> VOI LUT, else the first
    window, else min-max -> inversion (DICOM PS3.3 C.11.1, C.11.2, C.7.6.3), all in pydicom's own functions.
    The result y of the VOI step becomes 255·(y - y0) / (y1 - y0), rounded half to even: y0, y1 are 0 and
    2^bits - 1 of a VOI LUT, the ends of pydicom's output range of a window, or the lowest and highest value
    in the image where there is neither (an image of one value is 0 throughout). Inversion, 255 minus that,
    comes last: where PresentationLUTShape is INVERSE or, if absent, where MONOCHROME1.
    A lookup table of all values does that; in every file about a thousand pixels are computed without it and compared.
    Raises InputError, reasons image_missing, image_corrupt, image_empty, image_too_large, image_no_decoder,
    image_bad_lut, image_unsupported (colour, more than 16 bits), multi_frame.
    """
    with _opened(ref) as file:
        if ref.kind == "dicom":
            return _decode_dicom(file)
        with _rejecting("image_corrupt", f"the image file cannot be read; {_CURE}"):
            return decode(file.read())


def image_size(ref: ImageRef) -> Size:
    """Return (width, height) in pixels from the header alone; raises InputError as read_image does."""
    with _opened(ref) as file:
        if ref.kind == "raster":
            return _raster_size(file)
        with _rejecting("image_corrupt", f"the DICOM header cannot be read; {_CURE}"):
            return _dicom_size(_read_dicom(file, stop_before_pixels=True))


def view_position(ref: ImageRef) -> str:
    """Return the view that a DICOM header states, such as PA, "" without one; raises InputError as read_image."""
    if ref.kind != "dicom":
        return ""
    with _opened(ref) as file, _rejecting("image_corrupt", f"the DICOM header cannot be read; {_CURE}"):
        header = _read_dicom(file, stop_before_pixels=True, specific_tags=["ViewPosition"])
        return str(header.get("ViewPosition") or "").strip().upper()


def encode(image: GrayImage, format: ImageFormat, *, jpg_quality: int = 95) -> bytes:
    """Compress a uint8 image (rows, cols); the same pixels give the same bytes under one OpenCV version.

    PNG uses adaptive filters with run-length and Huffman coding, no zlib level: on chest radiographs of
    518 x 518 that is smaller (102 kB) than level 9 (114 kB), and faster (5 ms) than level 3 (8 ms, 121 kB).
    """
    _check_gray(image)
    if format == "png":  # the level resets the strategy, so it comes first; RLE has no other use for it
        options = [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    elif format == "jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, jpg_quality]
    else:
        raise ValueError(f"format is {format!r}, must be one of {', '.join(get_args(ImageFormat))}")
    done, data = cv2.imencode(f".{format}", image, options)
    assert done
    return data.tobytes()


def decode(data: bytes) -> GrayImage:
    """Decompress a PNG or JPEG file to uint8 (rows, cols); colour becomes luma, EXIF orientation is ignored.

    16-bit PNG does not say how many bits are used, so its lowest and highest value become 0 and 255.
    Raises InputError, reasons image_corrupt, image_empty, image_too_large.
    """
    header = BytesIO(data)
    width, height = _raster_size(header)
    if data.startswith(_JPEG_START) and data.count(_JPEG_SCAN) > MAX_JPEG_SCANS:
        raise InputError("image_corrupt", f"the JPEG has more than {MAX_JPEG_SCANS} scans; {_CURE}")
    with _rejecting("image_corrupt", f"the image file is damaged; {_CURE}"):
        _check_png(data)
    with _rejecting("image_corrupt", f"the image file cannot be decoded; {_CURE}"):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _RASTER_FLAGS)
    # Older OpenCV fills the missing rows of a cut JPEG with gray instead of failing.
    cut = data.startswith(_JPEG_START) and data.rfind(_JPEG_END) < header.tell()
    if cut or pixels is None or pixels.shape != (height, width):
        raise InputError("image_corrupt", f"the image file is damaged or cut short; {_CURE}")
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    deep, levels = pixels.astype(np.uint16, copy=False), np.arange(2**16)
    return cv2.LUT(deep, _gray_levels(levels, *_range_present(levels, deep))).astype(np.uint8, copy=False)


# --- files


@contextmanager
def _opened(ref: ImageRef) -> Iterator[BinaryIO]:
    place = located(ref.root) / ref.path
    try:
        if not isinstance(place, RemotePath) and place.exists() and not place.is_file():
            raise OSError  # a pipe or a device: opening it could wait for ever
        file = place.open("rb")
    except (OSError, ValueError) as error:
        raise InputError(
            "image_missing",
            f"the {ref.kind} image file cannot be opened ({type(error).__name__}); "
            "download it, or correct the image root in the config",
        ) from None
    with file:
        if file.seek(0, io.SEEK_END) > MAX_FILE_BYTES:
            raise InputError("image_too_large", f"the image file holds more than {MAX_FILE_BYTES} bytes; {_CURE}")
        file.seek(0)
        yield file


@contextmanager
def _rejecting(reason: str, message: str) -> Iterator[None]:
    """Turn what decoders raise into InputError without their text, which may quote tags and paths."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom on odd values; a cut file is an error without them
            yield
    except InputError:
        raise
    except BaseException as error:
        # A panic in a decoder written in Rust (pylibjpeg-rle) is no Exception and has no importable name.
        if not isinstance(error, _DECODER_ERRORS) and type(error).__module__ != "pyo3_runtime":
            raise
        raise InputError(reason, f"{message} ({type(error).__name__})") from None


def _checked_size(width: int, height: int) -> Size:
    if width <= 0 or height <= 0:
        raise InputError("image_empty", f"the image is {width} x {height} pixels; remove it from the input, or {_CURE}")
    if width * height > MAX_PIXELS:
        raise InputError(
            "image_too_large",
            f"the header claims {width} x {height} pixels, more than {MAX_PIXELS} in all; {_CURE}",
        )
    return width, height


# --- PNG and JPEG


def _raster_size(file: BinaryIO) -> Size:
    """Read (width, height) and leave the file just behind them."""
    with _rejecting("image_corrupt", f"the image header cannot be read; {_CURE}"):
        start = file.read(8)
        if start == _PNG_SIGNATURE:
            width, height = struct.unpack(">8x2I", file.read(16))
        elif start.startswith(_JPEG_START):
            height, width = _jpeg_shape(file)
        else:
            raise InputError("image_corrupt", f"the image file is neither PNG nor JPEG; {_CURE}")
        return _checked_size(width, height)


def _check_png(data: bytes) -> None:
    """Raise ValueError where a part of a PNG has another checksum than it says: OpenCV passes over that.

    What follows its end is nobody's, as for every reader of PNG.
    """
    at, kind, view = len(_PNG_SIGNATURE), b"", memoryview(data)
    while data.startswith(_PNG_SIGNATURE) and kind != b"IEND":
        (length,) = struct.unpack_from(">I", data, at)
        (promised,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(view[at + 4 : at + 8 + length]) != promised:
            raise ValueError("a wrong checksum")
        kind = bytes(view[at + 4 : at + 8])
        at += 12 + length


def _jpeg_shape(file: BinaryIO) -> tuple[int, int]:
    """Walk the JPEG segments to the frame header and return its (rows, cols)."""
    file.seek(len(_JPEG_START))
    while True:
        prefix, marker = struct.unpack("2B", file.read(2))
        while marker == 0xFF:  # fill bytes
            (marker,) = struct.unpack("B", file.read(1))
        if prefix != 0xFF:
            raise ValueError("no JPEG marker")
        (length,) = struct.unpack(">H", file.read(2))
        if marker in _JPEG_FRAME_HEADERS:
            return struct.unpack(">x2H", file.read(5))
        file.seek(length - 2, 1)


# --- DICOM


def _decode_dicom(file: BinaryIO) -> GrayImage:
    with _rejecting("image_corrupt", f"the DICOM file cannot be read; {_CURE}"):
        dataset = _read_dicom(file)
        size = _dicom_size(dataset)
        _check_plain(dataset)
        _check_compressed(dataset, size)
        # raw: no colour conversion
        plugin = _decoding_plugin(dataset)
        if plugin == "gdcm":
            file.seek(0)
            stored = stored_pixels(file.read())
        else:
            stored = pixel_array(dataset, raw=True, decoding_plugin=plugin)
        if stored.shape != size[::-1]:  # pydicom makes frames of whatever bytes follow the first
            raise ValueError("more pixels than the header says")
    if stored.dtype.kind not in "ui" or stored.itemsize > 2:
        raise InputError(
            "image_unsupported", f"the DICOM pixels are {stored.dtype}, 8 or 16 bits are read; convert the image"
        )
    patterns = stored.view(stored.dtype.str.replace("i", "u")).astype(f"u{stored.itemsize}", copy=False)  # native order
    with _rejecting("image_bad_lut", f"the DICOM window or lookup table cannot be applied; {_CURE}"):
        display = _display(dataset, patterns, signed=stored.dtype.kind == "i")
        shown = cv2.LUT(patterns, display.table).astype(np.uint8, copy=False)  # numpy's take makes an int64 copy
        _check_against_pydicom(shown, stored, dataset, display)
    return shown


def _read_dicom(file: BinaryIO, **options: Any) -> Dataset:
    """Read a DICOM file as pydicom does, which unpacks a deflated one whole, however large it becomes."""
    read_preamble(file, force=False)
    if _read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflater, packed, size = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
        while part := inflater.decompress(packed, 2**24):
            size, packed = size + len(part), inflater.unconsumed_tail
            if size > MAX_FILE_BYTES:
                raise InputError("image_too_large", f"the file unpacks to more than {MAX_FILE_BYTES} bytes; {_CURE}")
    file.seek(0)
    return pydicom.dcmread(file, **options)


def _check_compressed(dataset: Dataset, size: Size) -> None:
    """Raise ValueError where compressed pixels are of another size than the header's: decoders believe the pixels."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    raw_bytes = size[0] * size[1] * (int(dataset.BitsAllocated) // 8)
    if len(dataset.PixelData) > 2 * raw_bytes + 2**16:
        raise ValueError("the compressed pixels are longer than the pixels")
    if syntax in (*JPEG2000TransferSyntaxes, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K):
        claimed = get_parameters(get_frame(dataset.PixelData, 0, number_of_frames=1))
        if (claimed["columns"], claimed["rows"], claimed["samples_per_pixel"]) != (*size, 1):
            raise ValueError("the compressed pixels are of another size")


def _dicom_size(dataset: Dataset) -> Size:
    return _checked_size(int(dataset.Columns), int(dataset.Rows))


def _check_plain(dataset: Dataset) -> None:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise InputError("multi_frame", f"the DICOM file holds {frames} frames; give a file with a single one")
    gray = dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2")
    if not gray or dataset.SamplesPerPixel != 1:
        raise InputError("image_unsupported", "the DICOM image is not grayscale; give the original radiograph")


def _decoding_plugin(dataset: Dataset) -> str:
    """Return the decoder to use, "" for pydicom's own choice; raises InputError where none is installed.

    pylibjpeg where it can: faster on JPEG 2000 and RLE, and damaged bytes do not end its process.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
        preferred = "pylibjpeg" in decoder.available_plugins
        available = preferred or decoder.is_available
    except NotImplementedError:
        preferred = available = False
    if syntax == JPEGExtended12Bit and dataset.BitsStored > 8:  # the other plugins know 8 bits only
        available = preferred
    if not available:
        raise InputError(
            "image_no_decoder",
            "no installed decoder reads this DICOM compression; install one (pylibjpeg-libjpeg for 12-bit "
            "lossy JPEG) or give the image uncompressed",
        )
    if preferred:
        return "pylibjpeg"
    return "gdcm" if syntax.is_encapsulated and "gdcm" in decoder.available_plugins else ""


@dataclass(frozen=True, eq=False)
class _Display:
    """How a DICOM image is shown: the gray level of every bit pattern, (256,) or (65536,) uint8, and what made it."""

    table: GrayImage
    black: float
    white: float
    inverse: bool


def _display(dataset: Dataset, patterns: npt.NDArray[np.unsignedinteger], *, signed: bool) -> _Display:
    """Find the gray level of every bit pattern that a stored pixel can have.

    pydicom's pixel functions run once on all possible values, so a lookup gives their pixels exactly.
    `patterns` (rows, cols) are the stored pixels as unsigned numbers.
    """
    values = np.arange(2 ** (8 * patterns.itemsize), dtype=f"u{patterns.itemsize}")
    if signed:
        values = values.view(f"i{patterns.itemsize}")
    scaled = apply_modality_lut(values.astype(np.int32), dataset)  # int32: the LUT may begin below 0
    lut_white = _prepare_voi_lut(dataset)
    shades = apply_voi_lut(scaled, dataset)
    if shades is scaled:  # neither VOI LUT nor window
        black, white = _range_present(scaled, patterns)
    elif lut_white is not None:
        black, white = 0.0, lut_white
    else:
        black, white = apply_windowing(np.array([-np.inf, np.inf]), dataset)
    table = _gray_levels(shades, black, white)
    shape = dataset.get("PresentationLUTShape")
    inverse = shape == "INVERSE" if shape else dataset.PhotometricInterpretation == "MONOCHROME1"
    return _Display(255 - table if inverse else table, float(black), float(white), bool(inverse))


def _check_against_pydicom(
    shown: GrayImage, stored: npt.NDArray[np.integer], dataset: Dataset, display: _Display
) -> None:
    """Raise ValueError where some of the pixels (rows, cols) are not what pydicom's functions make of them directly."""
    every = tuple(slice(None, None, max(1, length // CHECKED_EDGE)) for length in stored.shape)
    shades = apply_voi_lut(apply_modality_lut(stored[every].astype(np.int32), dataset), dataset)
    expected = _gray_levels(shades, display.black, display.white)
    if not np.array_equal(255 - expected if display.inverse else expected, shown[every]):
        raise ValueError("the lookup table does not give pydicom's pixels")


def _prepare_voi_lut(dataset: Dataset) -> float | None:
    """Return the highest level of the VOI LUT that pydicom will apply, None without one.

    Declares 8-bit entries as 16-bit: pydicom counts the entries in the type of their values, so that an
    8-bit LUT with more than 256 entries wraps around.
    """
    item = (dataset.get("VOILUTSequence") or [Dataset()])[0]
    if item.get("LUTDescriptor") is None or item.get("LUTData") is None:
        return None
    entries, first, bits = item.LUTDescriptor
    if bits == 8:
        item.LUTDescriptor = [entries, first, 16]
    return float(2**bits - 1)


def _range_present(levels: npt.NDArray[np.number], patterns: npt.NDArray[np.unsignedinteger]) -> tuple[float, float]:
    """Return the lowest and highest of the levels that occur in the image, one apart at least."""
    present = np.zeros(len(levels), dtype=np.bool_)
    present[patterns] = True
    lowest, highest = levels[present].min(), levels[present].max()
    return float(lowest), float(highest if highest > lowest else lowest + 1)


def _gray_levels(shades: npt.NDArray[np.number], black: float, white: float) -> GrayImage:
    """Map black..white to 0..255, rounded half to even; black may be above white (a negative rescale slope)."""
    if not (np.isfinite(shades).all() and np.isfinite(black) and np.isfinite(white)) or black == white:
        raise ValueError("no finite gray scale")
    return np.clip(np.rint((shades - black) / (white - black) * 255), 0, 255).astype(np.uint8)


# --- geometry


@dataclass(frozen=True)
class Affine:
    """Where an image operation moves things: x' = a_x·x + b_x and y' = a_y·y + b_y in edge coordinates, pixels.

    A negative a is a flip: `Affine(a_x=-1, b_x=width)`. Raises ValueError where a is 0 or a value not finite.
    """

    a_x: float = 1.0
    b_x: float = 0.0
    a_y: float = 1.0
    b_y: float = 0.0

    def __post_init__(self) -> None:
        if not np.isfinite([self.a_x, self.b_x, self.a_y, self.b_y]).all() or 0 in (self.a_x, self.a_y):
            raise ValueError(f"{self} cannot be undone; a must not be 0 and every number finite")

    def points(self, x_px: npt.ArrayLike, y_px: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Move points (n,) given in pixel centres."""
        x_px, y_px = np.asarray(x_px, dtype=np.float64), np.asarray(y_px, dtype=np.float64)
        return self.a_x * (x_px + 0.5) + self.b_x - 0.5, self.a_y * (y_px + 0.5) + self.b_y - 0.5

    def rectangle(self, rectangle: Rectangle) -> Rectangle:
        """Move a rectangle given in edges; left stays left of right under a flip."""
        left, top, right, bottom = rectangle
        left, right = sorted((self.a_x * left + self.b_x, self.a_x * right + self.b_x))
        top, bottom = sorted((self.a_y * top + self.b_y, self.a_y * bottom + self.b_y))
        return left, top, right, bottom

    def then(self, other: "Affine") -> "Affine":
        """Return the affine that applies this one first, then the other."""
        return Affine(
            a_x=other.a_x * self.a_x,
            b_x=other.a_x * self.b_x + other.b_x,
            a_y=other.a_y * self.a_y,
            b_y=other.a_y * self.b_y + other.b_y,
        )

    def inverse(self) -> "Affine":
        """Return the affine that undoes this one."""
        return Affine(1 / self.a_x, -self.b_x / self.a_x, 1 / self.a_y, -self.b_y / self.a_y)


@dataclass(frozen=True)
class Resize:
    """How to resize; every rule keeps the aspect up to rounding to whole pixels.

    short_edge, long_edge: that edge becomes size_px. letterbox: the long edge becomes size_px, zeros pad the
    other to a square, the odd pixel right or below. none: as it is. Raises ValueError on other values.
    """

    rule: ResizeRule = "short_edge"
    size_px: int = 518

    def __post_init__(self) -> None:
        if self.rule not in get_args(ResizeRule):
            raise ValueError(f"resize rule is {self.rule!r}, must be one of {', '.join(get_args(ResizeRule))}")
        if type(self.size_px) is not int or self.size_px < 1:
            raise ValueError(f"resize size_px is {self.size_px!r}, must be a whole number of pixels, 1 or more")


@dataclass(frozen=True, eq=False)
class Resized:
    """A resized image, how it moved (from the input's pixels to its own), and where the picture sits in it.

    image: uint8 (rows, cols). content: edges in pixels of `image`; all of it unless letterboxed.
    """

    image: GrayImage
    affine: Affine
    content: Rectangle


def resize(image: GrayImage, config: Resize) -> Resized:
    """Resize a uint8 image (rows, cols): INTER_AREA where it shrinks, INTER_LINEAR where it grows.

    The affine's a is the ratio of the whole-pixel sizes, per axis. Raises ValueError on another kind of array.
    """
    _check_gray(image)
    rows, cols = image.shape
    width, height = _scaled_size((cols, rows), config)
    image = _resampled(image, width, height)
    left, top = 0, 0
    if config.rule == "letterbox":
        left, top = (config.size_px - width) // 2, (config.size_px - height) // 2
        square = np.zeros((config.size_px, config.size_px), dtype=np.uint8)
        square[top : top + height, left : left + width] = image
        image = square
    return Resized(
        image=image,
        affine=Affine(a_x=width / cols, b_x=float(left), a_y=height / rows, b_y=float(top)),
        content=(float(left), float(top), float(left + width), float(top + height)),
    )


def _resampled(image: GrayImage, width: int, height: int) -> GrayImage:
    if image.shape == (height, width):
        return image
    method = cv2.INTER_AREA if width * height < image.size else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method).astype(np.uint8, copy=False)


def _scaled_size(size: Size, config: Resize) -> Size:
    if config.rule == "none":
        return size
    edge = min(size) if config.rule == "short_edge" else max(size)
    width, height = (max(1, round(length * config.size_px / edge)) for length in size)
    return width, height


def _check_gray(image: GrayImage) -> None:
    if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise ValueError(
            f"image is {image.dtype} {image.shape}, must be uint8 (rows, cols) and not empty; see read_image"
        )

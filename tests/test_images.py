import random
import struct
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from gazeprep import gdcm_process, images
from gazeprep.images import Affine, Resize, decode, encode, image_size, read_image, resize
from gazeprep.schema import ImageRef, InputError

DICOM_12_BIT_RAMP = np.arange(4096, dtype=np.uint16).reshape(32, 128)
PATIENT = "Nobody^Known"


def ref_to(path, kind="dicom"):
    return ImageRef(root=str(path.parent), path=path.name, kind=kind, source="test")


def example(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} needs pydicom-data")
    return Path(path)


def make_dataset(stored, *, bits=12, syntax=ExplicitVRLittleEndian, **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.PatientName = PATIENT
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 8 * stored.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def save(dataset, folder):
    path = folder / "image.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def shown(folder, stored, **elements):
    return read_image(ref_to(save(make_dataset(stored, **elements), folder)))


def lut_item(values, first, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, bits])
    item.add_new("LUTData", "OW", np.asarray(values, dtype="<u2").tobytes())
    return Sequence([item])


def gray(fraction):
    return np.rint(np.clip(fraction, 0, 1) * 255).astype(np.uint8)


def stretched(values):
    values = values.astype(np.float64)
    return gray((values - values.min()) / (values.max() - values.min()))


def linear_window(x, center, width):
    """PS3.3 C.11.2.1.2.1 on an output range of 0..1."""
    inside = (x.astype(np.float64) - (center - 0.5)) / (width - 1) + 0.5
    below, above = x <= center - 0.5 - (width - 1) / 2, x > center - 0.5 + (width - 1) / 2
    return gray(np.select([below, above], [0.0, 1.0], inside))


# --- real files, against pydicom's own path and highdicom


@pytest.mark.parametrize(
    ("name", "white", "inverse"),
    [
        ("RG1_UNCR.dcm", 2**15 - 1, True),
        ("RG1_UNCI.dcm", 2**15 - 1, True),
        ("RG1_J2KR.dcm", 2**15 - 1, True),
        ("RG1_J2KI.dcm", 2**15 - 1, True),
        ("vlut_04.dcm", 2**16 - 1, False),
        ("mlut_18.dcm", None, False),
        ("JPGLosslessP14SV1_1s_1f_8b.dcm", 255, False),
        ("JPEG-LL.dcm", None, False),
        ("CT_small.dcm", None, False),
    ],
)
def test_real_files_equal_pydicoms_path_pixel_for_pixel(name, white, inverse):
    dataset = pydicom.dcmread(example(name))
    shades = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    expected = stretched(shades) if white is None else gray(shades / white)
    np.testing.assert_array_equal(
        read_image(ref_to(example(name))), 255 - expected if inverse else expected, strict=True
    )


def test_lossless_jpeg_2000_equals_the_uncompressed_file():
    np.testing.assert_array_equal(
        read_image(ref_to(example("RG1_J2KR.dcm"))), read_image(ref_to(example("RG1_UNCR.dcm")))
    )


def highdicom_frame(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = highdicom.imread(path)
        return image.get_frame(1, apply_voi_transform=None, voi_output_range=(0, 255))


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "vlut_04.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "MR_small.dcm"])
def test_real_files_equal_highdicom_within_one_gray_level(name):
    difference = highdicom_frame(example(name)) - read_image(ref_to(example(name)))
    assert np.abs(difference).max() <= 1


# --- the display pipeline, against the formulas of the standard


@pytest.mark.parametrize("bits", [12, 14])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_linear_window_then_inversion(tmp_path, bits, photometric):
    stored = np.arange(2**bits, dtype=np.uint16).reshape(32, -1)
    center, width = 0.4 * 2**bits, 0.6 * 2**bits
    image = shown(
        tmp_path,
        stored,
        bits=bits,
        PhotometricInterpretation=photometric,
        WindowCenter=center,
        WindowWidth=width,
    )
    expected = linear_window(stored, center, width)
    np.testing.assert_array_equal(image, 255 - expected if photometric == "MONOCHROME1" else expected)


def test_narrowest_linear_window_is_a_threshold_at_center_minus_one_half(tmp_path):
    image = shown(tmp_path, DICOM_12_BIT_RAMP, WindowCenter=1000, WindowWidth=1)
    np.testing.assert_array_equal(image, np.where(DICOM_12_BIT_RAMP >= 1000, 255, 0))


def test_linear_exact_window(tmp_path):
    image = shown(tmp_path, DICOM_12_BIT_RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(image, gray((DICOM_12_BIT_RAMP.astype(float) - 2000) / 1000 + 0.5))


def test_sigmoid_window(tmp_path):
    image = shown(tmp_path, DICOM_12_BIT_RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(image, gray(1 / (1 + np.exp(-4 * (DICOM_12_BIT_RAMP - 2000.0) / 1000))))


def test_the_first_of_several_windows_counts(tmp_path):
    image = shown(tmp_path, DICOM_12_BIT_RAMP, WindowCenter=[2000, 100], WindowWidth=[3000, 50])
    np.testing.assert_array_equal(image, linear_window(DICOM_12_BIT_RAMP, 2000, 3000))


def test_signed_pixels_with_rescale(tmp_path):
    stored = np.arange(-2048, 2048, dtype=np.int16).reshape(32, -1)
    image = shown(tmp_path, stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=300, WindowWidth=1500)
    np.testing.assert_array_equal(image, linear_window(stored * 2.0 - 100, 300, 1500))


def test_negative_rescale_slope_keeps_low_modality_values_black(tmp_path):
    elements = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    modality = 4095 - DICOM_12_BIT_RAMP.astype(int)
    np.testing.assert_array_equal(shown(tmp_path, DICOM_12_BIT_RAMP, **elements), stretched(modality))
    windowed = shown(tmp_path, DICOM_12_BIT_RAMP, WindowCenter=2000, WindowWidth=3000, **elements)
    np.testing.assert_array_equal(windowed, linear_window(modality, 2000, 3000))
    assert np.abs(highdicom_frame(tmp_path / "image.dcm") - windowed).max() <= 1


def test_voi_lut_without_window(tmp_path):
    values = (np.arange(1000) ** 2) % 1024
    image = shown(tmp_path, DICOM_12_BIT_RAMP, VOILUTSequence=lut_item(values, 500, 10))
    expected = values[np.clip(DICOM_12_BIT_RAMP.astype(int) - 500, 0, 999)]
    np.testing.assert_array_equal(image, gray(expected / 1023))


def test_voi_lut_goes_before_window(tmp_path):
    values = np.arange(4096)[::-1]
    image = shown(tmp_path, DICOM_12_BIT_RAMP, VOILUTSequence=lut_item(values, 0, 12), WindowCenter=9, WindowWidth=9)
    np.testing.assert_array_equal(image, gray(values[DICOM_12_BIT_RAMP] / 4095))


def test_voi_lut_of_8_bit_entries_longer_than_256(tmp_path):
    values = np.arange(4096) // 16
    dataset = make_dataset(DICOM_12_BIT_RAMP, VOILUTSequence=lut_item(values, 0, 8))
    np.testing.assert_array_equal(read_image(ref_to(save(dataset, tmp_path))), values[DICOM_12_BIT_RAMP])
    assert (apply_voi_lut(DICOM_12_BIT_RAMP, dataset) != values[DICOM_12_BIT_RAMP]).any(), "pydicom is mended"


def test_modality_lut_that_begins_below_zero_for_unsigned_pixels(tmp_path):
    values = np.arange(5000) ** 2 // 400
    image = shown(tmp_path, DICOM_12_BIT_RAMP, ModalityLUTSequence=lut_item(values, -10, 16))
    np.testing.assert_array_equal(image, stretched(values[DICOM_12_BIT_RAMP.astype(int) + 10]))


def test_without_window_the_values_of_the_image_fill_the_range(tmp_path):
    stored = DICOM_12_BIT_RAMP[3:9] // 3
    np.testing.assert_array_equal(shown(tmp_path, stored), stretched(stored))
    np.testing.assert_array_equal(shown(tmp_path, stored, WindowCenter=None, WindowWidth=4), stretched(stored))


def test_an_image_of_one_value_is_black(tmp_path):
    assert not shown(tmp_path, np.full((4, 5), 7, dtype=np.uint16)).any()


@pytest.mark.parametrize(
    ("photometric", "shape", "inverse"),
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_presentation_lut_shape_decides_where_present_as_in_highdicom(tmp_path, photometric, shape, inverse):
    elements = {"WindowCenter": 2048, "WindowWidth": 4096}
    upright = shown(tmp_path, DICOM_12_BIT_RAMP, **elements)
    elements |= {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    image = shown(tmp_path, DICOM_12_BIT_RAMP, **elements)
    np.testing.assert_array_equal(image, 255 - upright if inverse else upright)
    assert np.abs(highdicom_frame(tmp_path / "image.dcm") - image).max() <= 1


def test_unused_high_bits_do_not_show(tmp_path):
    overlay = np.where(np.arange(128) % 2, 0xF000, 0).astype(np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    np.testing.assert_array_equal(
        shown(tmp_path, DICOM_12_BIT_RAMP | overlay, **window), shown(tmp_path, DICOM_12_BIT_RAMP, **window)
    )


def test_run_length_and_big_endian_files_show_the_same(tmp_path):
    plain = shown(tmp_path, DICOM_12_BIT_RAMP)
    compressed = make_dataset(DICOM_12_BIT_RAMP)
    compressed.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read_image(ref_to(save(compressed, tmp_path))), plain)
    swapped = make_dataset(DICOM_12_BIT_RAMP.astype(">u2"), syntax=ExplicitVRBigEndian)
    np.testing.assert_array_equal(read_image(ref_to(save(swapped, tmp_path))), plain)


# --- one case per reject reason


def write_truncated(folder):
    path = save(make_dataset(DICOM_12_BIT_RAMP), folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def write_claims_a_gigabyte(folder):
    dataset = make_dataset(DICOM_12_BIT_RAMP, WindowCenter=1, WindowWidth=9)
    dataset.Rows, dataset.Columns = 8192, 16000
    return save(dataset, folder)


def write_claims_too_much(folder):
    dataset = make_dataset(DICOM_12_BIT_RAMP)
    dataset.Rows = dataset.Columns = 65535
    return save(dataset, folder)


def write_garbage(folder):
    path = folder / "image.dcm"
    path.write_bytes(bytes(range(256)) * 20)
    return path


def write_no_pixels(folder):
    dataset = make_dataset(DICOM_12_BIT_RAMP)
    del dataset.PixelData
    return save(dataset, folder)


def write_run_length_that_overflows(folder):
    """Makes the Rust decoder panic, which is no Exception."""
    first, second = b"\x0f" + bytes(16), b"\x81\x07"
    header = struct.pack("<16I", 2, 64, 64 + len(first), *[0] * 13)
    dataset = make_dataset(np.zeros((4, 4), np.uint16), syntax=RLELossless)
    dataset.PixelData = encapsulate([header + first + second + b"\0"])
    return save(dataset, folder)


def write_unknown_compression(folder):
    dataset = make_dataset(np.zeros((4, 4), np.uint16), syntax="1.2.840.10008.1.2.4.100")  # MPEG2 video
    dataset.PixelData = encapsulate([bytes(20)])
    return save(dataset, folder)


def writer(stored=DICOM_12_BIT_RAMP, **elements):
    return lambda folder: save(make_dataset(stored, **elements), folder)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        pytest.param(write_truncated, "image_corrupt", id="truncated"),
        pytest.param(write_claims_a_gigabyte, "image_corrupt", id="gigabyte"),
        pytest.param(write_claims_too_much, "image_too_large", id="too_large"),
        pytest.param(write_garbage, "image_corrupt", id="garbage"),
        pytest.param(write_no_pixels, "image_corrupt", id="no_pixels"),
        pytest.param(write_run_length_that_overflows, "image_corrupt", id="panic"),
        pytest.param(write_unknown_compression, "image_no_decoder", id="no_decoder"),
        pytest.param(writer(np.zeros((0, 4), np.uint16)), "image_empty", id="zero_size"),
        pytest.param(writer(NumberOfFrames=2), "multi_frame", id="multi_frame"),
        pytest.param(writer(PhotometricInterpretation="PALETTE COLOR"), "image_unsupported", id="palette"),
        pytest.param(writer(SamplesPerPixel=3), "image_unsupported", id="colour"),
        pytest.param(writer(np.ones((4, 4), np.uint32), bits=32), "image_unsupported", id="32_bit"),
        pytest.param(writer(WindowCenter=5, WindowWidth=0), "image_bad_lut", id="zero_window"),
        pytest.param(
            writer(RescaleSlope=0, RescaleIntercept=3, WindowCenter=5, WindowWidth=9),
            "image_bad_lut",
            id="flat_rescale",
        ),
        pytest.param(writer(VOILUTSequence=lut_item([1, 2], 0, 9)), "image_bad_lut", id="odd_voi_lut"),
        pytest.param(lambda folder: folder / "absent.dcm", "image_missing", id="missing"),
        pytest.param(lambda folder: folder, "image_missing", id="folder"),
    ],
)
def test_unusable_dicom_files_are_rejected_with_a_reason_and_no_path(tmp_path, write, reason):
    path = write(tmp_path)
    with pytest.raises(InputError) as caught:
        read_image(ref_to(path))
    message = str(caught.value)
    assert caught.value.reason == reason
    assert "; " in message, "what; cure"
    assert path.name not in message
    assert PATIENT not in message
    assert caught.value.__cause__ is None


def test_12_bit_lossy_jpeg_names_the_decoder_it_needs():
    try:
        import libjpeg  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("pylibjpeg-libjpeg is installed and reads it")
    with pytest.raises(InputError, match="pylibjpeg-libjpeg") as caught:
        read_image(ref_to(example("JPEG-lossy.dcm")))
    assert caught.value.reason == "image_no_decoder"


@pytest.mark.parametrize("image_format", ["png", "jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_cut_png_and_jpg_files_are_rejected(tmp_path, image_format, kept):
    data = encode(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8), image_format)
    path = tmp_path / "image"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match="download it again") as caught:
        read_image(ref_to(path, "raster"))
    assert caught.value.reason == "image_corrupt"


def test_png_of_zero_width_is_rejected():
    data = bytearray(encode(np.zeros((4, 4), np.uint8), "png"))
    data[16:20] = bytes(4)
    with pytest.raises(InputError) as caught:
        decode(bytes(data))
    assert caught.value.reason == "image_empty"


# --- sizes from headers


def test_size_of_a_dicom_needs_no_pixels(tmp_path):
    assert image_size(ref_to(write_truncated(tmp_path))) == (128, 32)
    assert image_size(ref_to(write_no_pixels(tmp_path))) == (128, 32)


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_size_of_a_raster_needs_the_header_only(tmp_path, image_format):
    path = tmp_path / "image"
    path.write_bytes(encode(np.zeros((70, 30), np.uint8), image_format)[:220])
    assert image_size(ref_to(path, "raster")) == (30, 70)


def test_size_rejects_what_is_no_image(tmp_path):
    path = write_garbage(tmp_path)
    for kind in ("dicom", "raster"):
        with pytest.raises(InputError, match="; ") as caught:
            image_size(ref_to(path, kind))
        assert caught.value.reason == "image_corrupt"


# --- a decoder that may end its process


def test_damaged_jpeg_in_dicom_costs_that_image_and_not_the_process(tmp_path):
    good = read_image(ref_to(example("JPEG-LL.dcm")))
    damaged = bytearray(example("JPEG-LL.dcm").read_bytes())
    draw = random.Random(0)
    refused = 0
    for _ in range(40):
        for _ in range(30):
            damaged[draw.randrange(len(damaged) // 8, len(damaged))] = draw.randrange(256)
        (tmp_path / "damaged.dcm").write_bytes(damaged)
        try:
            read_image(ref_to(tmp_path / "damaged.dcm"))
        except InputError as error:
            refused += error.reason == "image_corrupt"
    assert refused
    np.testing.assert_array_equal(read_image(ref_to(example("JPEG-LL.dcm"))), good)


def test_a_decoder_that_was_killed_costs_one_image():
    ours = gdcm_process._GdcmProcess()
    file = example("JPEG-LL.dcm").read_bytes()
    expected = pydicom.dcmread(example("JPEG-LL.dcm")).pixel_array
    np.testing.assert_array_equal(ours.decode(file), expected)
    ours._running.kill()
    with pytest.raises(ValueError, match="broke down"):
        ours.decode(file)
    np.testing.assert_array_equal(ours.decode(file), expected)
    ours.end()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks processes up in /proc")
def test_the_decoders_process_ends_with_the_one_that_started_it():
    code = (
        "import os, pathlib, sys; from gazeprep import gdcm_process;"
        "gdcm_process.stored_pixels(pathlib.Path(sys.argv[1]).read_bytes());"
        "print(gdcm_process._process._running.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, example("JPEG-LL.dcm")], capture_output=True, text=True)
    status = Path(f"/proc/{int(done.stdout)}/status")
    until = time.monotonic() + 20
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() < until, "the decoder goes on"
        time.sleep(0.02)


# --- PNG and JPEG


def test_png_round_trip_is_exact_and_repeatable():
    image = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    assert encode(image, "png") == encode(image.copy(order="F"), "png")
    np.testing.assert_array_equal(decode(encode(image, "png")), image, strict=True)


def test_jpg_round_trip_is_close():
    image = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    assert np.abs(decode(encode(image, "jpg")).astype(int) - image).max() <= 4
    assert len(encode(image, "jpg", jpg_quality=50)) < len(encode(image, "jpg"))


def test_raster_pixels_are_taken_as_they_are(tmp_path):
    image = np.arange(60, 180, dtype=np.uint8).reshape(10, 12)
    path = tmp_path / "image.png"
    path.write_bytes(encode(image, "png"))
    np.testing.assert_array_equal(read_image(ref_to(path, "raster")), image)


def test_16_bit_png_fills_the_range():
    deep = DICOM_12_BIT_RAMP + np.uint16(300)
    np.testing.assert_array_equal(decode(cv2.imencode(".png", deep)[1].tobytes()), stretched(deep))


def test_colour_png_becomes_luma():
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[..., 2] = 200  # red, in OpenCV's order
    assert np.abs(decode(cv2.imencode(".png", colour)[1].tobytes()).astype(int) - 0.299 * 200).max() <= 1


def test_exif_orientation_does_not_turn_the_image(tmp_path):
    plain = encode(np.add.outer(np.arange(20), np.arange(30)).astype(np.uint8), "jpg")
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)  # orientation 6: a quarter turn
    exif = b"Exif\0\0" + tiff
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_GRAYSCALE).shape == (30, 20)
    np.testing.assert_array_equal(decode(turned), decode(plain))
    path = tmp_path / "image.jpg"
    path.write_bytes(turned)
    assert image_size(ref_to(path, "raster")) == (30, 20)


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)])
def test_only_gray_uint8_arrays_are_encoded_and_resized(image):
    with pytest.raises(ValueError, match="must be uint8"):
        encode(image, "png")
    with pytest.raises(ValueError, match="must be uint8"):
        resize(image, Resize())


def test_unknown_format_is_refused():
    with pytest.raises(ValueError, match="png, jpg"):
        encode(np.zeros((2, 2), np.uint8), "gif")


# --- geometry

scales = st.floats(0.05, 20) | st.floats(-20, -0.05)
offsets = st.floats(-3000, 3000)
affines = st.builds(Affine, scales, offsets, scales, offsets)
coordinates = st.lists(st.floats(-4000, 4000), min_size=1, max_size=5)


@given(affines, affines, coordinates)
def test_composition_and_inverse(first, second, x_px):
    step_x, step_y = second.points(*first.points(x_px, x_px[::-1]))
    once_x, once_y = first.then(second).points(x_px, x_px[::-1])
    np.testing.assert_allclose([once_x, once_y], [step_x, step_y], rtol=1e-9, atol=1e-6)
    back_x, back_y = first.then(first.inverse()).points(x_px, x_px[::-1])
    np.testing.assert_allclose([back_x, back_y], [x_px, x_px[::-1]], rtol=1e-9, atol=1e-6)


@given(affines, st.floats(0, 3000), st.floats(0, 3000))
def test_an_edge_moves_like_the_point_half_a_pixel_before_it(affine, x_edge, y_edge):
    x_px, y_px = affine.points(x_edge - 0.5, y_edge - 0.5)
    moved = affine.rectangle((x_edge, y_edge, x_edge, y_edge))
    np.testing.assert_allclose(moved, (x_px + 0.5, y_px + 0.5) * 2, rtol=1e-12, atol=1e-9)


def test_flip_moves_points_and_rectangles_like_the_pixels():
    image = np.zeros((3, 10), np.uint8)
    image[1, 2] = 255
    flip = Affine(a_x=-1, b_x=10)
    x_px, y_px = flip.points([2], [1])
    assert np.fliplr(image)[int(y_px[0]), int(x_px[0])] == 255
    assert flip.rectangle((2, 1, 3, 2)) == (7, 1, 8, 2)


def test_affine_without_inverse_is_refused():
    with pytest.raises(ValueError, match="a must not be 0"):
        Affine(a_x=0)


def centroid(image):
    weights = image.astype(np.float64)
    rows, cols = np.indices(image.shape)
    return (weights * cols).sum() / weights.sum(), (weights * rows).sum() / weights.sum()


@pytest.mark.parametrize("rule", ["short_edge", "long_edge", "letterbox", "none"])
@pytest.mark.parametrize(
    ("rows", "cols", "size_px"), [(764, 636, 129), (636, 765, 131), (100, 90, 130)], ids=["tall", "wide", "grows"]
)
def test_a_drawn_blob_moves_as_the_affine_says(rule, rows, cols, size_px):
    x_px, y_px = np.arange(cols), np.arange(rows)[:, None]
    spread = 0.04 * min(rows, cols)
    blob = np.exp(-((x_px - 0.3 * cols) ** 2 + (y_px - 0.6 * rows) ** 2) / (2 * spread**2))
    image = np.rint(255 * blob).astype(np.uint8)
    resized = resize(image, Resize(rule, size_px))
    moved = np.ravel(resized.affine.points(*centroid(image)))
    np.testing.assert_allclose(centroid(resized.image), moved, atol=0.02)


@pytest.mark.parametrize(
    ("rule", "shape", "content"),
    [
        ("short_edge", (66, 50), (0, 0, 50, 66)),
        ("long_edge", (50, 38), (0, 0, 38, 50)),
        ("letterbox", (50, 50), (6, 0, 44, 50)),
        ("none", (105, 80), (0, 0, 80, 105)),
    ],
)
def test_sizes_and_content_of_every_rule(rule, shape, content):
    image = np.full((105, 80), 9, np.uint8)  # 50 / 105 · 80 = 38.1; 50 / 80 · 105 = 65.6
    resized = resize(image, Resize(rule, 50))
    assert resized.image.shape == shape
    assert resized.content == content
    np.testing.assert_allclose(resized.affine.rectangle((0, 0, 80, 105)), content, atol=1e-12)
    left, top, right, bottom = content
    assert (resized.image[top:bottom, left:right] == 9).all()
    assert (resized.image == 9).sum() == (right - left) * (bottom - top), "the rest is zero"


def test_odd_padding_goes_right_and_a_thin_image_keeps_a_pixel():
    assert resize(np.ones((50, 37), np.uint8), Resize("letterbox", 50)).content == (6, 0, 43, 50)
    assert resize(np.ones((500, 1), np.uint8), Resize("long_edge", 50)).image.shape == (50, 1)


@pytest.mark.parametrize("arguments", [{"rule": "crop"}, {"size_px": 0}, {"size_px": 51.8}, {"size_px": True}], ids=str)
def test_resize_rules_are_strict(arguments):
    with pytest.raises(ValueError, match="must be"):
        Resize(**arguments)


def test_a_lookup_table_that_is_not_pydicoms_is_refused(tmp_path, monkeypatch):
    path = save(make_dataset(DICOM_12_BIT_RAMP, WindowCenter=2048, WindowWidth=4096), tmp_path)
    honest = images._display

    def one_level_off(*given, **named):
        display = honest(*given, **named)
        return replace(display, table=np.where(display.table < 255, display.table + 1, 255).astype(np.uint8))

    read_image(ref_to(path))
    monkeypatch.setattr(images, "_display", one_level_off)
    with pytest.raises(InputError, match="window or lookup table cannot be applied") as error:
        read_image(ref_to(path))
    assert error.value.reason == "image_bad_lut"

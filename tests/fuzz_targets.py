"""What fuzz.py feeds: each reader of a file that somebody else made, with small valid files to start from."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from recorded import SMALL, Tables

from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources, collect
from gazeprep.images import decode, image_size, read_image, view_position
from gazeprep.lint import lint
from gazeprep.reports import context
from gazeprep.samples import align, stored_picture
from gazeprep.schema import ImageRef, InputError, Recording, ReportRef
from gazeprep.shards import ShardFolder, read_npy, read_npz
from gazeprep.sources import egd, mimic_eye, reflacx, table
from gazeprep.sources.mimic_cxr import open_mimic, read_report
from gazeprep.synthetic import Corpus, write_corpus, write_mimic_eye

SIZE = (2544, 3056)
ROWS = 4  # of each table


@dataclass(frozen=True)
class Target:
    """A reader and valid inputs of it; packed: the file is gzipped. plain_errors: it raises ValueError itself."""

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], Any]
    packed: bool = False
    plain_errors: bool = False
    share: int = 1  # of the inputs; readers of one small file are hundreds of times faster than those of folders


def targets(folder: Path, corpus: Corpus | None = None) -> Iterator[Target]:
    """Every reader, with a folder of its own below `folder`."""
    corpus = corpus or write_corpus(folder / "corpus", 4)
    yield from image_targets(folder)
    yield from reflacx_targets(folder / "reflacx", corpus)
    yield from egd_targets(folder / "egd", corpus)
    yield from mimic_targets(folder / "mimic", corpus)
    yield from mimic_eye_targets(folder / "mimic-eye", corpus)
    yield from table_targets(folder / "table")
    yield from report_targets(folder, corpus)
    yield from shard_targets(folder / "shards")


def of_file(name: str, path: Path, read: Callable[[], Any], **more: Any) -> Target:
    """A reader of a file in a folder: the file that lies there is the seed, and is put back after each input."""
    seed = path.read_bytes()

    def read_once(data: bytes) -> Any:
        path.write_bytes(data)
        try:
            return read()
        finally:
            path.write_bytes(seed)

    return Target(name, (seed,), read_once, **more)


def head(source: Path, out: Path) -> Path:
    """Copy a table's first rows."""
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.read_csv(source, dtype=str, keep_default_na=False).head(ROWS).to_csv(out, index=False)
    return out


def use(recording: Recording) -> None:
    """Do with a recording what a build does; its maps must be finite and sum to 1, or be zero."""
    try:
        maps = align(recording, SIZE, SMALL).maps
    except InputError:
        return
    sums = maps.sum(axis=(1, 2), dtype=np.float64)
    assert np.isfinite(sums).all(), "a map is not finite"
    assert (np.isclose(sums, 1, atol=1e-4) | (sums == 0)).all(), "a map does not sum to 1"


def use_all(readings: Any) -> None:
    """Load and use every reading that is not rejected."""
    for reading in readings:
        if not reading.reject:
            use(reading.load())


# --- pictures


def dicom(syntax: str = ExplicitVRLittleEndian, pixels: bytes | None = None, bits: int = 12, **elements: Any) -> bytes:
    """A radiograph of 40 x 48 pixels."""
    stored = np.random.default_rng(0).integers(0, 2**bits, (40, 48), dtype=np.uint8 if bits == 8 else np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.826.0.1.3680043.8.498.1"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * stored.itemsize, bits, bits - 1
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation, dataset.ViewPosition = "MONOCHROME1", "PA"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate([pixels]) if pixels is not None else stored.tobytes()
    dataset["PixelData"].VR = "OB" if pixels is not None else "OW"
    if syntax in (RLELossless, JPEG2000Lossless) and pixels is None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def lut(first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [64, first, bits])
    item.add_new("LUTData", "OW", np.arange(64, dtype="<u2").tobytes())
    return Sequence([item])


def picture(suffix: str, dtype: type = np.uint8, shape: tuple[int, ...] = (40, 48), *options: int) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    return bytes(cv2.imencode(suffix, pixels, list(options))[1])


def image_targets(folder: Path) -> Iterator[Target]:
    path = folder / "image"

    def read(data: bytes, kind: Any) -> None:
        path.write_bytes(data)
        ref = ImageRef(str(folder), path.name, kind, "fuzz")
        view_position(ref)
        size = image_size(ref)
        image = read_image(ref)
        assert image.dtype == np.uint8, "pixels are not of 8 bits"
        assert image.shape == size[::-1], "another size than the header's"
        stored_picture(image, SMALL.picture)

    plain = (
        dicom(),
        dicom(ImplicitVRLittleEndian, WindowCenter=2000, WindowWidth=3000),
        dicom(ExplicitVRBigEndian, bits=16),
        dicom(DeflatedExplicitVRLittleEndian, bits=8),
        dicom(VOILUTSequence=lut(0, 16)),
        dicom(ModalityLUTSequence=lut(100, 16)),
        dicom(
            RescaleSlope="-2", RescaleIntercept="7", VOILUTFunction="SIGMOID", WindowCenter="9\\1", WindowWidth="5\\2"
        ),
    )
    compressed = (
        dicom(RLELossless),
        dicom(JPEG2000Lossless),
    )
    of_gdcm = (
        dicom(JPEGBaseline8Bit, picture(".jpg"), bits=8),
        Path(get_testdata_file("JPEG-LL.dcm")).read_bytes(),
    )
    jpegs = (
        picture(".jpg"),
        picture(".jpg", np.uint8, (40, 48, 3)),
        picture(".jpg", np.uint8, (40, 48), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    )
    pngs = (picture(".png"), picture(".png", np.uint16), picture(".png", np.uint8, (40, 48, 3)))
    yield Target("dicom", plain, lambda data: read(data, "dicom"), share=30)
    yield Target("dicom compressed", compressed, lambda data: read(data, "dicom"), share=30)
    yield Target("dicom of gdcm", of_gdcm, lambda data: read(data, "dicom"), share=10)
    yield Target("jpeg", jpegs, lambda data: read(data, "raster"), share=30)
    yield Target("png", pngs, lambda data: read(data, "raster"), share=30)
    yield Target("stored picture", (*pngs, *jpegs), decode, share=30)


# --- recordings


def reflacx_targets(root: Path, corpus: Corpus) -> Iterator[Target]:
    read_ones = sorted(path.parent.name for path in (corpus.reflacx / "main_data").glob("P*/fixations.csv"))
    for phase in (1, 2, 3):
        name = f"metadata_phase_{phase}.csv"
        head(corpus.reflacx / "main_data" / name, root / "main_data" / name)
    reading = next(name for name in read_ones if name.startswith("P3"))
    source, own = corpus.reflacx / "main_data" / reading, root / "main_data" / reading
    for path in source.glob("*.csv"):
        head(path, own / path.name)
    shutil.copy(source / "transcription.txt", own)

    def read() -> None:
        use_all(reflacx.readings(root))

    yield of_file("reflacx metadata", root / "main_data" / "metadata_phase_3.csv", read)
    for path in sorted(own.iterdir()):
        yield of_file(f"reflacx {path.stem}", path, read)
    fixations = own / "fixations.csv"
    yield of_file("reflacx fixations alone", fixations, lambda: reflacx.read_fixations(fixations), share=20)


def egd_targets(root: Path, corpus: Corpus) -> Iterator[Target]:
    master = head(corpus.egd / "master_sheet.csv", root / "master_sheet.csv")
    for name in ("fixations.csv", "bounding_boxes.csv"):
        head(corpus.egd / name, root / name)
    dicom_id = pd.read_csv(master)["dicom_id"][0]
    spoken = root / "audio_segmentation_transcripts" / dicom_id / "transcript.json"
    spoken.parent.mkdir(parents=True)
    phrases = [{"phrase": f"clear {i}.", "begin_time": i, "end_time": i + 0.5} for i in range(3)]
    spoken.write_text(json.dumps({"full_text": "clear.", "time_stamped_text": phrases}))

    def read() -> None:
        use_all(egd.readings(root))
        egd.dropped_rows(root)

    for path in sorted(root.glob("*.csv")):
        yield of_file(f"egd {path.stem}", path, read)
    yield of_file("egd transcript", spoken, lambda: egd.read_transcript(spoken), share=30)


def mimic_targets(root: Path, corpus: Corpus) -> Iterator[Target]:
    (root / "files" / "p10").mkdir(parents=True)
    for name in ("metadata", "split", "chexpert"):
        file = f"mimic-cxr-2.0.0-{name}.csv"
        plain = head(corpus.mimic_cxr_jpg / f"{file}.gz", root / file)

        def read() -> None:
            mimic = open_mimic(None, root, prior=True)
            for image in mimic.images:
                mimic.labels(image.study_id)
                mimic.report_ref(image.study_id, image.subject_id)

        yield of_file(f"mimic {name}", plain, read)
    lone = root.with_name("mimic-packed")
    (lone / "files" / "p10").mkdir(parents=True)
    packed, seed = lone / "mimic-cxr-2.0.0-metadata.csv.gz", (root / "mimic-cxr-2.0.0-metadata.csv").read_bytes()

    def read_packed(data: bytes) -> None:
        packed.write_bytes(data)
        open_mimic(None, lone, prior=True)

    yield Target("mimic metadata packed", (seed,), read_packed, packed=True)
    overrides = root.with_name("overrides.csv")
    overrides.write_text("study_id,section,start,end\ns1,findings,,\n2,,3,9\n3,,0,0\n")
    yield of_file("mimic overrides", overrides, lambda: open_mimic(None, root, overrides=overrides))


def mimic_eye_targets(root: Path, corpus: Corpus) -> Iterator[Target]:
    whole = root.with_name("mimic-eye-whole")
    write_mimic_eye(corpus, whole)
    patient = next(whole.glob("patient_*/EyeGaze")).parent
    shutil.copytree(patient, root / patient.name)
    tables = ("CXR-JPG/cxr_meta.csv", "CXR-JPG/cxr_chexpert.csv", "EyeGaze/master_sheet.csv", "EyeGaze/fixations.csv")
    for name in tables:
        head(root / patient.name / name, root / patient.name / name)

    def read() -> None:
        use_all(mimic_eye.open_mimic_eye(root, prior=True).readings)

    for name in tables:
        yield of_file(f"mimic-eye {Path(name).stem}", root / patient.name / name, read)


def table_targets(root: Path) -> Iterator[Target]:
    root.mkdir()
    tables = Tables(root)
    for i in range(2):
        tables.image(f"im{i}", f"s{i}")
        tables.reading(f"r{i}", f"im{i}")
    source = tables.source()

    def read() -> None:
        for case in collect(Sources(table=source)).cases:
            assert (root / case.image.path).resolve().is_relative_to(root.resolve()), "a path left its folder"
            if case.reading is not None:
                use(case.reading.load())

    for name in ("images", "fixations", "words"):
        yield of_file(f"table {name}", root / f"{name}.csv", read)
    parquet = root / "fixations.parquet"
    pd.read_csv(root / "fixations.csv").to_parquet(parquet)
    yield of_file("table parquet", parquet, lambda: table.read_fixations(parquet, reading_id="r0"))


# --- reports


def report_targets(folder: Path, corpus: Corpus) -> Iterator[Target]:
    texts = [path.read_bytes() for path in sorted(corpus.mimic_cxr.rglob("s*.txt"))[:3]]
    path = folder / "report.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        context(read_report(ReportRef(str(folder), path.name)))

    yield Target("report", tuple(texts), read, share=30)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, text in enumerate(texts):
            archive.writestr(f"files/p10/p1000000{i}/s5000000{i}.txt", text)
    count = 0

    def read_zip(data: bytes) -> None:
        nonlocal count
        count += 1
        root = folder / f"zip-{count}"  # opened zips are kept by name
        root.mkdir()
        try:
            (root / "mimic-cxr-reports.zip").write_bytes(data)
            mimic = open_mimic(root, None)
            for i in range(3):
                ref = mimic.report_ref(f"5000000{i}", f"1000000{i}")
                if ref is not None:
                    context(read_report(ref))
        finally:
            shutil.rmtree(root)

    yield Target("report zip", (packed.getvalue(),), read_zip)


# --- shards


def shard_targets(root: Path) -> Iterator[Target]:
    root.mkdir()
    tables = Tables(root / "tables")
    tables.root.mkdir()
    for i in range(2):
        tables.image(f"im{i}", f"s{i}")
    tables.reading("r0", "im0")
    out = root / "out"
    build(BuildConfig(out, Sources(table=tables.source()), SMALL, executor="inline"))
    folder = ShardFolder(out)
    key = folder.index.index[folder.index["has_gaze"]][0]
    yield Target("npz", (folder.member(key, "gaze"),), read_npz, plain_errors=True, share=30)
    yield Target("npy", (folder.member(key, "maps"),), read_npy, plain_errors=True, share=30)

    def read() -> None:
        lint(out, workers=1)
        shards = ShardFolder(out)
        for one in shards.index["key"]:
            decode(shards.sample(one).image)

    for path in (out / str(folder.row(key)["shard"]), out / "index.parquet", out / "dataset.json"):
        yield of_file(f"shards {path.name}", path, read, plain_errors=True)

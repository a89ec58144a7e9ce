"""Openly licensed real files, written as the tables of the table source; nothing of theirs is kept in the project.

NIH chest X-rays and pydicom-data's chest CR (images), Open-i reports from the torchxrayvision wheel (text), OSIE
(human fixations on photographs, for maps only). Each row says in `source` what is real and what is not.
"""

import csv
import io
import re
import shutil
import tarfile
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from gazeprep.fixations import Frame
from gazeprep.schema import Context, InputError
from gazeprep.sources.table import TableSource

NIH_NAME = re.compile(r"(?P<subject>\d{8})_(?P<visit>\d{3})\.png")
REPORTS_IN_WHEEL = "torchxrayvision/data/NLMCXR_reports.tgz"
CHEST_CR = ("RG1_UNCR.dcm", "RG1_UNCI.dcm", "RG1_J2KR.dcm", "RG1_J2KI.dcm")
OSIE_SIZE = (800, 600)
OSIE_FRAME = Frame(unit="image_px", base=1, time="ms")
IMAGE_COLUMNS = ("image_id", "path", "subject_id", "study_id", "view_position", "source")
SECTION_OF_LABEL = {"INDICATION": "indication", "COMPARISON": "comparison"} | {
    label: label.lower() for label in ("FINDINGS", "IMPRESSION")
}


def openi_reports(wheel: Path) -> tuple[Context, ...]:
    """Read the sections of every Open-i report in a downloaded torchxrayvision wheel, in order of their numbers.

    Raises InputError where the wheel is not the one that holds them.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(REPORTS_IN_WHEEL)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            "reports_missing",
            f"the Open-i reports cannot be read from the wheel ({type(error).__name__}); "
            "run pip download --no-deps torchxrayvision==1.5.7",
        ) from None
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.name.endswith(".xml")}
        texts = {int(Path(name).stem): file.read() for name, file in files.items() if file is not None}
    return tuple(openi_context(texts[number]) for number in sorted(texts))


def openi_context(xml: bytes) -> Context:
    """Return the labelled sections of one Open-i report on single lines."""
    sections = {}
    for element in ET.fromstring(xml).iter("AbstractText"):
        name = SECTION_OF_LABEL.get(element.get("Label", ""))
        if name is not None:
            sections[name] = " ".join((element.text or "").split())
    return Context(**sections)


def write_chest_tables(
    out: Path, nih: Path | None, chest_cr: Sequence[Path], reports: Sequence[Context]
) -> TableSource:
    """Copy the chest images into `out` and write their table, each beside a report of somebody else.

    Raises InputError where no image is given. Without reports the samples have no context.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = [*_nih_rows(nih), *_chest_cr_rows(chest_cr)]
    if not rows:
        raise InputError("no_inputs", "no NIH image and no chest CR is there; give --nih or install pydicom-data")
    for i, row in enumerate(rows):
        shutil.copyfile(row["file"], out / row["path"])
        said = reports[i % len(reports)] if reports else Context()
        row |= {name: getattr(said, name) for name in SECTION_OF_LABEL.values()}
        text = "report real (Open-i, CC BY-NC-ND), of another patient" if reports else "no report"
        row["source"] += f"; {text}; no gaze"
    _write_csv(out / "images.csv", (*IMAGE_COLUMNS, *SECTION_OF_LABEL.values()), rows)
    return TableSource(images=out / "images.csv", name="open")


def _nih_rows(folder: Path | None) -> list[dict[str, str]]:
    rows = []
    for file in sorted(folder.glob("*.png")) if folder is not None else []:
        name = NIH_NAME.fullmatch(file.name)
        if name is not None:
            rows.append(_row(file, f"nih-{name['subject']}", name["visit"], "image real (NIH ChestX-ray14)"))
    return rows


def _chest_cr_rows(files: Sequence[Path]) -> list[dict[str, str]]:
    """One patient and study: the files are one exposure, compressed in different ways."""
    return [_row(file, "pydicom-rg1", "0", "image real (chest CR of pydicom-data)") for file in files]


def _row(file: Path, subject: str, study: str, source: str) -> dict[str, str]:
    return {
        "file": str(file),
        "image_id": file.stem,
        "path": f"images/{file.stem}{file.suffix}",
        "subject_id": subject,
        "study_id": f"{subject}-{study}",
        "view_position": "",
        "source": source,
    }


def write_osie_tables(out: Path, mat: Path) -> TableSource:
    """Write OSIE's fixations (1-based image px, durations in ms) as tables; the photographs are not there.

    So a build rejects every reading (image_missing): they are for maps only, and no chest image is ever theirs.
    Raises InputError where the file is not OSIE's fixations.mat.
    """
    try:
        stimuli = loadmat(mat, squeeze_me=True, struct_as_record=False)["fixations"]
    except (KeyError, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            "unreadable_table", f"the OSIE fixations cannot be read ({type(error).__name__}); give its fixations.mat"
        ) from None
    out.mkdir(parents=True, exist_ok=True)
    images, fixations = [], []
    for stimulus in stimuli:
        image_id = Path(stimulus.img).stem
        images.append({"image_id": image_id, "path": f"photographs/{stimulus.img}", "subject_id": image_id})
        for observer, seen in enumerate(np.atleast_1d(stimulus.subjects)):
            columns = (np.atleast_1d(values) for values in (seen.fix_x, seen.fix_y, seen.fix_duration))
            for x, y, duration in zip(*columns, strict=True):
                row = {"image_id": image_id, "x": x, "y": y, "duration": duration}
                fixations.append(row | {"reading_id": f"{image_id}-{observer}"})
    width, height = OSIE_SIZE
    sized = [row | {"image_width": width, "image_height": height} for row in images]
    _write_csv(out / "images.csv", ("image_id", "path", "subject_id", "image_width", "image_height"), sized)
    _write_csv(out / "fixations.csv", ("reading_id", "image_id", "x", "y", "duration"), fixations)
    return TableSource(images=out / "images.csv", fixations=out / "fixations.csv", name="osie", frame=OSIE_FRAME)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)

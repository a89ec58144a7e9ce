"""Open-i, Indiana University's chest X-rays: one XML file a report, for retrieval."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cogaze.evaluate.datasets.folders import (
    Missing,
    Notes,
    by_stem,
    counted,
    note_count,
    pictures_below,
    release_folder,
    with_picture,
)
from cogaze.evaluate.datasets.lists import ListForm, hash_origin, hashed_parts, listed_parts, read_lists
from cogaze.evaluate.records import UNKNOWN, EvalImage, EvalSet
from gazeprep.sources.csv_table import read_table
from gazeprep.splits import HashSplit

Text = Literal["findings_impression", "findings", "impression"]

NAME = "Open-i"
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "findings_impression": ("FINDINGS", "IMPRESSION"),
    "findings": ("FINDINGS",),
    "impression": ("IMPRESSION",),
}
PROJECTIONS = "indiana_projections.csv"
MAX_BYTES = 2**20  # of a report: about a hundred times the usual
_IMAGE_ID = re.compile(r"CXR(\d+)_(?:\d+_)?(IM-\d{4}(?:-\d+)*)")
_PROJECTED = re.compile(r"(\d+)_(IM-\d{4}(?:-\d+)*)\.dcm\.png")


@dataclass(frozen=True)
class _Report:
    """A report: the ids of its images, its text, whether MeSH calls it normal (UNKNOWN without a major term)."""

    id: str
    images: tuple[str, ...]
    text: str
    abnormal: int


def read_openi(
    root: Path,
    lists: Path | None = None,
    *,
    text: Text = "findings_impression",
    frontal_only: bool = False,
    split: Literal["all_test", "hash"] = "all_test",
    missing: Missing = "refuse",
    seed: int = 0,
) -> EvalSet:
    """Read ecgen-radiology/*.xml and the PNG files beside it; all images are test unless split is hash.

    `lists` holds report ids, such as CXR12. The label is whether MeSH's major terms are other than `normal`. Images
    of a report without the chosen text are left out and noted. frontal_only needs Kaggle's indiana_projections.csv in
    the root: the XML tells no view. Raises ValueError where files are not what docs/benchmarks.md says.
    """
    root, notes = release_folder(root, NAME), Notes()
    reports = _reports(root, text, notes)
    note_count(notes, "reports", len(reports), 3955)
    pictures = by_stem(pictures_below(root, ["."], "openi"), NAME)
    of_image = {image: report for report in reports for image in report.images}
    views = _views(root, frontal_only)
    present = with_picture(of_image, pictures, missing, NAME, notes)
    told = [one for one in present if of_image[one].text]
    notes["images whose report has no such text, left out"] += len(present) - len(told)
    kept = [one for one in told if not frontal_only or views.get(_key(one)) == "FRONTAL"]
    notes["images that are not frontal, left out"] += len(told) - len(kept)
    images = [
        EvalImage(
            one,
            pictures[one],
            (of_image[one].abnormal,),
            subject=of_image[one].id,
            report=of_image[one].text,
            view="LATERAL" if views.get(_key(one)) == "LATERAL" else "",
        )
        for one in kept
    ]
    by_hash = HashSplit(0.1, 0.2, seed)
    if lists is not None:
        images_of: dict[str, list[str]] = {report.id: [] for report in reports}
        for one in images:
            images_of[one.subject].append(one.id)
        chosen = read_lists(lists, ListForm(), NAME, notes)
        unknown = len({one for ids in chosen.values() for one in ids} - set(images_of))
        if unknown:
            raise ValueError(f"{NAME}: {unknown} listed reports are not in ecgen-radiology; list ids such as CXR12")
        spread = {part: [image for one in ids for image in images_of[one]] for part, ids in chosen.items()}
        by_id = {one.id: one for one in images}
        parts, origin = listed_parts(by_id, spread, by_id, NAME, notes), "the lists given"
    elif split == "hash":
        parts, origin = hashed_parts(images, by_hash), hash_origin(by_hash, "report")
    else:
        parts, origin = {"test": tuple(images)}, "all images are test"
    return EvalSet(NAME, "binary", ("Abnormal",), parts, counted(notes), origin)


# --- reports


def _reports(root: Path, text: Text, notes: Notes) -> list[_Report]:
    paths = sorted((root / "ecgen-radiology").glob("*.xml"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise ValueError(f"{NAME}: ecgen-radiology holds no XML file; unpack NLMCXR_reports.tgz into the folder")
    reports = [_report(path, text) for path in paths]
    if len({report.id for report in reports}) < len(reports):
        raise ValueError(f"{NAME}: two XML files are of one report; keep one of each")
    twice = sum(len(report.images) for report in reports) - len({one for report in reports for one in report.images})
    if twice:
        raise ValueError(
            f"{NAME}: {twice} images stand in two reports, so that neither is theirs; correct the XML files"
        )
    notes["reports without images"] += sum(not report.images for report in reports)
    notes["reports without the chosen text"] += sum(not report.text for report in reports)
    notes["reports without a major MeSH term, whose label is unknown"] += sum(
        report.abnormal == UNKNOWN for report in reports
    )
    return reports


def _report(path: Path, text: Text) -> _Report:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ET.ParseError
        root = ET.fromstring(data)
        (uid,) = (one.attrib["id"] for one in root.iter("uId"))
        images = tuple(one.attrib["id"] for one in root.iter("parentImage"))
    except (ET.ParseError, OSError, LookupError, ValueError) as error:
        raise ValueError(
            f"{NAME}: an XML file is damaged or no report of Open-i ({type(error).__name__}); unpack the reports again"
        ) from None
    sections = {one.attrib.get("Label", ""): "".join(one.itertext()) for one in root.iter("AbstractText")}
    chosen = " ".join(" ".join(sections.get(name, "") for name in SECTIONS[text]).split())
    major = [(one.text or "").strip().lower() for mesh in root.iter("MeSH") for one in mesh.iter("major")]
    abnormal = UNKNOWN if not any(major) else int("normal" not in major)
    return _Report(uid, images, chosen, abnormal)


# --- views


def _views(root: Path, frontal_only: bool) -> dict[str, str]:
    """Return FRONTAL or LATERAL of each image that Kaggle's table names, none without the table."""
    path = root / PROJECTIONS
    if not path.is_file():
        if frontal_only:
            raise ValueError(f"{NAME}: frontal_only needs {PROJECTIONS} of Kaggle's raddar/chest-xrays in the folder")
        return {}
    table = read_table(path, ["filename", "projection"], kind=f"{NAME} {PROJECTIONS}")
    found = {}
    for name, projection in zip(table["filename"].str.strip(), table["projection"].str.strip(), strict=True):
        parsed = _PROJECTED.fullmatch(name)
        if parsed is None or projection not in ("Frontal", "Lateral"):
            raise ValueError(f"{NAME} {PROJECTIONS} has a row that is not <report>_IM-….dcm.png and Frontal or Lateral")
        found[f"{parsed[1]} {parsed[2]}"] = projection.upper()
    return found


def _key(image_id: str) -> str:
    """Return report number and image number of an image id, which may name the report's number twice."""
    found = _IMAGE_ID.fullmatch(image_id)
    return "" if found is None else f"{found[1]} {found[2]}"

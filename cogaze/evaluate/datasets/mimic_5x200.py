"""MIMIC-CXR 5x200: images of one finding alone with their reports, built by a rule whose choices are options."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cogaze.evaluate.datasets.exclusive import FIVE, Positions, draw, note_pools, one_hot, pools
from cogaze.evaluate.datasets.folders import Notes, counted, need_file, release_folder
from cogaze.evaluate.datasets.lists import read_lines, write_list
from cogaze.evaluate.records import EvalImage, EvalSet
from gazeprep.reports import context
from gazeprep.schema import CHEXPERT_LABELS, LABEL_ABSENT
from gazeprep.sources.mimic_cxr import MimicCxr, MimicImage, open_mimic, read_report

NAME = "MIMIC 5x200"
LIST = "mimic_5x200.txt"
_TESTED = [place for place, label in enumerate(CHEXPERT_LABELS) if label != "No Finding"]
_NAMES = [CHEXPERT_LABELS[place] for place in _TESTED]


def read_mimic_5x200(
    root: Path,
    lists: Path | None = None,
    *,
    labels: Literal["chexpert", "negbio"] = "chexpert",
    uncertain: Literal["exclude", "zero"] = "exclude",
    frontal_only: bool = True,
    per_class: int = 200,
    seed: int = 0,
    write: Path | None = None,
) -> EvalSet:
    """Build the set from MIMIC-CXR's label table, or read the list in `lists`.

    root: a folder of MIMIC-CXR or MIMIC-CXR-JPG with reports beside, or one that holds both as mimic-cxr and
    mimic-cxr-jpg. uncertain: whether another finding of -1 excludes an image (GLoRIA) or is taken as 0 (MedCLIP). An
    image qualifies if it and its study's report are there. `write`: a folder for the list of dicom ids, to be given as
    `lists` from then on. Raises ValueError where a class has too few images or a listed one does not qualify.
    """
    root, notes = release_folder(root, NAME), Notes()
    mimic = _open(root, labels)
    images = [one for one in mimic.images if one.view_position in ("AP", "PA") or not frontal_only]
    notes["images that are not frontal, left out"] += len(mimic.images) - len(images)
    found = pools(_values(mimic, images, uncertain), _NAMES, FIVE)
    whole = [np.array([row for row in rows if _is_whole(mimic, images[row])], dtype=np.int64) for rows in found]
    left_out = sum(map(len, found)) - sum(map(len, whole))
    notes["images of one finding without picture or report, left out"] += left_out
    note_pools(whole, FIVE, notes)
    if lists is None:
        drawn = draw(whole, FIVE, per_class, seed, NAME)
        views = "frontal images" if frontal_only else "images"
        origin = (
            f"{labels} labels, uncertain {uncertain}: {per_class} {views} of each class drawn by pandas with "
            f"random_state {seed}"
        )
    else:
        drawn, origin = _listed(lists, images, whole), "the list given"
    chosen = [(images[row], label) for label, rows in enumerate(drawn) for row in rows.tolist()]
    if write is not None:
        write_list(write / LIST, [image.dicom_id for image, _ in chosen])
    for split, count in Counter(image.split or "no" for image, _ in chosen).items():
        notes[f"images of MIMIC-CXR's {split} split"] += count
    test = tuple(_image(mimic, image, label, notes) for image, label in chosen)
    return EvalSet(NAME, "multi-class", FIVE, {"test": test}, counted(notes), origin)


def _open(root: Path, labels: Literal["chexpert", "negbio"]) -> MimicCxr:
    both = root / "mimic-cxr", root / "mimic-cxr-jpg"
    dicom, jpg = (place if place.is_dir() else None for place in both) if any(map(Path.is_dir, both)) else (root, root)
    mimic = open_mimic(dicom, jpg, prefer="jpg", labels=labels)
    if f"MIMIC {labels} label table" in mimic.absent_tables:
        raise ValueError(f"{NAME}: the {labels} label table of MIMIC-CXR-JPG is not in the folder; add it")
    return mimic


def _values(
    mimic: MimicCxr, images: Sequence[MimicImage], uncertain: Literal["exclude", "zero"]
) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """Return 1, 0 and -1 of the 13 findings (images, 13); what is not mentioned is 0."""
    studies = {study: list(mimic.labels(study).values()) for study in {one.study_id for one in images}}
    values = np.array([studies[one.study_id] for one in images], dtype=np.int8).reshape(len(images), -1)
    values[values == LABEL_ABSENT] = 0
    if uncertain == "zero":
        values[values == -1] = 0
    return values[:, _TESTED]


def _is_whole(mimic: MimicCxr, image: MimicImage) -> bool:
    return image.image is not None and mimic.report_ref(image.study_id, image.subject_id) is not None


def _listed(lists: Path, images: Sequence[MimicImage], found: Sequence[Positions]) -> list[Positions]:
    """Return the rows of the listed images by class; raises ValueError where one is in no class."""
    ids = read_lines(need_file(release_folder(lists, f"{NAME} lists"), [LIST], NAME))
    wanted = set(ids)
    listed = [np.array([row for row in rows if images[row].dicom_id in wanted], dtype=np.int64) for rows in found]
    lacking = len(ids) - sum(map(len, listed))
    if lacking:
        raise ValueError(
            f"{NAME}: {lacking} of {len(ids)} listed images have not one of {FIVE} alone by these options, are listed "
            "twice, or have no picture or report; give the options that the list was made with"
        )
    return listed


def _image(mimic: MimicCxr, image: MimicImage, label: int, notes: Notes) -> EvalImage:
    reference = mimic.report_ref(image.study_id, image.subject_id)
    assert image.image is not None
    assert reference is not None
    read = context(read_report(reference), mimic.overrides.get(image.study_id))
    report = f"{read.findings} {read.impression}".strip() or read.last_paragraph
    notes["images whose report has neither findings nor impression"] += not report
    return EvalImage(
        image.dicom_id,
        image.image,
        one_hot(label, FIVE),
        subject=image.subject_id,
        report=report,
        view=image.view_position,
    )

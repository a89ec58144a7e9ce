"""CheXpert's tables: paths, views, ages and 14 labels that are present, absent, uncertain or not mentioned."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from cogaze.evaluate.datasets.cells import age_years, labels_of, sex_of
from cogaze.evaluate.datasets.folders import Notes
from cogaze.evaluate.records import EvalImage
from gazeprep.schema import ImageRef
from gazeprep.sources.csv_table import read_table

Values = npt.NDArray[np.int8]  # (rows, 14)

NAME = "CheXpert"
FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_PATH = re.compile(r"(train|valid|test)/(patient\d+)/study\d+/view\d+_(frontal|lateral)\.jpg")
UNCERTAIN, BLANK = -1, -2
_VALUES = {"1.0": 1, "0.0": 0, "-1.0": UNCERTAIN, "": BLANK, "1": 1, "0": 0, "-1": UNCERTAIN}
SURE = {"1.0": 1, "0.0": 0, "1": 1, "0": 0}


@dataclass(frozen=True, eq=False)
class CheXpertTable:
    """Rows of a table by path, without the release's name in front; values (rows, 14) with -1 uncertain, -2 blank."""

    paths: list[str]
    values: Values
    frontal: npt.NDArray[np.bool_]
    views: list[str]
    ages: list[str]
    sexes: list[str]

    def images(
        self, rows: Sequence[int], labels: Sequence[tuple[int, ...]], pictures: Mapping[str, ImageRef], notes: Notes
    ) -> Iterator[EvalImage]:
        """Yield the images of these rows, with these labels, that have a picture."""
        for row, label in zip(rows, labels, strict=True):
            path = self.paths[row]
            if path in pictures:
                yield EvalImage(
                    path,
                    pictures[path],
                    label,
                    subject=patient_of(path),
                    view=self.views[row],
                    age_years=age_years(self.ages[row], notes),
                    sex=sex_of(self.sexes[row], notes),
                )


def chexpert_table(path: Path, part: str) -> CheXpertTable:
    """Read train.csv or valid.csv; raises ValueError where a cell or a path is none of CheXpert's."""
    kind = f"{NAME} {path.name}"
    table = read_table(path, ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS], kind=kind)
    paths = [without_release(cell) for cell in table["Path"]]
    wrong = sum(not is_path(one, part) for one in paths)
    if wrong or len(set(paths)) < len(paths):
        raise ValueError(
            f"{kind}: {wrong} of {len(paths)} paths are not <release>/{part}/patient<n>/study<n>/view<n>_<frontal or "
            f"lateral>.jpg, and {len(paths) - len(set(paths))} repeat another; take the table of the release"
        )
    values = label_values(table, _VALUES if part == "train" else SURE, kind)
    frontal = labels_of(table["Frontal/Lateral"].tolist(), {"Frontal": 1, "Lateral": 0}, kind, "Frontal/Lateral")
    views = [
        view.strip().upper() or ("" if is_frontal else "LATERAL")
        for view, is_frontal in zip(table["AP/PA"], frontal, strict=True)
    ]
    return CheXpertTable(
        paths, values, np.array(frontal, dtype=bool), views, table["Age"].tolist(), table["Sex"].tolist()
    )


def label_values(table: pd.DataFrame, known: Mapping[str, int], kind: str) -> Values:
    """Return the values of the 14 columns as (rows, 14), in the order of FINDINGS."""
    values = [labels_of(table[finding].tolist(), known, kind, finding) for finding in FINDINGS]
    return np.array(values, dtype=np.int8).T.reshape(-1, len(FINDINGS))


def without_release(path: str) -> str:
    """Cut the release's name, CheXpert-v1.0 or CheXpert-v1.0-small, off a path, where there is one."""
    first, _, rest = path.strip().partition("/")
    return path.strip() if first in ("train", "valid", "test") else rest


def is_path(path: str, part: str) -> bool:
    """Tell whether a path, without the release's name, is one of CheXpert's and of this part."""
    found = _PATH.fullmatch(path)
    return found is not None and found[1] == part


def patient_of(path: str) -> str:
    """Return the patient of a path without the release's name."""
    return path.split("/")[1]


def blank_is_zero(values: Values) -> Values:
    """Return values with 0 for what is not mentioned."""
    return np.where(values == BLANK, 0, values).astype(np.int8)

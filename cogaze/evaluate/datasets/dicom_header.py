"""What the header of a benchmark's DICOM file says of size, view, age and sex."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from cogaze.evaluate.datasets.cells import age_years, sex_of
from cogaze.evaluate.datasets.folders import Notes
from gazeprep.schema import ImageRef, Size

_TAGS = ["Rows", "Columns", "ViewPosition", "PatientAge", "PatientSex"]
_UNREADABLE = (InvalidDicomError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Header:
    """Size (width, height) in px, view as PA or AP, "" without one, age and sex where they are known."""

    size: Size
    view: str
    age_years: int | None
    sex: str


def read_header(image: ImageRef, kind: str, notes: Notes) -> Header:
    """Read a header without pixels; raises ValueError, calling it `kind`, where the file is no DICOM file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ages without a unit, which these datasets have
            header = pydicom.dcmread(Path(image.root, image.path), stop_before_pixels=True, specific_tags=_TAGS)
            size = int(header.Columns), int(header.Rows)
            cells = [str(header.get(tag) or "") for tag in _TAGS[2:]]
    except _UNREADABLE as error:
        raise ValueError(
            f"{kind}: the header of its DICOM file cannot be read ({type(error).__name__}); download it again"
        ) from None
    view, age, sex = cells
    return Header(size, view.strip().upper(), age_years(age, notes), sex_of(sex, notes))

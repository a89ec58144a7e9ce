"""Readers: the only files that know a raw column name, file name or unit conversion."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from gazeprep.schema import Fixations
from gazeprep.sources import egd, reflacx, table


def load_fixations(path: str | Path, format: Literal["reflacx", "egd", "table"], **options: Any) -> Fixations:
    """Read the fixations of one reading from a file, in image px and seconds.

    format "reflacx": a REFLACX fixations.csv; "egd": an EGD-CXR fixations.csv, dicom_id=... names the image;
    "table": any csv or parquet, options as in sources.table.read_fixations (frame, image_size, columns, ...).
    Raises InputError (a ValueError) on a bad file, ValueError on an unknown format.
    """
    readers: dict[str, Callable[..., Fixations]] = {
        "reflacx": reflacx.read_fixations,
        "egd": egd.read_fixations,
        "table": table.read_fixations,
    }
    if format not in readers:
        raise ValueError(f"format {format!r} is unknown; choose one of {', '.join(map(repr, readers))}")
    return readers[format](Path(path), **options)

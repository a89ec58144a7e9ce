"""Readers: the only files that know a raw column name, file name or unit conversion."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from gazeprep.remote_paths import located
from gazeprep.schema import Fixations
from gazeprep.sources import egd, reflacx, table


def load_fixations(path: str | Path, format: Literal["reflacx", "egd", "table"], **options: Any) -> Fixations:
    """Read the fixations of one reading from a file or a URL, in image px and seconds.

    format "reflacx": a REFLACX fixations.csv; "egd": an EGD-CXR fixations.csv, dicom_id=... names the image;
    "table": any csv or parquet, options as in sources.table.read_fixations (frame, image_size, columns, ...).
    Raises InputError (a ValueError) on a bad file, ValueError on an unknown format or option.
    """
    readers: dict[str, Callable[..., Fixations]] = {
        "reflacx": reflacx.read_fixations,
        "egd": egd.read_fixations,
        "table": table.read_fixations,
    }
    if format not in readers:
        raise ValueError(f"format {format!r} is unknown; choose one of {', '.join(map(repr, readers))}")
    known = signature(readers[format]).parameters
    required = [name for name, one in known.items() if one.default is one.empty and name != "path"]
    if not set(required) <= set(options) <= set(known) - {"path"}:
        raise ValueError(
            f"format {format!r} takes the options {', '.join(list(known)[1:]) or 'none'}"
            + (f" and needs {', '.join(required)}" if required else "")
            + f"; given: {', '.join(options) or 'none'}"
        )
    return readers[format](located(path), **options)

"""Strict reading of source tables: every cell text, every missing column and bad number named with its place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gazeprep.schema import FloatArray, InputError

SYNTHETIC_MARK = "SYNTHETIC.json"


def read_table(
    path: Path, columns: Sequence[str], *, kind: str, optional: Sequence[str] = (), all_columns: bool = False
) -> pd.DataFrame:
    """Read a csv, csv.gz or parquet table with every cell as text, absent cells "".

    Returns the named columns and those of `optional` that are there, or all columns. `kind` names the file in
    errors, such as "REFLACX fixations.csv". Raises InputError where the file or a column is missing or the
    file cannot be parsed.
    """
    try:
        table = _read_raw(path)
    except FileNotFoundError:
        raise InputError("file_missing", f"{kind} is missing; check the folder against docs/data.md") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, EOFError, OSError) as error:
        raise InputError(
            "unreadable_table",
            f"{kind} cannot be read as a table ({type(error).__name__}); download it again",
        ) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(
            "wrong_columns",
            f"{kind} has no column {', '.join(map(repr, missing))}; it has {len(table.columns)}: "
            f"{', '.join(map(repr, table.columns[:20]))}. Check that this is the right file and release",
        )
    if all_columns:
        return table
    return table[[*columns, *(name for name in optional if name in table.columns)]]


def _read_raw(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        return table.astype(object).where(table.notna(), "").astype(str)
    return pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig")


def numbers(table: pd.DataFrame, column: str, *, kind: str, empty: float | None = None) -> FloatArray:
    """Return a text column as float64 (rows,); raises InputError naming row and column of a bad cell.

    Rows are counted from 1 below the header. `empty` stands for an empty cell; None makes it an error.
    """
    text = table[column]
    if empty is not None:
        text = text.where(text.str.strip() != "", str(empty))
    values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
    allowed = np.isfinite(values) | (empty is not None and text.to_numpy() == str(empty))
    bad = np.flatnonzero(~allowed)
    if len(bad):
        cell = text.iloc[bad[0]]
        shown = repr(cell) if len(cell) <= 12 and " " not in cell else f"{len(cell)} characters of text"
        what = "is empty" if not cell.strip() else f"is {shown}, not a finite number"
        raise InputError(
            "bad_number",
            f"{kind}, row {bad[0] + 1}, column {column!r} {what}; correct the cell or remove the row "
            f"({len(bad)} of {len(table)} rows)",
        )
    return values


def folder_is_synthetic(root: Path) -> bool:
    """Tell whether a source folder was written by gazeprep.synthetic, which marks every folder it writes."""
    return (root / SYNTHETIC_MARK).exists()

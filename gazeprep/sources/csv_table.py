"""Strict reading of source tables: every cell text, every missing column and bad number named with its place."""

import difflib
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gazeprep.schema import FloatArray, InputError
from gazeprep.sources.bounded import MAX_TABLE_BYTES, BoundedCsv, OutOfBoundsError, check_table_size

SYNTHETIC_MARK = "SYNTHETIC.json"
QUOTABLE = re.compile(r"[-+0-9.,:; %]{1,12}|[-+]?(nan|inf|infinity|none|null|na|n/a)", re.IGNORECASE)
# What pandas, pyarrow, gzip and the decoding of text raise on files that are no tables, or damaged ones.
UNREADABLE = (
    pd.errors.ParserError,
    pa.ArrowException,
    ValueError,  # and EmptyDataError, UnicodeDecodeError
    ArithmeticError,
    LookupError,
    TypeError,
    EOFError,
    MemoryError,
    OSError,
    zlib.error,
)


def read_table(
    path: Path, columns: Sequence[str], *, kind: str, optional: Sequence[str] = (), all_columns: bool = False
) -> pd.DataFrame:
    """Read a csv, csv.gz or parquet table with every cell as text, absent cells "".

    Returns the named columns and those of `optional` that are there, or all columns. `kind` names the file in
    errors, such as "REFLACX fixations.csv". Raises InputError where the file or a column is missing or the
    file cannot be parsed.
    """
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except FileNotFoundError:
        raise InputError("file_missing", f"{kind} is missing; check the folder against docs/data.md") from None
    except OutOfBoundsError as error:
        cure = "give the table itself, download it again, or split it"
        raise InputError("unreadable_table", f"{kind} {error}, which is refused; {cure}") from None
    except pd.errors.ParserWarning:
        raise InputError(
            "unreadable_table", f"{kind} has rows with more cells than its header; download it again"
        ) from None
    except UNREADABLE as error:
        raise InputError(
            "unreadable_table",
            f"{kind} cannot be read as a table ({type(error).__name__}); download it again",
        ) from None
    check_columns(table, columns, kind)
    if all_columns:
        return table
    return table[[*columns, *(name for name in optional if name in table.columns)]]


def read_tables(
    paths: Sequence[Path], columns: Sequence[str], *, kind: str, optional: Sequence[str] = (), all_columns: bool = False
) -> pd.DataFrame:
    """Read tables of one kind as one, as `read_table` does, in the order of the paths; no paths make no rows.

    Rows of several tables are numbered through; a cell of a column that its table lacks is "".
    """
    tables = [read_table(path, columns, kind=kind, optional=optional, all_columns=all_columns) for path in paths]
    if len(tables) == 1:
        return tables[0]
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns), dtype=str)
    return joined.fillna("")


def check_columns(table: pd.DataFrame, columns: Sequence[str], kind: str) -> None:
    """Raise InputError naming the columns that a table lacks."""
    missing = [name for name in columns if name not in table.columns]
    if not missing:
        return
    # Only near names are quoted: the "header" of a table without one holds ids or text.
    others = [str(name) for name in table.columns if name not in columns]
    near = sorted({name for wanted in missing for name in difflib.get_close_matches(wanted, others)})
    raise InputError(
        "wrong_columns",
        f"{kind} has no column {', '.join(map(repr, missing))} among its {len(table.columns)}"
        f"{', but has ' + ', '.join(map(repr, near)) if near else ''}. Check that this is the right file and "
        "release, and that its first line is the header",
    )


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open("rb") as file, _unpacked(file, path.suffix) as unpacked, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        text = io.TextIOWrapper(io.BufferedReader(BoundedCsv(unpacked), 2**16), encoding="utf-8-sig", newline="")
        # Without index_col pandas takes surplus cells for an index, and needs a minute for a row of 200,000.
        return pd.read_csv(text, dtype=str, keep_default_na=False, na_filter=False, index_col=False)


@contextmanager
def _unpacked(file: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix != ".gz":
        yield file
        return
    with gzip.GzipFile(fileobj=file) as unpacked:
        yield cast(BinaryIO, unpacked)


def _read_parquet(path: Path) -> pd.DataFrame:
    """Read every cell as text, dictionaries unfolded last: a cell of megabytes can stand in every row for nothing."""
    with path.open("rb") as file:
        facts = pq.read_metadata(file)
        check_table_size(facts.num_rows, facts.num_columns)
        if sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups)) > MAX_TABLE_BYTES:
            raise OutOfBoundsError(f"holds more than {MAX_TABLE_BYTES} bytes")
        texts = [column.name for column in facts.schema.to_arrow_schema() if _is_text(column.type)]
        table = pq.read_table(file, read_dictionary=texts).replace_schema_metadata(None)
    if sum(_unfolded_bytes(column) for column in table.columns) > MAX_TABLE_BYTES:
        raise OutOfBoundsError(f"holds more than {MAX_TABLE_BYTES} bytes")
    cells = table.to_pandas().astype(object)
    return cells.where(cells.notna(), "").astype(str)


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _unfolded_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column's texts with each repetition counted, 0 for other columns."""
    if not (pa.types.is_dictionary(column.type) and _is_text(column.type.value_type)):
        return 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(length.cast(pa.int64())).as_py() or 0 for length in lengths)


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
        shown = repr(cell) if QUOTABLE.fullmatch(cell) else f"{len(cell)} characters of text"
        what = "is empty" if not cell.strip() else f"is {shown}, not a finite number"
        raise InputError(
            "bad_number",
            f"{kind}, row {_row_number(table, int(bad[0]))}, column {column!r} {what}; correct the cell or remove "
            f"the row ({len(bad)} of {len(table)} rows)",
        )
    return values


def _row_number(table: pd.DataFrame, position: int) -> int:
    """Row counted from 1 below the header, also where `table` is a selection of rows that kept their index."""
    label = table.index[position]
    return 1 + int(label if pd.api.types.is_integer_dtype(table.index) else position)


def folder_is_synthetic(root: Path) -> bool:
    """Tell whether a source folder was written by gazeprep.synthetic, which marks every folder it writes."""
    return (root / SYNTHETIC_MARK).exists()


def bad_cell(kind: str, row: int, column: str, problem: str) -> InputError:
    """Return the error of one cell of a table; rows are counted from 1 below the header."""
    return InputError("bad_cell", f"{kind}, row {row}, column {column!r} {problem}; correct the cell")

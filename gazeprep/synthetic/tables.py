"""Writing the sources' csv dialects, and collecting rows that many subjects add to."""

import gzip
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

Row = Mapping[str, Any]


class Tables:
    """Rows by table name, in the order they came."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = defaultdict(list)

    def add(self, table: str, row: Row) -> None:
        """Append one row."""
        self.rows[table].append(row)

    def extend(self, other: "Tables") -> None:
        """Append all rows of another collection."""
        for table, rows in other.rows.items():
            self.rows[table] += rows

    def frame(self, table: str, columns: Iterable[str]) -> pd.DataFrame:
        """Return a table with exactly these columns, cells as they came."""
        names = list(columns)
        return pd.DataFrame([[row[name] for name in names] for row in self.rows[table]], columns=names, dtype=object)


def csv_bytes(frame: pd.DataFrame, line_end: str = "\n") -> bytes:
    """Return a table as csv: header row, no index, minimal quoting."""
    text = io.StringIO(newline="")
    frame.to_csv(text, index=False, lineterminator=line_end)
    return text.getvalue().encode()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, making its folders; a name ending in .gz is compressed, undated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 6, mtime=0) if path.suffix == ".gz" else data)


def write_json(path: Path, value: Any) -> None:
    """Write indented json with sorted keys."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

"""What a model's evaluation wrote as results.json, as tables of a page; json alone, without training code."""

import json
from pathlib import Path
from typing import Any

from gazeprep.summary import Table


def results_tables(path: Path) -> tuple[Table, ...]:
    """Lay each evaluator's figures out as a table: value, 95 % interval, what it has to beat, on how many.

    Raises ValueError where the file is no results.json of pipelines/evaluate.py.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        return tuple(_table(name, found) for name, found in results.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path.name} cannot be read as results ({type(error).__name__}); name the results.json that "
            "pipelines/evaluate.py wrote"
        ) from None


def _table(name: str, found: dict[str, Any]) -> Table:
    if "error" in found:
        return Table(name, ("not made",), [(str(found["error"]),)])
    figures = found["figures"]
    beside = list(dict.fromkeys(baseline for one in figures for baseline in one["baselines"]))
    rows: list[tuple[str | int, ...]] = []
    for one in figures:
        interval = "" if one["low"] is None else f"{_digits(one['low'])} to {_digits(one['high'])}"
        compared = [_digits(one["baselines"].get(baseline)) for baseline in beside]
        rows.append((str(one["name"]), _digits(one["value"]), interval, *compared, int(one["n"])))
    return Table(name, ("figure", "value", "95 % interval", *beside, "n"), rows)


def _digits(value: float | None) -> str:
    if value is None:
        return ""
    return (f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}").replace("-", "−")

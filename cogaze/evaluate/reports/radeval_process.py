"""One metric of radeval, in whatever environment has it: run by path, imports nothing of ours.

Reads {"metric", "references", "texts"} as json from stdin and answers with one json line on stdout: {"scores": {name: N
numbers}, "versions": {...}}, {"missing": why} where radeval or its weights cannot be loaded, {"failed": error's type}
where it stopped at the texts, which an answer never quotes.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Answer one question; what libraries print goes to stderr."""
    sys.path.pop(0)  # this folder, whose modules could be taken for others
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    question = json.loads(sys.stdin.buffer.read())
    json.dump(answered(question), answer)
    answer.close()


def answered(question: dict[str, Any]) -> dict[str, Any]:
    """Load the metric, then score."""
    try:
        metric = loaded(question["metric"])
    except ModuleNotFoundError as error:
        return {"missing": f"{error.name} is not installed", "module": error.name}
    except Exception as error:  # noqa: BLE001 - libraries raise all kinds before they have seen a text
        return {"missing": f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0][:200]}", "module": ""}
    try:
        scores = metric(refs=question["references"], hyps=question["texts"])
    except Exception as error:  # noqa: BLE001 - its text may quote a report
        return {"failed": type(error).__name__}
    kept = {name: [float(value) for value in values] for name, values in scores.items()}
    packages = ("radeval", "transformers", "torch")
    return {"scores": kept, "versions": {name: importlib.metadata.version(name) for name in packages}}


def loaded(metric: str) -> Callable[..., dict[str, list[float]]]:
    """Return radeval's metric, ready to score."""
    import radeval

    # Its radgraph imports itself as "RadEval", which is found where names of files have no case.
    sys.modules.setdefault("RadEval", radeval)
    score: Callable[..., dict[str, list[float]]] = radeval.RadEval(
        metrics=[metric], per_sample=True, show_progress=False
    )
    return score


if __name__ == "__main__":
    main()

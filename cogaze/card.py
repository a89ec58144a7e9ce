"""The model card: what a run learned from, how, and what came of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT = """---
library_name: transformers
tags: [chest-x-ray, eye-tracking, vision-language]
---

# {title}

Image and text encoders for chest radiographs, {about} ({paper}).
For research; not a medical device. {origin}

```python
from {module} import {model}

model = {model}.from_pretrained("this folder")
```

## Data

{data}

## Training

{course}

## Validation

{results}

## Versions

{versions}

## Configuration

```json
{config}
```
"""


@dataclass(frozen=True)
class Facts:
    """What a card tells: counts by split and name, the course in words and numbers, results, versions, config.

    method: title, about and paper in words, what it was trained on beside the data, and the model's class and module.
    """

    method: Mapping[str, str]
    data: Mapping[str, Mapping[str, int]]
    course: Mapping[str, Any]
    results: Mapping[str, float]
    versions: Mapping[str, str]
    config: Mapping[str, Any]


def model_card(facts: Facts) -> str:
    """Write a README in markdown."""
    columns = list(dict.fromkeys(name for counts in facts.data.values() for name in counts))
    rows = [[split, *(str(counts.get(name, 0)) for name in columns)] for split, counts in facts.data.items()]
    data = _table(["split", *columns], rows)
    results = {name: f"{value:.4f}" for name, value in facts.results.items()}
    return TEXT.format(
        **facts.method,
        data=data,
        course=_table(["", ""], [[name, str(value)] for name, value in facts.course.items()]),
        results=_table(["", ""], [list(pair) for pair in results.items()]) if results else "None was made.",
        versions=_table(["package", "version"], [list(pair) for pair in facts.versions.items()]),
        config=json.dumps(facts.config, indent=2, sort_keys=True),
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

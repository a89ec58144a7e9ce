"""What the figures of generated reports have to beat, texts that know nothing of the image, and what none exceeds."""

from collections import Counter
from dataclasses import replace

import numpy as np

from cogaze.evaluate.reports.scorers import Beside, Reports, Scored, Scorer
from cogaze.evaluate.results import Figure
from cogaze.evaluate.scores import Intervals


def with_baselines(scorer: Scorer, scored: Scored, reports: Reports, seed: int) -> list[Figure]:
    """Return a scorer's figures, each beside its value on the other texts that the scorer names."""
    others = {name: texts for name in scorer.beside if (texts := other_texts(name, reports, seed)) is not None}
    values = {
        name: {one.name: one.value for one in scorer.score(replace(reports, texts=texts), Intervals(0)).figures}
        for name, texts in others.items()
    }
    return [
        replace(
            one, baselines=dict(one.baselines) | {name: by[one.name] for name, by in values.items() if one.name in by}
        )
        for one in scored.figures
    ]


def other_texts(name: Beside, reports: Reports, seed: int) -> tuple[str, ...] | None:
    """Return the texts (N,) that a baseline says; None where one subject has more than half of the reports."""
    if name == "ceiling":
        return reports.references
    if name == "commonest":
        most = Counter(" ".join(one.split()).lower() for one in reports.references).most_common(1)[0][0]
        said = next(one for one in reports.references if " ".join(one.split()).lower() == most)
        return (said,) * len(reports)
    places = others_places(reports, seed)
    return None if places is None else tuple(reports.texts[place] for place in places)


def others_places(reports: Reports, seed: int) -> list[int] | None:
    """Permute N reports so that each meets one of another group; None where one group has more than half of them."""
    numbers = np.unique(reports.groups, return_inverse=True)[1]
    largest = int(np.bincount(numbers).max())
    if 2 * largest > len(reports):
        return None
    # Groups one after another, in random order: the report that comes `largest` places later is of another one.
    order = np.argsort(np.random.default_rng(seed).permutation(numbers.max() + 1)[numbers], kind="stable")
    places = np.empty(len(reports), dtype=np.int64)
    places[order] = np.roll(order, -largest)
    return [int(place) for place in places]

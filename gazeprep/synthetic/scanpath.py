"""Where a reader looks: at what is said about 1.5 s before it is said, elsewhere in between."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gazeprep.schema import BoolArray, FloatArray, Size
from gazeprep.synthetic.dictation import Dictation
from gazeprep.synthetic.display import BUTTONS, SCREEN_PX_PER_DEG, Placement, View, place

LEAD_S = 1.5
DISTRACTED = 0.12  # share of fixations elsewhere while something is said
NOISE_DEG = 0.3


@dataclass(frozen=True)
class Scene:
    """What can be looked at: an image's size and the masks of its targets, one cell a square of step_px."""

    size: Size
    step_px: int
    targets: dict[str, BoolArray]


@dataclass(frozen=True)
class Manner:
    """How one reader looks: typical fixation length, chance of zooming, of ending at the buttons, stray points."""

    median_s: float = 0.25
    zoom: float = 0.0
    buttons: float = 0.0
    strays: tuple[tuple[float, float], ...] = ()  # image points off the image, looked at early on


@dataclass(frozen=True, eq=False)
class Scanpath:
    """Fixations as columns (n,), in image px and s; the sentence each is meant for (-1 none); its view."""

    start_s: FloatArray
    end_s: FloatArray
    x_px: FloatArray
    y_px: FloatArray
    sentence: npt.NDArray[np.int64]
    view: npt.NDArray[np.int64]
    views: tuple[View, ...]
    dwells: tuple[tuple[float, float], ...]  # per sentence, when its targets were looked at


def look(rng: np.random.Generator, scene: Scene, dictation: Dictation, manner: Manner) -> Scanpath:
    """Look at a scene while dictating."""
    dwells = _dwells(rng, dictation)
    views = _views(rng, scene, dictation, dwells, manner)
    placements = [place(scene.size, view) for view in views]
    stop_s = dictation.end_s + rng.uniform(1.5, 3.0)  # so that some fixation follows the last word
    start, end = _clock(rng, manner.median_s, stop_s)
    view = np.searchsorted([v.start_s for v in views], start, side="right") - 1
    sentence = _intended(rng, dwells, start, end)
    finder = _Finder(rng, scene)
    points = np.zeros((len(start), 2))
    for i in range(len(start)):
        shown = placements[view[i]]
        if sentence[i] >= 0:
            points[i] = finder.at(dictation.sentences[sentence[i]].statement.targets, shown)
        else:
            points[i] = finder.elsewhere(shown)
    _stray(rng, points, sentence, start, dictation, manner)
    if rng.random() < manner.buttons:
        points[-3:] = [placements[view[-1]].to_image(*rng.uniform(BUTTONS[:2], BUTTONS[2:])) for _ in range(3)]
        sentence[-3:] = -1
    return Scanpath(start, end, points[:, 0], points[:, 1], sentence, view, views, dwells)


def _dwells(rng: np.random.Generator, dictation: Dictation) -> tuple[tuple[float, float], ...]:
    leads = np.clip(rng.normal(LEAD_S, 0.1, len(dictation.sentences)), 1.25, 1.75)
    spans = []
    previous = 0.0
    for spoken, lead in zip(dictation.sentences, leads, strict=True):
        begin = max(spoken.start_s - lead, previous)
        previous = spoken.end_s - lead
        spans.append((round(begin, 3), round(previous, 3)))
    return tuple(spans)


def _views(
    rng: np.random.Generator,
    scene: Scene,
    dictation: Dictation,
    dwells: tuple[tuple[float, float], ...],
    manner: Manner,
) -> tuple[View, ...]:
    views = [View()]
    if rng.random() >= manner.zoom:
        return tuple(views)
    for spoken, (begin, end) in zip(dictation.sentences, dwells, strict=True):
        if spoken.statement.finding is None and len(views) > 1:
            continue
        rows, columns = np.nonzero(scene.targets[spoken.statement.targets[0]])
        x, y = (columns.mean() + 0.5) * scene.step_px, (rows.mean() + 0.5) * scene.step_px
        pan = (float(x - scene.size[0] / 2), float(scene.size[1] / 2 - y))
        views += [View(begin, int(rng.choice([2, 3, 4, 6])), *pan), View(end)]
    return tuple(views)


def _clock(rng: np.random.Generator, median_s: float, stop_s: float) -> tuple[FloatArray, FloatArray]:
    count = int(stop_s / median_s * 1.5) + 20
    lengths = np.clip(rng.lognormal(np.log(median_s), 0.45, count), 0.08, 1.2)
    gaps = rng.uniform(0.02, 0.06, count)
    blinks = rng.random(count) < 0.03
    gaps[blinks] += rng.uniform(0.1, 0.3, int(blinks.sum()))
    start = rng.uniform(0.03, 0.1) + np.concatenate([[0.0], np.cumsum(lengths + gaps)[:-1]])
    start, end = np.round(start, 3), np.round(start + lengths, 3)
    keep = end < stop_s
    return start[keep], end[keep]


def _intended(
    rng: np.random.Generator, dwells: tuple[tuple[float, float], ...], start: FloatArray, end: FloatArray
) -> npt.NDArray[np.int64]:
    middle = (start + end) / 2
    sentence = np.full(len(start), -1, dtype=np.int64)
    for i, (first, last) in enumerate(dwells):
        sentence[(middle >= first) & (middle < last)] = i
    sentence[rng.random(len(start)) < DISTRACTED] = -1
    return sentence


class _Finder:
    """Draws points inside targets, in the part of the image that is shown."""

    def __init__(self, rng: np.random.Generator, scene: Scene) -> None:
        self.rng, self.scene = rng, scene
        self.cells = {name: np.argwhere(mask)[:, ::-1] for name, mask in scene.targets.items()}
        self.names = sorted(scene.targets)

    def at(self, targets: tuple[str, ...], placement: Placement) -> FloatArray:
        """A point in one of the targets, plus the tracker's noise."""
        cells = self.cells[targets[int(self.rng.integers(len(targets)))]]
        middle = (cells + 0.5) * self.scene.step_px
        seen = ((middle > placement.shown[:2]) & (middle < placement.shown[2:])).all(axis=1)
        cells = cells[seen] if seen.any() else cells
        if not len(cells):
            return self.elsewhere(placement)
        cell = cells[int(self.rng.integers(len(cells)))]
        noise = self.rng.normal(0, NOISE_DEG * SCREEN_PX_PER_DEG / placement.screen_px_per_px, 2)
        point: FloatArray = (cell + self.rng.random(2)) * self.scene.step_px - 0.5 + noise
        return np.clip(point, placement.shown[:2], placement.shown[2:] - 1)

    def elsewhere(self, placement: Placement) -> FloatArray:
        """A point in any region; one in four near the edge of what is shown when zoomed."""
        low, high = placement.shown[:2], placement.shown[2:]
        zoomed = bool((high - low < np.array(self.scene.size) - 1).any())
        if zoomed and self.rng.random() < 0.25:
            point = self.rng.uniform(low, high)
            point[0] = low[0] + 0.2 * SCREEN_PX_PER_DEG / placement.screen_px_per_px
            return point
        if zoomed:
            return self.rng.uniform(low, high)
        return self.at((self.names[int(self.rng.integers(len(self.names)))],), placement)


def _stray(
    rng: np.random.Generator,
    points: FloatArray,
    sentence: npt.NDArray[np.int64],
    start_s: FloatArray,
    dictation: Dictation,
    manner: Manner,
) -> None:
    """Move a few early fixations to points off the image."""
    silent = np.flatnonzero((start_s < dictation.tokens[0].start_s - 2) & (sentence < 0))
    for place_, stray in zip(silent[2::2], manner.strays, strict=False):
        points[place_] = stray

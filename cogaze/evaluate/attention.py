"""Where a model's texts look, against where readers looked and what they drew; both beside what needs no model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cogaze.evaluate.encoder import Encoder
from cogaze.evaluate.gaze import METRICS, Gazed, MapScores, next_of_same
from cogaze.evaluate.localise import HIT_IOU, LEAST_CERTAINTY, LEVELS, Case, Located, cases_of, prompt_of
from cogaze.evaluate.metrics import BoolArray, FloatArray
from cogaze.evaluate.processes import batches_of, rows_in_order
from cogaze.evaluate.readings import Reading, centre_map
from cogaze.evaluate.results import REPEATS, Figure, Found, mean_interval
from cogaze.evaluate.saliency import text_saliency
from gazeprep.maps import Grid

ATTENTION, GRAD_CAM, MEAN_GAZE, CENTRE, EVEN = "attention", "GradCAM", "mean gaze map", "centre", "even map"
ANOTHER_SENTENCE, OTHER_READERS, CEILING = "another sentence", "other readers", "ceiling"
HALF_COVERED = len(LEVELS) // 2  # the level at which a reader's own region points at a patch
Maps = dict[str, FloatArray]  # predictor -> (texts, P)


@dataclass(frozen=True, eq=False)
class Texts:
    """N texts, the number of each one's reading, and where that reader looked meanwhile (N, P)."""

    texts: list[str]
    reading: list[int]
    gaze: list[FloatArray]

    def looked_at(self, readings: Sequence[Reading], elsewhere: FloatArray) -> Gazed:
        """Return the gaze to be predicted; elsewhere (P,): that on other images."""
        return Gazed(
            gaze=np.array(self.gaze),
            shown=np.array([readings[number].canvas.patch_mask for number in self.reading]),
            subject=np.array([readings[number].subject for number in self.reading], dtype=np.float64),
            elsewhere=elsewhere,
        )


def sentences_of(readings: Sequence[Reading]) -> Texts:
    """List the spoken sentences with gaze on the picture."""
    found = Texts([], [], [])
    for number, reading in enumerate(readings):
        for text, gaze in zip(reading.sentences, reading.maps[1:], strict=True):
            _listed(found, text, number, gaze * reading.canvas.patch_mask)
    return found


def dictations_of(readings: Sequence[Reading]) -> Texts:
    """List the whole dictations, against the gaze of the whole readings."""
    found = Texts([], [], [])
    for number, reading in enumerate(readings):
        text = reading.transcript.strip() or " ".join(reading.sentences)
        _listed(found, text, number, reading.maps[0] * reading.canvas.patch_mask)
    return found


def _listed(found: Texts, text: str, reading: int, gaze: FloatArray) -> None:
    if text.strip() and gaze.sum() > 0:
        found.texts.append(text.strip())
        found.reading.append(reading)
        found.gaze.append(gaze)


def maps_of_texts(encoder: Encoder, readings: Sequence[Reading], texts: Sequence[str], reading: Sequence[int]) -> Maps:
    """Return attention and GradCAM (N, P) of texts to the images of their readings, in their order."""
    used = sorted(set(reading))
    own = [[row for row, one in enumerate(reading) if one == number] for number in used]
    canvases, order = [readings[number].canvas for number in used], [row for rows in own for row in rows]
    attention = np.concatenate(encoder.attention(canvases, [[texts[row] for row in rows] for rows in own]))
    vectors = encoder.texts(texts)

    def encode(batches: Sequence[range]) -> Iterator[dict[str, Tensor]]:
        for number in (one for batch in batches for one in batch):
            yield {"maps": text_saliency(encoder, canvases[number], vectors[own[number]])}

    moved = rows_in_order(batches_of(len(used), 1), encode)["maps"]
    back = np.argsort(order)
    return {ATTENTION: attention[back], GRAD_CAM: moved[back]}


def mean_gaze(gaze: Sequence[FloatArray]) -> FloatArray:
    """Mean (P,) of training gaze, each scaled to sum 1. Raises ValueError without any."""
    seen = [one / one.sum() for one in gaze if one.sum() > 0]
    if not seen:
        raise ValueError("the training split has no gaze to make a mean map of; build shards with some")
    return np.asarray(np.mean(seen, axis=0))


def gaze_figures(
    encoder: Encoder, held_out: Sequence[Reading], training: Sequence[Reading], *, repeats: int = REPEATS
) -> Found:
    """Hold attention against gaze: of each spoken sentence, and of the whole dictation against the whole reading.

    Beside it: GradCAM, the mean map of the training gaze, a Gaussian in the middle, an even map, and as ceiling the
    gaze itself; where there are several, another sentence of the same image and, of whole readings, the other
    readers. Intervals are over subjects. Raises ValueError where the held-out readings have no gaze.
    """
    grid = encoder.reader.grid
    figures: list[Figure] = []
    notes: dict[str, object] = {"readings": len(held_out), "images": len({one.image for one in held_out})}
    for scope, listed, beside in (("sentence", sentences_of, another_sentence), ("reading", dictations_of, by_others)):
        texts, average = listed(held_out), mean_gaze(listed(training).gaze)
        if not texts.texts:
            raise ValueError("the held-out readings have no gaze on their pictures; choose another split")
        gazed = texts.looked_at(held_out, average)
        maps = maps_of_texts(encoder, held_out, texts.texts, texts.reading) | still_maps(held_out, texts.reading, grid)
        maps |= {MEAN_GAZE: np.broadcast_to(average, gazed.gaze.shape), CEILING: gazed.gaze}
        name, other = beside(texts, held_out, maps[ATTENTION])
        several: BoolArray = np.asarray(~np.isnan(other).any(axis=1))
        if several.all():
            maps[name] = other
        figures += scope_figures(scope, gazed, maps, repeats)
        if several.any() and not several.all():
            chosen = {key: value[several] for key, value in maps.items()} | {name: other[several]}
            figures += scope_figures(f"{scope} with {name}", gazed[several], chosen, repeats)
        notes |= {f"texts ({scope})": len(texts.texts), f"of them with {name}": int(several.sum())}
    return Found(figures, notes)


def still_maps(readings: Sequence[Reading], reading: Sequence[int], grid: Grid) -> Maps:
    """Return what looks at every image alike (N, P): the middle of the picture, and everything."""
    centres = np.array([centre_map(readings[number].canvas.view, grid) for number in reading])
    return {CENTRE: centres, EVEN: np.ones_like(centres)}


def scope_figures(scope: str, gazed: Gazed, maps: Maps, repeats: int) -> list[Figure]:
    """Score each map against the gaze; a figure for each metric, the attention's, with the other maps beside it."""
    scores: dict[str, MapScores] = {name: gazed.scores(saliency) for name, saliency in maps.items()}
    figures = []
    for title, field in METRICS.items():
        value: FloatArray = getattr(scores[ATTENTION], field)
        beside = {name: float(getattr(one, field).mean()) for name, one in scores.items() if name != ATTENTION}
        interval = mean_interval(value, gazed.subject, repeats=repeats)
        figures.append(Figure.of(f"{title}, {scope}", value.mean(), interval, len(value), beside))
    return figures


def another_sentence(texts: Texts, _readings: Sequence[Reading], attention: FloatArray) -> tuple[str, FloatArray]:
    """Name it, and attention (N, P) to the next sentence of the same reading, after the last the first; NaN of one."""
    following = next_of_same(np.array(texts.reading, dtype=np.float64))
    return ANOTHER_SENTENCE, np.where((following >= 0)[:, None], attention[following], np.nan)


def by_others(texts: Texts, readings: Sequence[Reading], _attention: FloatArray) -> tuple[str, FloatArray]:
    """Name them, and gaze (N, P) of the other readings of the same image together; NaN where there is none."""
    image = np.array([readings[number].image for number in texts.reading])
    gaze = np.array(texts.gaze)
    others = np.array([gaze[image == one].sum(axis=0) for one in image]) - gaze
    alone = np.array([(image == one).sum() == 1 for one in image])
    return OTHER_READERS, np.where(alone[:, None], np.nan, np.maximum(others, 0.0))  # rounding leaves -1e-17


# --- against what was drawn


@dataclass(frozen=True, eq=False)
class Sought:
    """N cases with the text that seeks each and the maps (N, P) that may have found it."""

    cases: list[Case]
    located: Located
    maps: Maps

    def iou(self, name: str) -> FloatArray:
        """Return the IoU (N, T) of a map at each of LEVELS."""
        return self.located.iou(self.maps[name])

    def __getitem__(self, rows: BoolArray) -> "Sought":
        chosen = [case for case, keep in zip(self.cases, rows, strict=True) if keep]
        return Sought(chosen, self.located[rows], {name: one[rows] for name, one in self.maps.items()})


@dataclass(frozen=True)
class HeldOut:
    """Readings by what they may be used for: test is judged, validate chooses levels, train gives the mean map."""

    test: Sequence[Reading]
    validate: Sequence[Reading]
    train: Sequence[Reading]


def localisation_figures(
    encoder: Encoder, readings: HeldOut, *, least_certainty: int = LEAST_CERTAINTY, repeats: int = REPEATS
) -> Found:
    """Hold attention against ellipses of findings and boxes of parts of the body.

    Texts are prompts, and the sentences in which the readers named what they drew. Beside it: GradCAM, the mean map of
    the training gaze, a Gaussian in the middle, an even map (whose pointing and IoU are the region's share of the
    picture), as ceiling the region itself on the patches, and, where there are several, what the other readers of the
    image drew of the same label. The level from which on a map points at a patch is each map's best on validate.
    """
    figures: list[Figure] = []
    notes: dict[str, object] = {"least certainty": least_certainty}
    average = mean_gaze([one.maps[0] * one.canvas.patch_mask for one in readings.train])
    for shape, what in (("ellipse", "findings"), ("box", "parts of the body")):
        for by in ("prompt", "sentence"):
            scope = f"{what} by {by}"
            test, validate = (
                sought(encoder, part, [case for case in cases_of(part, least_certainty) if case.shape == shape], by)
                for part in (readings.test, readings.validate)
            )
            notes[f"cases ({scope})"] = len(test.cases)
            if test.cases:
                for part in (test, validate):
                    part.maps[MEAN_GAZE] = np.broadcast_to(average, part.located.covered.shape)
                levels = {name: best_level(validate, name) for name in test.maps}
                notes[f"level of the attention ({scope})"] = float(LEVELS[levels[ATTENTION]])
                figures += place_figures(scope, test, levels, repeats)
                several = test[np.asarray(~np.isnan(drawn_by_others(test, readings.test)).any(axis=1))]
                if several.cases:
                    several.maps[OTHER_READERS] = drawn_by_others(several, readings.test)
                    scope = f"{scope} with {OTHER_READERS}"
                    figures += place_figures(scope, several, levels | {OTHER_READERS: HALF_COVERED}, repeats)
                    notes[f"cases ({scope})"] = len(several.cases)
    if not figures:
        raise ValueError("nothing was drawn on the held-out readings; choose another split")
    return Found(figures, notes)


def sought(encoder: Encoder, readings: Sequence[Reading], cases: Sequence[Case], by: str) -> Sought:
    """Let prompts, or sentences where they name the label, seek the cases that lie on the canvas."""
    grid = encoder.reader.grid
    seen = [case for case in cases if by == "prompt" or case.sentence]
    drawn = Located.of(seen, readings, grid)
    on_canvas = (drawn.covered * drawn.shown).sum(axis=1) > 0
    kept = [case for case, keep in zip(seen, on_canvas, strict=True) if keep]
    located = drawn[on_canvas]
    if not kept:
        return Sought([], located, {})
    reading = [case.reading for case in kept]
    texts = [prompt_of(case.label) if by == "prompt" else case.sentence for case in kept]
    maps = maps_of_texts(encoder, readings, texts, reading) | still_maps(readings, reading, grid)
    return Sought(kept, located, maps | {CEILING: located.covered})


def best_level(validate: Sought, name: str) -> int:
    """Return the number of the level with the highest mean IoU; the middle one where validate has no case."""
    return int(validate.iou(name).mean(axis=0).argmax()) if validate.cases else len(LEVELS) // 2


def place_figures(scope: str, test: Sought, levels: dict[str, int], repeats: int) -> list[Figure]:
    """Score each map; a figure for each metric, the attention's, with the other maps beside it."""
    columns: dict[str, dict[str, FloatArray]] = {}
    for name, saliency in test.maps.items():
        iou = test.iou(name)
        best = iou[:, levels[name]]
        columns[name] = {
            "pointing game": test.located.pointing(saliency),
            "AUC": test.located.auc(saliency),
            "IoU": best,
            "mean IoU over levels": iou.mean(axis=1),
            **{f"IoU of at least {least}": (best >= least).astype(np.float64) for least in HIT_IOU},
        }
    figures = []
    for title, value in columns[ATTENTION].items():
        known = ~np.isnan(value)  # an AUC needs patches within and beside, which no map decides
        beside = {name: float(one[title][known].mean()) for name, one in columns.items() if name != ATTENTION}
        interval = mean_interval(value[known], test.located.subject[known], repeats=repeats)
        figures.append(Figure.of(f"{title}, {scope}", value[known].mean(), interval, int(known.sum()), beside))
    return figures


def drawn_by_others(test: Sought, readings: Sequence[Reading]) -> FloatArray:
    """Return what the other readers of an image drew of the same label (N, P), their mean; NaN without one."""
    mark = np.array([(readings[case.reading].image, case.label) for case in test.cases], dtype=object)
    found = np.full(test.located.covered.shape, np.nan)
    for row, own in enumerate(mark):
        same = (mark == own).all(axis=1)
        same[row] = False
        if same.any():
            found[row] = test.located.covered[same].mean(axis=0)
    return found

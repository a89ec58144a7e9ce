"""Do readers of one image look at the same places, more than at those where every image is looked at?

Of each image that was read more than once, each reading is held against the pooled map of its other readings, and
against what does not know this image's other readers: PREDICTORS. Grids and maps are those that the build stored.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from gazeprep.metrics import (
    FloatArray,
    Hits,
    Shape,
    auc_judd,
    auc_shuffled,
    cc,
    hits_of,
    hits_of_map,
    information_gain,
    kl,
    nss,
    sim,
)
from gazeprep.shards import ShardFolder, read_npy, read_npz

Predictor = Literal["other readers", "another image", "all other images", "centre Gaussian"]

PREDICTORS: tuple[Predictor, ...] = ("other readers", "another image", "all other images", "centre Gaussian")
CENTRE_SIGMA = 0.25  # of width and height
UNIFORM_SHARE = 0.01  # of a predictor, so that no cell is impossible to it: KL and information gain need that


@dataclass(frozen=True)
class Scores:
    """How well one map predicts one reading; all but kl are higher where it does better.

    nss: standard deviations. auc_judd: against all cells, all thresholds. auc_shuffled: against the fixations on all
    other images. kl: nats. information_gain: bits per fixation more than the mean map of all other images.
    """

    nss: float
    auc_judd: float
    auc_shuffled: float
    cc: float
    sim: float
    kl: float
    information_gain: float


SCORE_TITLES = {
    "nss": "NSS",
    "auc_judd": "AUC-Judd",
    "auc_shuffled": "shuffled AUC",
    "cc": "CC",
    "sim": "SIM",
    "kl": "KL (nats)",
    "information_gain": "gain (bits)",
}


@dataclass(frozen=True)
class AgreementRow:
    """One reading against one predictor.

    key: the reading's sample. image: number of its image, from 0. readers: readings of that image. fixations: those
    on the image, which count; off_image: those beside it, which do not.
    """

    key: str
    dataset: str
    image: int
    readers: int
    fixations: int
    off_image: int
    predictor: Predictor
    scores: Scores


@dataclass(frozen=True)
class PredictorScores:
    """A predictor over all images: mean of the images' means; standard error over images, None with but one image."""

    predictor: Predictor
    images: int
    mean: Scores
    standard_error: Scores | None


@dataclass(frozen=True)
class ReaderAgreement:
    """Agreement in a folder: a row for each reading and predictor, and readings left out by reason."""

    rows: tuple[AgreementRow, ...]
    left_out: dict[str, int]

    @property
    def images(self) -> int:
        """Count the images with several readings."""
        return len({row.image for row in self.rows})

    @property
    def readings(self) -> int:
        """Count the readings of these images."""
        return len({row.key for row in self.rows})

    def table(self) -> tuple[PredictorScores, ...]:
        """Return the scores of each predictor, in the order of PREDICTORS; empty without rows."""
        found = ([row for row in self.rows if row.predictor == predictor] for predictor in PREDICTORS)
        return tuple(_over_images(rows) for rows in found if rows)


@dataclass(frozen=True, eq=False)
class _Reading:
    """One reading: gaze_map (rows, cols) of sum 1, and the cells that its fixations on the image hit."""

    key: str
    gaze_map: FloatArray
    hits: Hits
    off_image: int


@dataclass(frozen=True, eq=False)
class _Pool:
    """Readings together: their maps summed, their fixations counted, both (rows, cols)."""

    gaze_map: FloatArray
    counts: FloatArray

    @classmethod
    def of(cls, readings: Sequence[_Reading]) -> Self:
        """Put readings of one grid together; at least one."""
        gaze_map = np.sum([reading.gaze_map for reading in readings], axis=0)
        counts = np.zeros(gaze_map.shape)
        for reading in readings:
            np.add.at(counts, (reading.hits.row, reading.hits.col), 1.0)
        return cls(gaze_map, counts)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.gaze_map + other.gaze_map, self.counts + other.counts)

    def __sub__(self, other: Self) -> Self:
        rest = np.maximum(self.gaze_map - other.gaze_map, 0.0)  # rounding leaves -1e-17
        return type(self)(rest, self.counts - other.counts)


@dataclass(frozen=True, eq=False)
class _Dataset:
    """What was read of a dataset: readings of each image with several, and all readings of all images together."""

    name: str
    several: list[list[_Reading]]
    everything: _Pool


def reader_agreement(folder: ShardFolder | Path | str) -> ReaderAgreement:
    """Score the readings of every image that a finished build holds several readings of, dataset by dataset.

    Raises ValueError where the folder is no finished build.
    """
    shards = folder if isinstance(folder, ShardFolder) else ShardFolder(folder)
    rows: list[AgreementRow] = []
    left_out: Counter[str] = Counter()
    for name, samples in shards.index[shards.index["has_gaze"]].groupby("dataset"):
        images = [list(image["key"]) for _, image in samples.groupby("dicom", sort=False)]
        if max(map(len, images)) > 1:
            dataset = _read(shards, str(name), images, left_out)
            rows += _rows(dataset, len({row.image for row in rows}), left_out)
    return ReaderAgreement(tuple(rows), dict(left_out))


def lines(agreement: ReaderAgreement) -> list[str]:
    """Write the table as lines of text: a predictor each, with the standard error over images where there is one."""
    table = agreement.table()
    if not table:
        said = ["no image has several readings with gaze"]
    else:
        said = [f"{agreement.images} images with several readings, {agreement.readings} readings; mean over images"]
        said += [_aligned("predicted by", list(SCORE_TITLES.values()))]
        said += [_aligned(one.predictor, [_with_error(one, name) for name in SCORE_TITLES]) for one in table]
    return said + [f"left out: {count} readings, {reason}" for reason, count in agreement.left_out.items()]


def _aligned(first: str, rest: Sequence[str]) -> str:
    return f"{first:18}" + "".join(f"{text:>16}" for text in rest)


def _with_error(scores: PredictorScores, name: str) -> str:
    error = scores.standard_error
    return f"{getattr(scores.mean, name):.3f}" + (f" ± {getattr(error, name):.3f}" if error is not None else "")


def centre_gaussian(shape: Shape) -> FloatArray:
    """Map (rows, cols) of sum 1: a Gaussian in the middle of the image, sigma a quarter of its width and height."""
    row, col = (np.exp(-0.5 * (((np.arange(n) + 0.5) / n - 0.5) / CENTRE_SIGMA) ** 2) for n in shape)
    return np.asarray(np.outer(row, col) / (row.sum() * col.sum()))


def _read(shards: ShardFolder, name: str, images: Sequence[Sequence[str]], left_out: Counter[str]) -> _Dataset:
    several: list[list[_Reading]] = []
    everything: _Pool | None = None
    for keys in images:
        found = [_reading(shards, key) for key in keys]
        readings = [reading for reading in found if len(reading.hits)]
        if len(found) > 1 and len(readings) < len(found):
            left_out["no fixation on the image"] += len(found) - len(readings)
        if readings:
            pool = _Pool.of(readings)
            everything = pool if everything is None else everything + pool
        if len(readings) > 1:
            several.append(readings)
    assert everything is not None
    return _Dataset(name, several, everything)


def _reading(shards: ShardFolder, key: str) -> _Reading:
    gaze, record = read_npz(shards.member(key, "gaze")), json.loads(shards.member(key, "json"))
    gaze_map = read_npy(shards.member(key, "maps"))[0].astype(np.float64)
    image = (0.0, 0.0, float(record["image_width_px"]), float(record["image_height_px"]))
    hits = hits_of(gaze["x_px"], gaze["y_px"], gaze_map.shape, image, off_map="drop")
    return _Reading(key, gaze_map, hits, len(gaze["x_px"]) - len(hits))


def _rows(dataset: _Dataset, first_image: int, left_out: Counter[str]) -> Iterator[AgreementRow]:
    for number, readings in enumerate(dataset.several):
        elsewhere = dataset.everything - _Pool.of(readings)
        if not elsewhere.counts.any():
            left_out["no other image to compare with"] += len(readings)
            continue
        following = dataset.several[(number + 1) % len(dataset.several)]
        for reading in readings:
            for predictor, saliency in _predictions(reading, readings, following, elsewhere).items():
                yield AgreementRow(
                    key=reading.key,
                    dataset=dataset.name,
                    image=first_image + number,
                    readers=len(readings),
                    fixations=len(reading.hits),
                    off_image=reading.off_image,
                    predictor=predictor,
                    scores=_scores(saliency, reading, elsewhere),
                )


def _predictions(
    reading: _Reading, readings: Sequence[_Reading], following: Sequence[_Reading], elsewhere: _Pool
) -> dict[Predictor, FloatArray]:
    """Maps (rows, cols) that predict a reading; another image is pooled over as many readers as there are others."""
    others = [one.gaze_map for one in readings if one is not reading]
    found: dict[Predictor, FloatArray] = {"other readers": np.sum(others, axis=0)}
    if following is not readings:
        found["another image"] = np.sum([one.gaze_map for one in following[: len(others)]], axis=0)
    found["all other images"] = elsewhere.gaze_map
    found["centre Gaussian"] = centre_gaussian(reading.gaze_map.shape)
    return found


def _scores(saliency: FloatArray, reading: _Reading, elsewhere: _Pool) -> Scores:
    possible, baseline = (_with_uniform(one) for one in (saliency, elsewhere.gaze_map))
    return Scores(
        nss=nss(saliency, reading.hits),
        auc_judd=auc_judd(saliency, reading.hits, negatives="all", thresholds="all"),
        auc_shuffled=auc_shuffled(saliency, reading.hits, hits_of_map(elsewhere.counts)),
        cc=cc(saliency, reading.gaze_map),
        sim=sim(saliency, reading.gaze_map),
        kl=kl(possible, reading.gaze_map),
        information_gain=information_gain(possible, baseline, reading.hits),
    )


def _with_uniform(gaze_map: FloatArray) -> FloatArray:
    """Mix a share of the uniform map into a map (rows, cols)."""
    return np.asarray((1 - UNIFORM_SHARE) * gaze_map / gaze_map.sum() + UNIFORM_SHARE / gaze_map.size)


def _over_images(rows: Sequence[AgreementRow]) -> PredictorScores:
    names = list(asdict(rows[0].scores))
    values = np.array([[getattr(row.scores, name) for name in names] for row in rows])
    image = np.array([row.image for row in rows])
    means = np.array([values[image == number].mean(axis=0) for number in np.unique(image)])
    error = None
    if len(means) > 1:
        error = Scores(*(means.std(axis=0, ddof=1) / np.sqrt(len(means))).tolist())
    return PredictorScores(rows[0].predictor, len(means), Scores(*means.mean(axis=0).tolist()), error)

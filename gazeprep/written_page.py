"""The page's section about generated reports: figures, then the best and the worst studies with what was looked at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gazeprep.images import GrayImage, decode
from gazeprep.pictures import Picture, map_over, map_picture, shrunk, webp, where_most
from gazeprep.results import results_tables
from gazeprep.schema import Word
from gazeprep.shards import LoadedSample, ShardFolder
from gazeprep.summary import Table, figure
from gazeprep.transcripts import split_phrases
from gazeprep.written import (
    MARKED_BY,
    RESULTS,
    Chosen,
    Finding,
    Piece,
    Said,
    Scores,
    Verdict,
    Written,
    choose,
    peak_over_even,
    read_scores,
    read_written,
    said_in,
)

PICTURE_PX = 272  # the long side
MOST_SENTENCES = 16  # of one report, whose attention is drawn
MOST_SCORES = 8  # of one study, at once
CONTEXT = ("indication", "history")
PRIOR_SECTIONS = ("prior_findings", "prior_impression", "prior_last_paragraph")  # where the build asked for them
LONG_CHARACTERS = 400  # of an earlier study's report: more are shown when asked for
STATES = {"positive": "present", "negative": "absent", "uncertain": "uncertain"}
SIGNS: Mapping[Verdict, str] = {"match": "=", "contradiction": "≠", "alone": "○"}
MEANINGS: Mapping[Verdict, str] = {
    "match": "the other report says the same",
    "contradiction": "one report has the finding, the other denies it",
    "alone": "the other report does not speak of it, or one of both is not certain",
}


@dataclass(frozen=True)
class WrittenConfig:
    """Which generated reports a page shows.

    generated: a folder of pipelines/generate.py. scores: one of pipelines/score.py about it; without it the first
    studies by key are shown. by: the score by which studies are chosen, "" for a usual one. studies: how many of the
    best and of the worst.
    """

    generated: Path
    scores: Path | None = None
    by: str = ""
    studies: int = 3

    def __post_init__(self) -> None:
        if self.studies < 0:
            raise ValueError(f"--studies is {self.studies}, must be 0 or more")
        if self.by and self.scores is None:
            raise ValueError("--by names a score: give the folder of scores too (--scores)")


@dataclass(frozen=True)
class Chip:
    """A finding as it is shown: the verdict's sign and name stand beside the label, so that no colour is needed."""

    label: str
    state: str
    verdict: Verdict
    sign: str


@dataclass(frozen=True)
class Line:
    """A sentence of a report, "" when redacted."""

    number: int
    text: str
    chips: tuple[Chip, ...]


@dataclass(frozen=True)
class Gaze:
    """The map of a whole reading of the study's image, and of how many readings with gaze it is one."""

    picture: Picture
    where: str
    says: str


@dataclass(frozen=True)
class Attention:
    """Where a generated sentence looks: the numbers of the lines that say it, () of none; its brightest cell."""

    numbers: tuple[int, ...]
    text: str
    picture: Picture
    where: str
    peak: str


@dataclass(frozen=True)
class Earlier:
    """What the report of the patient's last study before said, section by section, and when it was."""

    when: str
    texts: tuple[tuple[str, str], ...]

    @property
    def is_long(self) -> bool:
        """Whether it takes more room than a context should."""
        return sum(len(text) for _, text in self.texts) > LONG_CHARACTERS


@dataclass(frozen=True)
class StudyView:
    """A study as the page shows it; the first of its scores is the one that it was chosen by.

    reference, text: the sentences of the written and the generated report, () where there is none. notes: what is not
    shown of its attention.
    """

    key: str
    facts: tuple[tuple[str, str], ...]
    scores: tuple[tuple[str, str], ...]
    context: tuple[tuple[str, str], ...]
    earlier: Earlier | None
    reference: tuple[Line, ...]
    text: tuple[Line, ...]
    image: Picture
    gaze: Gaze | None
    attention: tuple[Attention, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Studies under one heading."""

    title: str
    studies: tuple[StudyView, ...]


@dataclass(frozen=True)
class Section:
    """What the page shows of generated reports.

    says: how many there are and which are shown. legend: the sign of each verdict and what it means, by verdict; empty
    without marks. labels: what named the findings. most_scores: of a study, at once.
    """

    tables: tuple[Table, ...]
    says: str
    legend: Mapping[Verdict, tuple[str, str]]
    groups: tuple[Group, ...]
    labels: str = MARKED_BY
    most_scores: int = MOST_SCORES


@dataclass(frozen=True, eq=False)
class _Shown:
    """What the views of studies are made of."""

    folder: ShardFolder
    reports: Mapping[str, Written]
    scores: Scores | None
    redact: bool


def written_section(folder: ShardFolder, config: WrittenConfig, redact: bool) -> Section:
    """Read generated reports and their scores, and gather what the page shows of them.

    Raises ValueError as `read_written`, `read_scores` and `choose` do.
    """
    reports = read_written(config.generated, folder.index.index)
    if config.scores is None:
        shown = _Shown(folder, reports, None, redact)
        group = _group(shown, "The first by key", sorted(reports)[: 2 * config.studies], "")
        return Section((), f"{len(reports):,} generated reports, not scored.", {}, group)
    scores = read_scores(config.scores, config.generated, reports)
    shown = _Shown(folder, reports, scores, redact)
    chosen = choose(scores.table, config.by, config.studies)
    return Section(
        tables=results_tables(config.scores / RESULTS),
        says=_says(chosen, len(reports)),
        legend={verdict: (SIGNS[verdict], says) for verdict, says in MEANINGS.items()} if scores.marks else {},
        groups=(
            *_group(shown, f"Best by {chosen.by}", chosen.best, chosen.by),
            *_group(shown, f"Worst by {chosen.by}", chosen.worst, chosen.by),
        ),
    )


def _says(chosen: Chosen, count: int) -> str:
    says = f"{count:,} generated reports; shown are the best and the worst by {chosen.by}."
    return (
        f"{says} {chosen.without:,} have no such score, such as those without a reference." if chosen.without else says
    )


def _group(shown: _Shown, title: str, keys: Sequence[str], by: str) -> tuple[Group, ...]:
    return (Group(title, tuple(_study_view(shown, key, by) for key in keys)),) if keys else ()


def _study_view(shown: _Shown, key: str, by: str) -> StudyView:
    sample, written = shown.folder.sample(key), shown.reports[key]
    image = shrunk(decode(sample.image), PICTURE_PX)
    marks = shown.scores.marks.get(key) if shown.scores is not None else None
    pieces = marks.text if marks is not None else _pieces(written.text)
    said = said_in([piece.text for piece in pieces], written.looked)
    return StudyView(
        key=key,
        facts=(("source", sample.record["dataset"]), ("split", sample.record["split"])),
        scores=_scores(shown.scores, key, by),
        context=() if shown.redact else _context(sample.record),
        earlier=None if shown.redact else _earlier(sample.record),
        reference=_lines(marks.reference if marks is not None else _pieces(written.reference), shown.redact),
        text=_lines(pieces, shown.redact),
        image=webp(image),
        gaze=_gaze(shown.folder, sample),
        attention=tuple(_attention(sample, image, said[:MOST_SENTENCES], shown.redact)),
        notes=_notes(said, len(pieces)),
    )


def _pieces(text: str) -> tuple[Piece, ...]:
    """Split a report that nobody marked as the model's attention was: what holds no letter goes."""
    phrases = split_phrases((Word(text, 0.0, 0.0),))
    return tuple(Piece(phrase.text) for phrase in phrases if any(character.isalpha() for character in phrase.text))


def _lines(pieces: Sequence[Piece], redact: bool) -> tuple[Line, ...]:
    return tuple(
        Line(number, "" if redact else piece.text, tuple(_chip(finding) for finding in piece.findings))
        for number, piece in enumerate(pieces, 1)
    )


def _chip(finding: Finding) -> Chip:
    return Chip(finding.label, STATES[finding.status], finding.verdict, SIGNS[finding.verdict])


def _context(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, record[name]) for name in CONTEXT if record[name])


def _earlier(record: Mapping[str, Any]) -> Earlier | None:
    """Return what the shards tell of an earlier study; None where they tell nothing."""
    names = [name for name in PRIOR_SECTIONS if record.get(name)]
    if not names:
        return None
    texts = tuple((name.removeprefix("prior_").replace("_", " "), record[name]) for name in names)
    return Earlier(f"{figure(record['prior_days'])} days before", texts)


def _scores(scores: Scores | None, key: str, by: str) -> tuple[tuple[str, str], ...]:
    if scores is None:
        return ()
    own = scores.table.loc[key].dropna()
    names = [by, *(name for name in own.index if name != by)]
    return tuple((name, f"{own[name]:.3f}".replace("-", "−")) for name in names)


def _gaze(folder: ShardFolder, sample: LoadedSample) -> Gaze | None:
    """Return the map of the sample's own reading, else of the first by key of its image; None where none has gaze."""
    rows = folder.index
    same_image = rows["dicom"] == rows.loc[sample.key, "dicom"]
    keys = sorted(rows[same_image & rows["has_gaze"]]["key"])
    if not keys:
        return None
    key = sample.key if sample.key in keys else keys[0]
    reading = sample if key == sample.key else folder.sample(key)
    picture = map_picture(shrunk(decode(reading.image), PICTURE_PX), reading, 0)
    says = f"one of {len(keys)} readings" if len(keys) > 1 else "whole reading"
    return Gaze(picture, where_most(reading.maps[0]), says)


def _attention(sample: LoadedSample, image: GrayImage, said: Sequence[Said], redact: bool) -> Iterator[Attention]:
    """Draw where sentences look."""
    grid = sample.maps.shape[1:]
    for one in said:
        mass = one.looked.mass
        if mass.shape != grid:
            raise ValueError(
                f"the attention of {sample.key} does not lie on the {grid[0]} x {grid[1]} grid of its maps; generate "
                "the reports again on these shards"
            )
        yield Attention(
            one.numbers,
            "" if redact else one.looked.sentence,
            map_over(image, sample.record, mass),
            where_most(mass),
            f"{peak_over_even(mass):.0f}",
        )


def _notes(said: Sequence[Said], lines: int) -> tuple[str, ...]:
    """Say of which of a report's lines no attention is shown, and why."""
    if not lines:
        return ()
    if not said:
        return ("Where its sentences look was not kept.",)
    shown = {number for one in said[:MOST_SENTENCES] for number in one.numbers}
    hidden = {number for one in said[MOST_SENTENCES:] for number in one.numbers} - shown
    lacking = [str(number) for number in range(1, lines + 1) if number not in shown | hidden]
    notes = []
    if len(said) > MOST_SENTENCES:
        notes.append(f"The attention of {len(said) - MOST_SENTENCES} more sentences is not shown.")
    if lacking:
        notes.append(f"Without attention of their own: sentences {', '.join(lacking)}.")
    return tuple(notes)

"""One page about a folder of shards: counts, distributions, a few cases as pictures. Needs gazeprep[report]."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from gazeprep.agreement import SCORE_TITLES, PredictorScores, ReaderAgreement, reader_agreement
from gazeprep.images import decode
from gazeprep.known_answer import known_answer
from gazeprep.pictures import Fixation, Picture, bare_map, fixations_drawn, map_picture, shrunk, webp, where_most
from gazeprep.results import results_tables
from gazeprep.scanpath_agreement import SIMILARITIES, ComparisonScores, ScanpathAgreement, scanpath_agreement
from gazeprep.shards import LoadedSample, ShardFolder
from gazeprep.stores import appearing_whole, remove_abandoned
from gazeprep.summary import Distribution, Histogram, Table, choose_cases, figure, marked, summarize
from gazeprep.written_page import PRIOR_SECTIONS, WrittenConfig, written_section

LARGE_PX, SMALL_PX = 480, 272  # long sides of a case's pictures and of its sentences' ones
MOST_SENTENCES, MOST_FIXATIONS = 16, 400  # shown of one case, so that the page's size is bounded
SECTIONS = ("indication", "history", "comparison", "technique", "findings", "impression", "last_paragraph")
TIMES = ("sentence_start", "sentence_end", "window_start")
MOST_FIGURES = 8  # of an evaluator, at once
TICKS = 6  # about, on a time axis
ROUND_STEPS_S = (0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True)
class ReportConfig:
    """What a report shows: how many cases; `redact` leaves out text, source ids and the folder's name.

    truth: the folder of the synthetic corpus that the shards were built from, to compare them with its known answer.
    results: the results.json of a model that was evaluated on the shards. written: reports that a model wrote of them.
    """

    cases: int = 12
    redact: bool = False
    truth: Path | None = None
    results: Path | None = None
    written: WrittenConfig | None = None

    def __post_init__(self) -> None:
        if self.cases < 0:
            raise ValueError(f"--cases is {self.cases}, must be 0 or more")


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its place and size in hundredths of the chart, and what it says."""

    left: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Chart:
    """A histogram as bars, the labels along its axis, and what it shows in words."""

    distribution: Distribution
    bars: tuple[Bar, ...]
    labels: tuple[str, str]
    tallest: int
    says: str


@dataclass(frozen=True)
class Tick:
    """A labelled place on a time axis, in hundredths."""

    left: float
    label: str


@dataclass(frozen=True)
class SentenceView:
    """A sentence of a case: its number from 1, text ("" when redacted), times in s, map, and where it is brightest."""

    number: int
    text: str
    start_s: float
    end_s: float
    window_s: float
    left: float
    width: float
    lead: float
    picture: Picture
    where: str


@dataclass(frozen=True)
class MeanMap:
    """The mean map of a dataset's readings, and the ninth where it is brightest."""

    dataset: str
    picture: Picture
    where: str


@dataclass(frozen=True)
class CaseView:
    """A case as the page shows it."""

    key: str
    facts: tuple[tuple[str, str], ...]
    image: Picture
    whole: Picture | None
    where: str
    width: int
    height: int
    fixations: tuple[Fixation, ...]
    lanes: tuple[tuple[float, float], ...]
    more_fixations: int
    begin_s: float
    seconds: float
    ticks: tuple[Tick, ...]
    sentences: tuple[SentenceView, ...]
    more_sentences: int
    texts: tuple[tuple[str, str], ...]
    ids: tuple[tuple[str, str], ...]


def write_report(shards: Path | str, out: Path, config: ReportConfig | None = None) -> int:
    """Write a folder's report as one HTML file that needs no other; returns its size in bytes.

    The same shards and options give the same bytes. Raises ValueError where the folder is no finished build.
    """
    page = report_page(ShardFolder(shards), config or ReportConfig()).encode()
    remove_abandoned(out)
    with appearing_whole(out) as temporary:
        temporary.write_bytes(page)
    return len(page)


def report_page(folder: ShardFolder, config: ReportConfig) -> str:
    """Return the report of a folder as HTML."""
    summary = summarize(folder)
    return _template().render(
        name="" if config.redact else folder.root.resolve().name,
        redact=config.redact,
        summary=summary,
        counts=summary.counts,
        charts=[chart(distribution) for distribution in summary.distributions if len(distribution.pooled)],
        mean_maps=[
            MeanMap(dataset, bare_map(mean, SMALL_PX), where_most(mean)) for dataset, mean in summary.mean_maps.items()
        ],
        agreement=agreement_table(reader_agreement(folder)),
        scanpaths=scanpath_table(scanpath_agreement(folder)),
        known=known_answer(folder, config.truth) if config.truth is not None else (),
        results=results_tables(config.results) if config.results is not None else (),
        written=written_section(folder, config.written, config.redact) if config.written is not None else None,
        most_figures=MOST_FIGURES,
        cases=[case_view(folder.sample(key), config.redact) for key in choose_cases(folder, config.cases)],
        versions=folder.manifest["versions"],
        schema_version=folder.manifest["schema_version"],
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    return environment.get_template("report.html.jinja")


def agreement_table(agreement: ReaderAgreement) -> Table | None:
    """Lay the agreement of readers out as a table, None where no image has several readers."""
    rows: list[tuple[str | int, ...]] = []
    for scores in agreement.table():
        cells = [_with_error(scores, name) for name in SCORE_TITLES]
        rows.append((scores.predictor, scores.images, *cells))
    return Table("Agreement with a reading", ("predictor", "images", *SCORE_TITLES.values()), rows) if rows else None


def scanpath_table(agreement: ScanpathAgreement) -> Table | None:
    """Lay the agreement of scanpaths out as a table, None where no image has two that are long enough."""
    rows: list[tuple[str | int, ...]] = []
    for scores in agreement.table():
        cells = [_with_error(scores, name) for name in SIMILARITIES]
        rows.append((scores.comparison, scores.images, *cells))
    return Table("Agreement of two scanpaths", ("compared with", "images", *SIMILARITIES), rows) if rows else None


def _with_error(scores: PredictorScores | ComparisonScores, name: str) -> str:
    mean = f"{getattr(scores.mean, name):.2f}".replace("-", "−")
    return mean if scores.standard_error is None else f"{mean} ± {getattr(scores.standard_error, name):.2f}"


def chart(distribution: Distribution) -> Chart:
    """Lay a distribution out as bars."""
    counted = distribution.histogram()
    tallest = int(counted.counts.max())
    width = 100 / len(counted.counts)
    bars = tuple(
        Bar(round(i * width, 3), round(width, 3), round(100 * int(count) / tallest, 2), _bar_says(counted, i))
        for i, count in enumerate(counted.counts)
    )
    low, high = figure(counted.edges[0]), figure(counted.edges[-1]) + (" and more" if counted.open_ended else "")
    return Chart(distribution, bars, (low, high), tallest, _chart_says(distribution))


def _bar_says(counted: Histogram, i: int) -> str:
    low, high = figure(counted.edges[i]), figure(counted.edges[i + 1])
    if counted.open_ended and i == len(counted.counts) - 1:
        return f"{low} and more: {counted.counts[i]}"
    return f"{low} to below {high}: {counted.counts[i]}"


def _chart_says(distribution: Distribution) -> str:
    values = distribution.pooled
    unit = f" {distribution.unit}" if distribution.unit else ""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{len(values):,} {distribution.of}s: {figure(low)} to {figure(high)}{unit}, median {figure(middle)}{unit}"


def case_view(sample: LoadedSample, redact: bool) -> CaseView:
    """Gather what the page shows of one sample."""
    gaze, record = sample.gaze, sample.record
    stored = decode(sample.image)
    large, small = shrunk(stored, LARGE_PX), shrunk(stored, SMALL_PX)
    fixations = fixations_drawn(sample, set(marked(record)), MOST_FIXATIONS)
    begin_s, end_s = _time_span(gaze)
    seconds = max(end_s - begin_s, 1e-3)
    sentences = tuple(
        _sentence_view(sample, i, map_picture(small, sample, 1 + i), begin_s, seconds, redact)
        for i in range(min(len(gaze["sentence_start_s"]), MOST_SENTENCES))
    )
    return CaseView(
        key=sample.key,
        facts=_facts(sample),
        image=webp(large),
        whole=map_picture(large, sample, 0) if record["has_gaze"] else None,
        where=where_most(sample.maps[0]),
        width=record["stored_width_px"],
        height=record["stored_height_px"],
        fixations=fixations,
        lanes=tuple((_share(f.start_s - begin_s, seconds), _share(f.end_s - f.start_s, seconds)) for f in fixations),
        more_fixations=len(gaze["x_px"]) - len(fixations),
        begin_s=begin_s,
        seconds=seconds,
        ticks=_ticks(begin_s, seconds),
        sentences=sentences,
        more_sentences=len(gaze["sentence_start_s"]) - len(sentences),
        texts=() if redact else _texts(record),
        ids=() if redact else _ids(record),
    )


def _sentence_view(
    sample: LoadedSample, i: int, picture: Picture, begin_s: float, seconds: float, redact: bool
) -> SentenceView:
    starts, ends, windows = (float(sample.gaze[f"{name}_s"][i]) for name in TIMES)
    return SentenceView(
        number=i + 1,
        text="" if redact else str(sample.record["sentences"]).split("\n")[i],
        start_s=starts,
        end_s=ends,
        window_s=windows,
        left=_share(starts - begin_s, seconds),
        width=_share(ends - starts, seconds),
        lead=_share(max(windows, begin_s) - begin_s, seconds),
        picture=picture,
        where=where_most(sample.maps[1 + i]),
    )


def _time_span(gaze: Mapping[str, Any]) -> tuple[float, float]:
    """Return the first and the last second of anything in a recording."""
    starts = [0.0, *gaze["start_s"], *gaze["word_start_s"]]
    ends = [0.0, *gaze["end_s"], *gaze["word_end_s"]]
    return float(min(starts)), float(max(ends))


def _share(part: float, whole: float) -> float:
    return round(100 * part / whole, 3)


def _ticks(begin_s: float, seconds: float) -> tuple[Tick, ...]:
    step = next((step for step in ROUND_STEPS_S if seconds / step <= TICKS), seconds)
    first = int(-(-begin_s // step))
    times = [i * step for i in range(first, int((begin_s + seconds) // step) + 1)]
    return tuple(Tick(_share(time - begin_s, seconds), figure(time)) for time in times)


def _facts(sample: LoadedSample) -> tuple[tuple[str, str], ...]:
    record, gaze = sample.record, sample.gaze
    said = [name for name, state in record["labels"].items() if state == 1]
    facts = [
        ("source", record["dataset"]),
        ("split", record["split"]),
        ("view", record["view_position"] or "unknown"),
        ("image", f"{record['image_width_px']} × {record['image_height_px']} px"),
        ("fixations", str(len(gaze["x_px"]))),
        ("sentences", str(len(gaze["sentence_start_s"]))),
        ("labels present", ", ".join(said) or "none"),
    ]
    return tuple(facts)


def _texts(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    texts = [(name.replace("_", " "), record[name]) for name in (*SECTIONS, *PRIOR_SECTIONS) if record.get(name)]
    if record.get("prior_study"):
        texts.append(("prior study", f"{figure(record['prior_days'])} days before"))
    return tuple(texts)


def _ids(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    named = (name for name in ("reading_id", "dicom_id", "study_id", "subject_id") if record[name])
    source = json.loads(record["provenance"])["source"]
    return (("source", source), *((name.removesuffix("_id"), record[name]) for name in named))

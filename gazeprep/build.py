"""The build: inputs -> jobs of one shard each -> tars, index, rejected inputs, manifest.

A killed build goes on where it stopped, and a changed config or source rebuilds the shards that it affects.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gazeprep.cases import Inputs, Sources, collect
from gazeprep.jobs import WORK_FOLDER, BuildError, Job, Watcher, explained_os_errors, read_stats, run_jobs, versions
from gazeprep.samples import SampleConfig
from gazeprep.schema import SCHEMA_VERSION, SPLITS, InputError
from gazeprep.shards import INDEX_SCHEMA, REJECTED_SCHEMA, FolderLock, write_json, write_parquet
from gazeprep.splits import HashSplit


@dataclass(frozen=True)
class BuildConfig:
    """One build: where the shards go, what they are made from, and how.

    shard_samples: inputs per shard. workers: processes, 0 for one per core; never changes a byte.
    """

    out: Path
    sources: Sources
    sample: SampleConfig = field(default_factory=SampleConfig)
    splits: HashSplit = field(default_factory=HashSplit)
    shard_samples: int = 512
    workers: int = 0

    def __post_init__(self) -> None:
        if self.shard_samples < 1:
            raise ValueError(f"shard_samples is {self.shard_samples}, must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}, must be 0 (one per core) or more")


@dataclass(frozen=True)
class BuildReport:
    """What a build did; inputs = samples + rejected."""

    inputs: int
    samples: int
    rejected: int
    reasons: dict[str, int]
    noted: dict[str, int]
    empty: dict[str, int]  # samples whose report has no such section, readings without words
    shards: int
    rebuilt: int


def build(config: BuildConfig, watch: Watcher | None = None) -> BuildReport:
    """Build shards from the sources of a config, or finish an interrupted build of them.

    Raises InputError where a source cannot be used or no input can become a sample, BuildError where the build
    had to stop, ValueError where the folder holds other files or another build writes into it.
    """
    inputs = collect(config.sources, config.splits)
    if not inputs.cases:
        raise _no_samples(_tally(one.reason for one in inputs.rejected))
    jobs = plan(inputs, config.shard_samples)
    with explained_os_errors():
        _check_folder(config.out)
        (config.out / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        with FolderLock(config.out / WORK_FOLDER / "lock"):
            (config.out / "dataset.json").unlink(missing_ok=True)  # not a finished build while shards change
            _remove_leftovers(config.out, jobs)
            reports = run_jobs(jobs, config.out, config.sample, config.workers, watch)
            return _finish(config, inputs, jobs, sum(report.rebuilt for report in reports))


def plan(inputs: Inputs, shard_samples: int) -> tuple[Job, ...]:
    """Cut the cases of each split, in the order of their hashed keys, into jobs."""
    jobs = []
    for split in SPLITS:
        cases = sorted((case for case in inputs.cases if case.split == split), key=lambda c: (c.key[-12:], c.key))
        for number, first in enumerate(range(0, len(cases), shard_samples)):
            chosen = tuple(cases[first : first + shard_samples])
            overrides = {c.study_id: inputs.overrides[c.study_id] for c in chosen if c.study_id in inputs.overrides}
            jobs.append(Job(f"{split}-{number:05d}", split, chosen, overrides))
    return tuple(jobs)


def _check_folder(out: Path) -> None:
    """Refuse a folder with other files: a shard's name could stand there already."""
    if out.exists() and not (out / WORK_FOLDER).exists() and any(out.iterdir()):
        raise ValueError("the output folder holds files that no build here wrote; name a new or empty folder as --out")


def _remove_leftovers(out: Path, jobs: Sequence[Job]) -> None:
    """Remove unfinished tars, and shards and stats of an earlier plan."""
    work, names = out / WORK_FOLDER, {job.name for job in jobs}
    for path in [*work.glob("*.unfinished"), *work.glob(".*.tmp"), *out.glob(".*.tmp")]:
        path.unlink()
    for split in SPLITS:
        stale = [path for path in (out / split).glob(f"{split}-[0-9]*.tar") if path.stem not in names]
        for path in [*stale, *(p for p in work.glob(f"{split}-[0-9]*.json") if p.stem not in names)]:
            path.unlink()
        if stale and not any((out / split).iterdir()):
            (out / split).rmdir()


def _finish(config: BuildConfig, inputs: Inputs, jobs: Sequence[Job], rebuilt: int) -> BuildReport:
    """Write index, rejected inputs and, last, the manifest that makes the folder a finished build."""
    stats = [(job, read_stats(job, config.out)) for job in jobs]
    rows = [row for _, one in stats for row in one["rows"]]
    rejected = [asdict(one) for one in inputs.rejected] + [row for _, one in stats for row in one["rejected"]]
    rejected.sort(key=lambda row: (row["dataset"], row["key"]))
    total = len(inputs.cases) + len(inputs.rejected)
    if total != len(rows) + len(rejected):
        raise BuildError(
            f"{total} inputs are not {len(rows)} samples + {len(rejected)} rejected; delete the output folder, build "
            "again, and report this"
        )
    write_parquet(config.out / "rejected.parquet", rejected, REJECTED_SCHEMA)
    if not rows:
        raise _no_samples(_tally(row["reason"] for row in rejected))
    write_parquet(config.out / "index.parquet", rows, INDEX_SCHEMA)
    shards = [
        {
            "name": job.shard,
            "split": job.split,
            "samples": len(one["rows"]),
            "size": one["size"],
            "sha256": one["sha256"],
        }
        for job, one in stats
        if one["rows"]
    ]
    empty: Counter[str] = sum((Counter(one["empty"]) for _, one in stats), Counter())
    counts = _counts(inputs.noted, empty, rows, rejected)
    write_json(config.out / "dataset.json", _manifest(config, rows, shards, counts))
    return BuildReport(
        inputs=total,
        samples=len(rows),
        rejected=len(rejected),
        reasons=counts["rejected_by_reason"],
        noted=inputs.noted,
        empty=counts["empty"],
        shards=len(shards),
        rebuilt=rebuilt,
    )


def _counts(
    noted: dict[str, int], empty: Counter[str], rows: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "inputs": len(rows) + len(rejected),
        "samples": len(rows),
        "rejected": len(rejected),
        "rejected_by_reason": _tally(row["reason"] for row in rejected),
        "samples_by_split": _tally(row["split"] for row in rows),
        "samples_by_split_origin": _tally(row["split_origin"] for row in rows),
        "samples_by_dataset": _tally(row["dataset"] for row in rows),
        "samples_with_gaze": sum(row["has_gaze"] for row in rows),
        "samples_synthetic": sum(row["synthetic"] for row in rows),
        "sentences": sum(row["sentences"] for row in rows),
        "subjects": len({row["subject"] for row in rows}),
        "noted": noted,
        "empty": dict(sorted(empty.items())),
    }


def _no_samples(reasons: dict[str, int]) -> InputError:
    if "image_missing" in reasons:
        cure = (
            "REFLACX and EGD-CXR come without images: name the MIMIC-CXR folder that holds them too, --sources.mimic "
            "or --sources.mimic_jpg (MIMIC=... or MIMIC_JPG=... of make shards)"
        )
    else:
        cure = "check that the folders are whole and the options leave something"
    counted = ", ".join(f"{count} x {reason}" for reason, count in reasons.items())
    return InputError(
        "no_samples", f"none of the {sum(reasons.values())} inputs can become a sample ({counted}); {cure}"
    )


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _manifest(
    config: BuildConfig, rows: list[dict[str, Any]], shards: list[dict[str, Any]], counts: dict[str, Any]
) -> dict[str, Any]:
    sources, table = config.sources, config.sources.table
    given = ("reflacx", "egd", "mimic", "mimic_jpg", "table", "section_overrides")
    return {
        "schema_version": SCHEMA_VERSION,
        "synthetic": any(row["synthetic"] for row in rows),
        "sources": [name for name in given if getattr(sources, name) is not None],
        "config": {
            "sample": asdict(config.sample),
            "splits": asdict(config.splits),
            "shard_samples": config.shard_samples,
            "prefer": sources.prefer,
            "views": list(sources.views),
            "labels": sources.labels,
            "table": {"name": table.name, "frame": asdict(table.frame), "columns": table.columns} if table else None,
        },
        "versions": versions(),
        "counts": counts,
        "shards": shards,
    }

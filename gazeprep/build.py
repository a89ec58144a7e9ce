"""The build: inputs -> jobs of one shard each -> tars, index, rejected inputs, manifest.

A killed build goes on where it stopped, and a changed config or source rebuilds the shards that it affects. The
manifest is the same whether one build ran all jobs or tasks.py finalizes what several tasks ran.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

from gazeprep.cases import Inputs, Sources, collect
from gazeprep.executors import EXECUTORS, Executor, ExecutorName
from gazeprep.jobs import (
    BuildError,
    Job,
    JobReport,
    explained_os_errors,
    read_stats,
    recipe,
    run_job,
    studies_of,
    versions,
)
from gazeprep.samples import SampleConfig
from gazeprep.schema import SPLITS, InputError
from gazeprep.shards import INDEX_SCHEMA, REJECTED_SCHEMA, json_bytes, parquet_bytes, table_facts
from gazeprep.splits import HashSplit
from gazeprep.stores import WORK_FOLDER, RemoteStore, Store, open_store

PLAN = f"{WORK_FOLDER}/plan.json"  # what the tasks of one build agree on; written and read by tasks.py
Watcher = Callable[[JobReport, int], None]  # called with each finished job and the number of jobs


@dataclass(frozen=True)
class BuildConfig:
    """One build: where the shards go, what they are made from, and how.

    out: a folder, or a URL that fsspec knows, such as s3://bucket/shards. shard_samples: inputs per shard.
    workers: processes, 0 for one per core; executor: where they run. Neither changes a byte.
    """

    out: str | Path
    sources: Sources
    sample: SampleConfig = field(default_factory=SampleConfig)
    splits: HashSplit = field(default_factory=HashSplit)
    shard_samples: int = 512
    workers: int = 0
    executor: ExecutorName = "local"

    def __post_init__(self) -> None:
        if self.shard_samples < 1:
            raise ValueError(f"shard_samples is {self.shard_samples}, must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}, must be 0 (one per core) or more")
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor is {self.executor!r}, must be one of {', '.join(get_args(ExecutorName))}")


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
    rebuilt: int | None  # None where tasks built


@dataclass(frozen=True)
class PlannedShard:
    """A shard before it is there; `recipe` is what `jobs.recipe` says of it."""

    name: str
    split: str
    recipe: str

    @property
    def shard(self) -> str:
        """Path of the tar below the output folder."""
        return f"{self.split}/{self.name}.tar"


@dataclass(frozen=True)
class Plan:
    """What a finished build holds, as far as it is known before any picture is opened."""

    about: dict[str, Any]  # what the manifest says of config, sources and versions
    shards: tuple[PlannedShard, ...]
    inputs: int
    rejected: tuple[dict[str, Any], ...]
    noted: dict[str, int]


def build(config: BuildConfig, watch: Watcher | None = None, executor: Executor | None = None) -> BuildReport:
    """Build shards from the sources of a config, or finish an interrupted build of them.

    `executor` stands in for the config's where jobs are to run elsewhere (see `executors`).
    Raises InputError where a source cannot be used or no input can become a sample, BuildError where the build
    had to stop, ValueError where the folder holds other files or another build writes into it.
    """
    store = output_store(config, executor)
    inputs = inputs_of(config)
    jobs = jobs_of(inputs, config.shard_samples)
    with explained_os_errors():
        check_folder(store)
        store.begin()
        with store.lock():
            store.remove("dataset.json")  # not a finished build while shards change
            store.remove(PLAN)
            remove_leftovers(store, {job.name for job in jobs})
            reports = run_jobs(jobs, config, watch, executor)
            return finish(store, plan(config, inputs, jobs), sum(report.rebuilt for report in reports))


def output_store(config: BuildConfig, executor: Executor | None = None) -> Store:
    """Open the store that a build writes into; raises ValueError where its workers could not."""
    store = open_store(config.out, writing=True)
    private = isinstance(store, RemoteStore) and store.in_this_process
    if private and executor is None and config.executor != "inline":
        raise ValueError("memory:// is seen by one process, workers would write elsewhere; use --executor inline")
    return store


def inputs_of(config: BuildConfig) -> Inputs:
    """List the inputs of a config; raises InputError where none of them can become a sample."""
    inputs = collect(config.sources, config.splits, prior=config.sample.prior)
    if not inputs.cases:
        raise _no_samples(_tally(one.reason for one in inputs.rejected))
    return inputs


def run_jobs(
    jobs: Sequence[Job], config: BuildConfig, watch: Watcher | None = None, executor: Executor | None = None
) -> list[JobReport]:
    """Run jobs where the config says; raises BuildError where one had to stop."""
    reports = []
    run = partial(run_job, out=config.out, config=config.sample)
    for report in (executor or EXECUTORS[config.executor])(run, jobs, config.workers):
        reports.append(report)
        if watch is not None:
            watch(report, len(jobs))
    return reports


def jobs_of(inputs: Inputs, shard_samples: int) -> tuple[Job, ...]:
    """Cut the cases of each split, in the order of their hashed keys, into jobs."""
    jobs = []
    for split in SPLITS:
        cases = sorted((case for case in inputs.cases if case.split == split), key=lambda c: (c.key[-12:], c.key))
        for number, first in enumerate(range(0, len(cases), shard_samples)):
            chosen = tuple(cases[first : first + shard_samples])
            studies = {study for case in chosen for study in studies_of(case)}
            overrides = {study: inputs.overrides[study] for study in sorted(studies) if study in inputs.overrides}
            jobs.append(Job(f"{split}-{number:05d}", split, chosen, overrides))
    return tuple(jobs)


def plan(config: BuildConfig, inputs: Inputs, jobs: Sequence[Job]) -> Plan:
    """Say what the build of these jobs will hold."""
    return Plan(
        about=_about(config),
        shards=tuple(PlannedShard(job.name, job.split, recipe(job, config.sample)) for job in jobs),
        inputs=len(inputs.cases) + len(inputs.rejected),
        rejected=tuple(asdict(one) for one in inputs.rejected),
        noted=inputs.noted,
    )


def check_folder(store: Store) -> None:
    """Refuse a folder with other files: a shard's name could stand there already."""
    names = store.entries()
    if names and WORK_FOLDER not in names:
        raise ValueError("the output folder holds files that no build here wrote; name a new or empty folder as --out")


def remove_leftovers(store: Store, names: set[str]) -> None:
    """Remove unfinished tars, and shards and stats of an earlier plan: all but those named."""
    for folder in ("", WORK_FOLDER):
        for entry in store.entries(folder):
            if entry.endswith(".unfinished") or (entry.startswith(".") and entry.endswith(".tmp")):
                store.remove(f"{folder}/{entry}" if folder else entry)
    for split in SPLITS:
        shard = re.compile(rf"{split}-[0-9]+")
        for folder, suffix in ((split, ".tar"), (WORK_FOLDER, ".json")):
            for entry in store.entries(folder):
                name = entry.removesuffix(suffix)
                if entry.endswith(suffix) and shard.fullmatch(name) and name not in names:
                    store.remove(f"{folder}/{entry}")
        store.remove_empty(split)


def finish(store: Store, plan: Plan, rebuilt: int | None) -> BuildReport:
    """Write index, rejected inputs and, last, the manifest that makes the folder a finished build."""
    stats = [read_stats(store, shard.name) for shard in plan.shards]
    rows = [row for one in stats for row in one["rows"]]
    rejected = [*plan.rejected, *(row for one in stats for row in one["rejected"])]
    rejected.sort(key=lambda row: (row["dataset"], row["key"]))
    if plan.inputs != len(rows) + len(rejected):
        raise BuildError(
            f"{plan.inputs} inputs are not {len(rows)} samples + {len(rejected)} rejected; delete the output folder, "
            "build again, and report this"
        )
    tables = {"rejected.parquet": parquet_bytes(rejected, REJECTED_SCHEMA)}
    store.write("rejected.parquet", tables["rejected.parquet"])
    if not rows:
        raise _no_samples(_tally(row["reason"] for row in rejected))
    tables["index.parquet"] = parquet_bytes(rows, INDEX_SCHEMA)
    store.write("index.parquet", tables["index.parquet"])
    shards = [
        {
            "name": shard.shard,
            "split": shard.split,
            "samples": len(one["rows"]),
            "size": one["size"],
            "sha256": one["sha256"],
        }
        for shard, one in zip(plan.shards, stats, strict=True)
        if one["rows"]
    ]
    empty: Counter[str] = sum((Counter(one["empty"]) for one in stats), Counter())
    counts = counts_of(plan.noted, empty, rows, rejected)
    synthetic = any(row["synthetic"] for row in rows)
    held = {"synthetic": synthetic, "counts": counts, "shards": shards, "tables": table_facts(tables)}
    store.write("dataset.json", json_bytes(plan.about | held))
    return BuildReport(
        inputs=plan.inputs,
        samples=len(rows),
        rejected=len(rejected),
        reasons=counts["rejected_by_reason"],
        noted=plan.noted,
        empty=counts["empty"],
        shards=len(shards),
        rebuilt=rebuilt,
    )


def counts_of(
    noted: dict[str, int], empty: Counter[str], rows: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the counts of a manifest: rows of the index, rows of the rejected inputs, what else was counted."""
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


def _about(config: BuildConfig) -> dict[str, Any]:
    """Return what the manifest says of a config; neither its folders nor where it ran."""
    sources, table = config.sources, config.sources.table
    named = [one.name for one in fields(sources) if one.name not in ("prefer", "views", "labels")]
    return {
        "schema_version": config.sample.schema_version,
        "sources": [name for name in named if getattr(sources, name) is not None],
        "config": {
            "sample": asdict(config.sample),
            "splits": asdict(config.splits),
            "shard_samples": config.shard_samples,
            "prefer": sources.prefer,
            "views": list(sources.views),
            "labels": sources.labels,
            "table": {"name": table.name, "frame": asdict(table.frame), "columns": table.columns} if table else None,
        },
        "versions": versions() | {"schema": str(config.sample.schema_version)},
    }

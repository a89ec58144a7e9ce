"""A build in several tasks that know nothing of each other, such as a Slurm array, and what makes them one build.

Task i of n does the shards whose number leaves i when divided by n. The first task writes the plan, the others
must come to the same one; `finalize` merges what all of them wrote, with the bytes that one build would give.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gazeprep.build import (
    PLAN,
    BuildConfig,
    BuildReport,
    Plan,
    PlannedShard,
    Watcher,
    check_folder,
    finish,
    inputs_of,
    jobs_of,
    output_store,
    plan,
    remove_leftovers,
    run_jobs,
)
from gazeprep.executors import Executor
from gazeprep.jobs import BuildError, explained_os_errors, is_whole, read_stats
from gazeprep.shards import canonical_json
from gazeprep.stores import Store, open_store

NAMED = 8  # shards or tasks that a message lists
START_OVER = "to begin a build with other options here, delete .build/plan.json in the output folder first"


@dataclass(frozen=True)
class Task:
    """One of `count` tasks; `index` counts from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"task-count is {self.count}, must be at least 1")
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"task-index is {self.index}, must be 0 to {self.count - 1} where task-count is {self.count}"
            )


@dataclass(frozen=True)
class TaskReport:
    """What a task did: its shards of those of the whole build, and how many of them it built now."""

    shards: int
    shards_of_all_tasks: int
    rebuilt: int


def build_task(
    config: BuildConfig, task: Task, watch: Watcher | None = None, executor: Executor | None = None
) -> TaskReport:
    """Build the shards of one task; neither index nor manifest, which are for `finalize`.

    Raises what `build` raises, and ValueError where another task of the folder was started with other options.
    """
    store = output_store(config, executor)
    inputs = inputs_of(config)
    jobs = jobs_of(inputs, config.shard_samples)
    planned = _as_json(plan(config, inputs, jobs)) | {"task_count": task.count}
    with explained_os_errors():
        check_folder(store)
        store.begin()
        with store.lock(shared=True), store.lock(f"task-{task.index}.lock"):
            _agree(store, planned)
            store.remove("dataset.json")  # not a finished build while shards change
            own = jobs[task.index :: task.count]
            reports = run_jobs(own, config, watch, executor)
    return TaskReport(len(own), len(jobs), sum(report.rebuilt for report in reports))


def finalize(out: Path | str) -> BuildReport:
    """Merge what the tasks of a build wrote into index, rejected inputs and manifest; needs no sources.

    Raises BuildError naming the shards and tasks that are missing, ValueError where no task has begun or one is
    at work.
    """
    store = open_store(out, writing=True)
    with explained_os_errors():
        if store.size(PLAN) is None:
            raise ValueError(_nothing_to_finalize(store))
        with store.lock():
            if store.size(PLAN) is None:  # another one has done it since
                raise ValueError(_nothing_to_finalize(store))
            planned = json.loads(store.read(PLAN))
            whole = _from_json(planned)
            _refuse_gaps(store, whole, planned["task_count"])
            remove_leftovers(store, {shard.name for shard in whole.shards})
            report = finish(store, whole, rebuilt=None)
            store.remove(PLAN)
    return report


def _as_json(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(canonical_json(asdict(plan)))
    return found


def _from_json(planned: dict[str, Any]) -> Plan:
    return Plan(
        about=planned["about"],
        shards=tuple(PlannedShard(**shard) for shard in planned["shards"]),
        inputs=planned["inputs"],
        rejected=tuple(planned["rejected"]),
        noted=planned["noted"],
    )


def _agree(store: Store, planned: dict[str, Any]) -> None:
    """Write the plan, or refuse another than the one that is there.

    Two first tasks may write at the same moment; `finalize` notices where their plans differ.
    """
    if store.size(PLAN) is None:
        store.write(PLAN, canonical_json(planned).encode("ascii"))
    others = json.loads(store.read(PLAN))
    different = [name for name in planned if others.get(name) != planned[name]]
    if "task_count" in different:
        raise ValueError(
            f"task-count is {planned['task_count']}, another task of this build was started with "
            f"{others.get('task_count')}; use that, or {START_OVER}"
        )
    if different:
        raise ValueError(
            f"another task of this build was started with other options, sources or versions (they differ in "
            f"{', '.join(_places(planned, others, different))}); start all tasks alike, or {START_OVER}"
        )


def _places(planned: dict[str, Any], others: dict[str, Any], different: Sequence[str]) -> list[str]:
    """Name what differs between two plans, inside `about` too."""
    found = []
    for name in different:
        if name == "about":
            found += [part for part in planned[name] if others[name].get(part) != planned[name][part]]
        else:
            found.append(name)
    return found


def _refuse_gaps(store: Store, plan: Plan, task_count: int) -> None:
    """Raise BuildError unless every shard of the plan is there, made as planned."""
    absent, other = [], []
    for number, shard in enumerate(plan.shards):
        stats = read_stats(store, shard.name)
        if not stats or not is_whole(store, shard.shard, stats):
            absent.append(number)
        elif stats["recipe"] != shard.recipe:
            other.append(number)
    if not absent and not other:
        return
    problems = []
    for numbers, what in ((absent, "missing"), (other, "made with other options, sources or versions")):
        if numbers:
            names = _listed([plan.shards[number].name for number in numbers])
            problems.append(f"{len(numbers)} of {len(plan.shards)} shards are {what} ({names})")
    tasks = sorted({number % task_count for number in (*absent, *other)})
    raise BuildError(
        f"{' and '.join(problems)}; run again with --task-count {task_count} and the other options as before, "
        f"--task-index {_listed([str(task) for task in tasks])}, and finalize after that"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _nothing_to_finalize(store: Store) -> str:
    if store.size("dataset.json") is not None:
        return "the build in this folder is finished already; nothing is left to finalize"
    return "no task has written into this folder; run gazeprep build with --task-index and --task-count first"

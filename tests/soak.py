"""gazeprep killed at random moments and started again until it is through: `make soak SEEDS=50`.

Each seed draws what is run, whom kill -9 hits, when and how often. After each kill no process may be left, not even as
a zombie, and each file under a final name must be that of a folder made without a break; in the end all files are.
Stops at the first that is not.
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attacks import (
    Running,
    adopting,
    assert_only_whole_files,
    build_options,
    finals,
    finished_shards,
    halves,
    running,
    wait_until,
)
from recorded import sources_of

from gazeprep.cases import Sources
from gazeprep.schema import SPLITS
from gazeprep.stores import WORK_FOLDER
from gazeprep.synthetic import write_corpus

WIDER = "--sample.maps.sigma_deg=2.0"
TASKS = 3
STARTING_S = 2.0
MOST_KILLS = 4  # of one command before it may end
TOO_LATE = "after its end"
BUILT_NOW = re.compile(r"(\d+) of them built now")
EXPORTS = ("npz", "png16", "fiftyone", "coco", "cogaze", "egma")
EXPECTED = {"parent": (-signal.SIGKILL,), "worker": (1, 0)}  # 0: its work was done


@dataclass(frozen=True)
class Step:
    """One command to be killed and finished; `whole` is what it leaves in `out` where it is not."""

    verb: str
    options: list[str]
    out: Path
    whole: dict[str, bytes]
    before: dict[str, bytes] = field(default_factory=dict)  # what may still lie in `out` from the command before
    shards: frozenset[str] = frozenset()  # that it builds
    last: bool = True  # nothing half-way may be left behind it


@dataclass(frozen=True)
class Hit:
    """One kill: whom it hit, in which phase of which command, and what was whole before and after."""

    verb: str
    victim: str
    phase: str
    workers_s: float  # how long workers outlived it
    shards_before: int
    shards_after: int


@dataclass(frozen=True)
class Outcome:
    """What a seed did; `rebuilt` of `shards` were built by the runs that were let through."""

    seed: int
    hits: list[Hit]
    rebuilt: int
    shards: int
    seconds: float


@dataclass(frozen=True)
class Ground:
    """Sources and what unbroken commands make of them; `root` holds the folders."""

    root: Path
    sources: Sources

    def made(self, name: str, options: Callable[[Path], list[str]]) -> Path:
        """The folder of an unbroken command, made where it is asked for the first time."""
        home = self.root / "unbroken" / name
        if not home.exists():
            home.mkdir(parents=True)
            _finish(options(home / "out"))
        return home

    def built(self, *options: str) -> Path:
        return self.made("build" + "".join(options), lambda out: build_options(out, self.sources, *options)) / "out"

    def halved(self) -> list[str]:
        """Two folders with the samples of a build between them."""
        queries = {"with": "has_gaze", "without": "not has_gaze"}
        chosen = [
            self.made(name, lambda out, query=query: ["select", str(self.built()), f"--query={query}", f"--out={out}"])
            for name, query in queries.items()
        ]
        return [str(home / "out") for home in chosen]


def run_seed(seed: int, ground: Ground) -> Outcome:
    """Run, kill and finish what the seed says; raises AssertionError where anything is not as it has to be."""
    began, rng, home = time.monotonic(), random.Random(seed), ground.root / f"seed-{seed}"
    home.mkdir()
    hits, rebuilt, shards = [], 0, 0
    for step in KINDS[seed % len(KINDS)](ground, home, rng):
        for _ in range(rng.randint(1, MOST_KILLS if "build" in step.verb else 2)):
            hits.append(_attack(step, rng))
            if hits[-1].phase == TOO_LATE and "build" not in step.verb:
                break
        else:
            left = step.shards - finished_shards(step.out)
            built = sum(int(count) for count in BUILT_NOW.findall(_finish(step.options)))
            assert step.before or built == len(left)
            rebuilt += built
        assert_only_whole_files(step.out, step.whole)
        if step.last:
            assert finals(step.out).keys() == step.whole.keys()
            assert not halves(step.out)
        shards = len(finished_shards(step.out))
    shutil.rmtree(home)
    return Outcome(seed, hits, rebuilt, shards, time.monotonic() - began)


# --- what a seed runs


def _build(ground: Ground, home: Path, rng: random.Random) -> Iterator[Step]:
    del rng
    whole = finals(ground.built())
    yield Step("build", build_options(home, ground.sources), home, whole, shards=frozenset(_shards(whole)))


def _tasks(ground: Ground, home: Path, rng: random.Random) -> Iterator[Step]:
    whole = finals(ground.built())
    for index in rng.sample(range(TASKS), TASKS):
        options = build_options(home, ground.sources, f"--task-index={index}", f"--task-count={TASKS}")
        own = frozenset(_shards(whole)[index::TASKS])
        yield Step("build, one task", options, home, whole, shards=own, last=False)
    yield Step("finalize", ["finalize", str(home)], home, whole)


def _detour(ground: Ground, home: Path, rng: random.Random) -> Iterator[Step]:
    """A finished build, killed while it is built with other options, and on the way back."""
    del rng
    first, second = finals(ground.built()), finals(ground.built(WIDER))
    read = frozenset(Path(name).stem for name in first if name.endswith(".tar") and first[name] != second[name])
    shutil.copytree(ground.built(), home, dirs_exist_ok=True)
    yield Step("build, other options", build_options(home, ground.sources, WIDER), home, second, first, read)
    yield Step("build, other options", build_options(home, ground.sources), home, first, second, read)


def _shards(whole: dict[str, bytes]) -> list[str]:
    """The shards of a build in the order in which they are handed out."""
    names = [Path(name).stem for name in whole if name.startswith(f"{WORK_FOLDER}/")]
    return sorted(names, key=lambda name: (SPLITS.index(name.rpartition("-")[0]), name))


def _verbs(ground: Ground, home: Path, rng: random.Random) -> Iterator[Step]:
    shards = str(ground.built())
    commands = {
        "merge": ["merge", *ground.halved(), "--copy"],
        "select": ["select", shards, "--query=has_gaze"],
        **{f"export {name}": ["export", shards, f"--format={name}"] for name in EXPORTS},
        "report": ["report", shards],
    }
    for verb in ("merge", "select", rng.choice([f"export {name}" for name in EXPORTS]), "report"):
        whole = finals(ground.made(verb, lambda out, verb=verb: [*commands[verb], f"--out={out}"]))
        (home / verb).mkdir()
        yield Step(verb, [*commands[verb], f"--out={home / verb / 'out'}"], home / verb, whole)


KINDS = (_build, _tasks, _verbs, _detour, _build)


# --- killing


def _finish(options: Sequence[str]) -> str:
    """Let a command come to its end; returns what it printed."""
    with running(options) as started:
        ended = started.ended()
        assert ended.code == 0, ended.messages
        started.gone_after_s()
    return ended.messages


def _attack(step: Step, rng: random.Random) -> Hit:
    """Kill a command, or a worker of it, at a random moment; see that nothing is left but what is whole."""
    before = finished_shards(step.out)
    with running(step.options) as started:
        _await_a_moment(started, step, rng)
        workers = started.workers()
        victim = rng.choice(["parent", "worker"]) if workers else "parent"
        if victim == "parent":
            started.process.kill()
        else:
            started.kill(rng.choice(workers))
        code = started.process.wait(timeout=120)
        workers_s = started.gone_after_s()
        messages = started.ended().messages
    assert code in EXPECTED[victim] or code == 0, messages
    assert "Traceback" not in messages, messages
    assert_only_whole_files(step.out, step.whole, step.before)
    whole = "build" not in step.verb and finals(step.out).keys() == step.whole.keys()
    phase = TOO_LATE if code == 0 or whole else _phase(step, messages)
    return Hit(step.verb, victim, phase, workers_s, len(before), len(finished_shards(step.out)))


def _await_a_moment(started: Running, step: Step, rng: random.Random) -> None:
    """Wait for a random moment of a random phase, so that short phases are hit too."""

    def until(is_so: Callable[[], object], then_s: float) -> None:
        wait_until(lambda: started.process.poll() is not None or is_so())
        time.sleep(rng.uniform(0, then_s))

    before = _written(step.out)

    def written() -> set[str]:
        return {name for name, when in _written(step.out).items() if before.get(name) != when}

    left = len(step.shards if step.before else step.shards - before.keys())
    match rng.choices(("start", "middle", "end"), (1, 4, 2))[0]:
        case "start":
            time.sleep(rng.uniform(0, STARTING_S))
        case "middle" if left:
            count = rng.randrange(left)
            until(lambda: len(written() & step.shards) >= count and started.workers(), 0.05)
        case "end" if left:
            until(lambda: len(written() & step.shards) == left, 0.05)
        case _ if "build" in step.verb:  # nothing is left to do
            until(lambda: not (step.out / "dataset.json").exists(), STARTING_S)
        case _:  # a verb writes into a hidden folder, which then takes the final name
            until(lambda: halves(step.out) or (step.out / "rejected.parquet").exists(), 0.1)


def _written(out: Path) -> dict[str, int]:
    """The shards whose stats are there, with the time when they were written."""
    found = {}
    for path in out.glob(f"{WORK_FOLDER}/*-[0-9]*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[path.stem] = path.stat().st_mtime_ns
    return found


def _phase(step: Step, messages: str) -> str:
    """What a killed command was doing, by what it printed and left."""
    if step.verb == "finalize":
        return "index and manifest" if (step.out / "rejected.parquet").exists() else "starting"
    if "build" not in step.verb:
        return "writing" if halves(step.out) else "starting"
    if not re.search(r"^shard \d+/", messages, re.MULTILINE):
        return "a first shard being written" if halves(step.out) else "starting, listing inputs"
    tars = {path.stem for path in step.out.glob("*/*.tar")}
    if tars - finished_shards(step.out):
        return "between a tar and its stats"
    if halves(step.out):
        return "a shard being written"
    done, of = re.findall(r"^shard (\d+)/(\d+)", messages, re.MULTILINE)[-1]
    return "index and manifest" if done == of else "between shards"


# --- the program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--subjects", type=int, default=20, help="of the synthetic corpus")
    parser.add_argument("--record", type=Path, help="a file for one json line a seed")
    options = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, adopting():
        root = Path(folder)
        ground = Ground(root, sources_of(write_corpus(root / "corpus", options.subjects, workers=2)))
        for seed in range(options.first, options.first + options.seeds):
            outcomes.append(run_seed(seed, ground))
            _tell(outcomes[-1])
            if options.record:
                with options.record.open("a") as file:
                    file.write(json.dumps(asdict(outcomes[-1])) + "\n")
    print(summary(outcomes))


def _tell(outcome: Outcome) -> None:
    hits = "; ".join(f"{hit.verb}: {hit.victim}, {hit.phase}" for hit in outcome.hits)
    print(f"seed {outcome.seed}: {hits}; nothing lost, {outcome.seconds:.0f} s", flush=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """The kills by command, victim and phase as a table, and how long orphans lived."""
    hits = [hit for outcome in outcomes for hit in outcome.hits]
    counts: Counter[Any] = Counter((hit.verb.split()[0].rstrip(","), hit.phase, hit.victim) for hit in hits)
    lines = ["| command | hit while | parent killed | worker killed |", "|---|---|---|---|"]
    for verb, phase in dict.fromkeys((verb, phase) for verb, phase, _ in sorted(counts)):
        lines.append(f"| {verb} | {phase} | {counts[verb, phase, 'parent']} | {counts[verb, phase, 'worker']} |")
    lost = sum(max(hit.shards_before - hit.shards_after, 0) for hit in hits if "other" not in hit.verb)
    longest = max(hit.workers_s for hit in hits)
    lines += [
        f"{len(outcomes)} seeds, {len(hits)} kills, {sum(outcome.seconds for outcome in outcomes):.0f} s",
        f"finished shards that were lost: {lost}; the last worker was gone {1000 * longest:.0f} ms after the kill",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

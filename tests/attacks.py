"""Commands in processes of their own, to be killed: who of them is left, and what they left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gazeprep.cases import Sources
from gazeprep.stores import WORK_FOLDER

PR_SET_CHILD_SUBREAPER = 36
UNFINISHED = (".unfinished", ".tmp")
NO_RESULTS = ("lock", "plan.json")  # of the work folder; what the tasks of one build agree on comes and goes
HAVE_PROC = Path("/proc/self/stat").exists()
PICTURES = ("--sample.picture.resize.size_px=64", "--sample.maps.px_per_deg=37.5")  # as recorded.SMALL


def source_options(sources: Sources) -> list[str]:
    """The folders of the corpus as options of the command line."""
    return [f"--sources.{name}={getattr(sources, name)}" for name in ("reflacx", "egd", "mimic", "mimic_jpg")]


def build_options(out: Path, sources: Sources, *options: str) -> list[str]:
    """A build by two workers with one input a shard, so that there are many moments to be hit in."""
    return ["build", f"--out={out}", "--workers=2", "--shard_samples=1", *PICTURES, *source_options(sources), *options]


@dataclass(frozen=True)
class Process:
    """A process as /proc tells of it; `state` is Z for one that has ended and that nobody has asked about."""

    number: int
    parent: int
    state: str
    command: str


class Running:
    """A command of gazeprep in a session of its own, by which every process that it starts is found."""

    def __init__(self, options: Sequence[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gazeprep.cli", *options],
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also where a runner ignores it
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self) -> list[Process]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.process.pid:
                        command = (folder / "cmdline").read_bytes().decode()
                        found.append(Process(int(folder.name), int(parent), state, command))
        return found

    def workers(self) -> list[int]:
        return [one.number for one in self.processes() if "spawn_main" in one.command and one.state != "Z"]

    def ended(self) -> "Ended":
        """Wait for the end of the command; `pipe` is closed by the last of its processes."""
        messages, _ = self.process.communicate(timeout=120)
        return Ended(self.process.returncode, messages)

    def gone_after_s(self, timeout_s: float = 20) -> float:
        """Wait until no process of the session is left, not even a zombie; return how long workers stayed."""
        began = time.monotonic()
        wait_until(lambda: not self.workers(), timeout_s)
        workers_s = time.monotonic() - began
        wait_until(lambda: not self._left(), timeout_s)
        return workers_s

    def _left(self) -> list[Process]:
        left = self.processes()
        for one in left:
            # Its parent has ended, so the orphan fell to us (see `adopting`), to be asked about like any child.
            if one.state == "Z" and one.parent == os.getpid() and one.number != self.process.pid:
                os.waitpid(one.number, 0)
        return left

    def kill(self, number: int) -> None:
        """kill -9 a process, which may have ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)

    def kill_all(self) -> None:
        for one in self.processes():
            self.kill(one.number)
        self.process.communicate(timeout=60)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    messages: str


@contextlib.contextmanager
def running(options: Sequence[str], **environment: str) -> Iterator[Running]:
    """Start a command, of which no process outlives the block."""
    started = Running(options, **environment)
    try:
        yield started
    finally:
        started.kill_all()


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Let orphans fall to this process, not to the first of the machine, which may leave them as zombies."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def wait_until(is_so: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


# --- what is left


def finals(out: Path) -> dict[str, bytes]:
    """Every file under a final name by its path, the stats of finished shards among them."""
    return {str(path): (out / path).read_bytes() for path in _files(out) if not _is_half(path)}


def halves(out: Path) -> list[str]:
    """What a killed process left half-way; the next one removes it."""
    return [str(path) for path in _files(out) if _is_half(path)]


def _files(out: Path) -> list[Path]:
    found = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    return [path for path in found if not _is_lock_or_plan(path)]


def _is_half(path: Path) -> bool:
    return any(part.endswith(UNFINISHED) for part in path.parts)


def _is_lock_or_plan(path: Path) -> bool:
    return path.parent.name == WORK_FOLDER and (path.name in NO_RESULTS or path.suffix == ".lock")


def finished_shards(out: Path) -> set[str]:
    """Names of the shards whose stats are there, which are written last."""
    return {path.stem for path in (out / WORK_FOLDER).glob("*-[0-9]*.json")}


def assert_only_whole_files(out: Path, *wholes: dict[str, bytes]) -> None:
    """Whatever has a final name is what one of the unbroken folders has under it."""
    for name, data in finals(out).items():
        assert any(whole.get(name) == data for whole in wholes), f"{name} is not what an unbroken build writes"

"""One shard, one job: a pure function of its cases and the config, run in a pool of processes.

A job's tar appears under its final name only when whole, its stats file in .build after that; a job is done when
its stats file names the fingerprint of its inputs.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gazeprep.reports import Override
from gazeprep.samples import Picture, SampleConfig, make_sample
from gazeprep.schema import SCHEMA_VERSION, Case, Rejected, Split
from gazeprep.shards import INDEX_SCHEMA, Sample, canonical_json, sha256_of, to_disk, write_json, write_tar

WORK_FOLDER = ".build"  # beside the shards: lock, unfinished tars, stats of finished ones
LOCKED_PACKAGES = (
    "gazeprep-cogaze",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "opencv-python-headless",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "python-gdcm",
)
STATS_KEYS = {"fingerprint", "pictures", "rows", "rejected", "empty", "size", "sha256"}
INDEX_COLUMNS = set(INDEX_SCHEMA.names)
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
# glibc gives the memory of every full-size picture back and faults it in anew, a quarter of the time
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
WORKER_ENVIRONMENT = ONE_THREAD | KEPT_MEMORY


class BuildError(RuntimeError):
    """A build had to stop; finished shards stay and the same command goes on from there."""


@dataclass(frozen=True, eq=False)
class Job:
    """The inputs of one shard."""

    name: str  # such as train-00003
    split: Split
    cases: tuple[Case, ...]
    overrides: dict[str, Override]

    @property
    def shard(self) -> str:
        """Path of the tar below the output folder."""
        return f"{self.split}/{self.name}.tar"


@dataclass(frozen=True)
class JobReport:
    """What a finished job did."""

    name: str
    samples: int
    rejected: int
    rebuilt: bool


Watcher = Callable[[JobReport, int], None]  # called with each finished job and the number of jobs


def run_jobs(
    jobs: Sequence[Job], out: Path, config: SampleConfig, workers: int, watch: Watcher | None = None
) -> list[JobReport]:
    """Run jobs in a pool of spawned processes, each with one BLAS and OpenCV thread; raises BuildError."""
    workers = min(workers or os.cpu_count() or 1, max(len(jobs), 1))
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads and locks
    stop = context.RawValue("b", 0)  # without a lock, which a worker killed at the wrong moment would keep
    reports = []
    with _environment(WORKER_ENVIRONMENT), ProcessPoolExecutor(workers, context, _start_worker, (stop,)) as pool:
        calls = ((run_job, job, out, config) for job in jobs)
        try:
            for report in _as_finished(pool, calls, at_once=2 * workers):
                reports.append(report)
                if watch is not None:
                    watch(report, len(jobs))
        except BrokenProcessPool:
            raise BuildError(
                "a worker process died, often for lack of memory; finished shards stay: run the same command again, "
                "with fewer workers if it recurs (a script that calls build() needs its if __name__ == '__main__' line)"
            ) from None
        finally:
            stop.value = 1  # on an error or Ctrl-C, running jobs end at their next sample
            pool.shutdown(wait=True, cancel_futures=True)
    return reports


def _as_finished(pool: ProcessPoolExecutor, calls: Iterator[Any], at_once: int) -> Iterator[JobReport]:
    """Yield results as they come, with no more than `at_once` calls pickled and waiting."""
    running = _submit(pool, calls, at_once)
    while running:
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            yield future.result()
            running |= _submit(pool, calls, 1)


def _submit(pool: ProcessPoolExecutor, calls: Iterator[Any], count: int) -> set[Future[JobReport]]:
    """Hand calls to the pool with Ctrl-C held back: the workers it starts inherit that and leave it to us."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(*call) for call in islice(calls, count)}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker(stop: Any) -> None:
    """Prepare a worker: one thread, gone when the parent is; `stop.value` is not 0 where it should end early."""
    global _stop
    _stop = stop
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


_stop: Any = None


def _leave_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def run_job(job: Job, out: Path, config: SampleConfig) -> JobReport:
    """Write one shard and its stats, unless a finished one has the same fingerprint; raises BuildError."""
    pictures = {case.key: _digest(_picture_facts(case, config)) for case in job.cases}
    fingerprint = _digest(
        [job.shard, versions(), pictures, [_case_facts(c, job.overrides.get(c.study_id), config) for c in job.cases]]
    )
    tar_path, stats = out / job.shard, read_stats(job, out)
    if stats.get("fingerprint") == fingerprint and _is_whole(tar_path, stats):
        return JobReport(job.name, len(stats["rows"]), len(stats["rejected"]), rebuilt=False)
    with explained_os_errors():
        stored = _stored_pictures(tar_path, stats, pictures)
        stats = _write_shard(job, out, config, stored)
        write_json(_stats_path(job, out), stats | {"fingerprint": fingerprint, "pictures": pictures})
    return JobReport(job.name, len(stats["rows"]), len(stats["rejected"]), rebuilt=True)


def _write_shard(job: Job, out: Path, config: SampleConfig, stored: dict[str, Picture]) -> dict[str, Any]:
    """Write the job's tar, or none where every input is rejected; returns its stats."""
    rejected: list[Rejected] = []
    empty: Counter[str] = Counter()
    tar_path = out / job.shard
    # The process id keeps a worker that outlives a killed build for a moment away from the next build's file.
    unfinished = out / WORK_FOLDER / f"{job.name}.{os.getpid()}.unfinished"
    try:
        rows = write_tar(unfinished, _samples(job, config, stored, rejected, empty))
        to_disk(unfinished)
        size, digest = unfinished.stat().st_size, sha256_of(unfinished)
        _stats_path(job, out).unlink(missing_ok=True)  # what they say of the former tar is no longer true
        if rows:
            tar_path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(tar_path)
        else:
            tar_path.unlink(missing_ok=True)
    finally:
        unfinished.unlink(missing_ok=True)
    return {
        "rows": [{"shard": job.shard, **row} for row in rows],
        "rejected": [asdict(one) for one in rejected],
        "empty": dict(empty),
        "size": size if rows else 0,
        "sha256": digest if rows else "",
    }


def _samples(
    job: Job, config: SampleConfig, stored: dict[str, Picture], rejected: list[Rejected], empty: Counter[str]
) -> Iterator[Sample]:
    """Yield the samples of a job's cases, append the other cases to `rejected`, count empty sections in `empty`."""
    for case in job.cases:
        if _stop is not None and _stop.value:
            raise BuildError("stopped; finished shards stay, run the same command to go on")
        try:
            made = make_sample(case, config, job.overrides.get(case.study_id), stored.get(case.key))
        except Exception as error:
            error.add_note(f"while making sample {case.key}")
            raise
        if isinstance(made, Sample):
            empty.update(made.empty)
            yield made
        else:
            rejected.append(made)


def _is_whole(tar_path: Path, stats: dict[str, Any]) -> bool:
    """Tell by the size alone, which needs no reading: tars appear under their names only when whole."""
    if not stats["rows"]:
        return not tar_path.exists()
    return tar_path.exists() and tar_path.stat().st_size == stats["size"]


def _stats_path(job: Job, out: Path) -> Path:
    return out / WORK_FOLDER / f"{job.name}.json"


def read_stats(job: Job, out: Path) -> dict[str, Any]:
    """Read a finished job's stats; nothing where there are none, or damaged ones, or of another layout."""
    try:
        stats = json.loads(_stats_path(job, out).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(stats, dict) or stats.keys() != STATS_KEYS:
        return {}
    return stats if all(row.keys() == INDEX_COLUMNS for row in stats["rows"]) else {}


def _stored_pictures(tar_path: Path, stats: dict[str, Any], pictures: dict[str, str]) -> dict[str, Picture]:
    """Take the pictures that a changed config leaves alone from the shard's previous tar."""
    if not stats or not tar_path.exists() or sha256_of(tar_path) != stats["sha256"]:
        return {}
    stored = {}
    with tar_path.open("rb") as file:
        for row in stats["rows"]:
            if stats["pictures"].get(row["key"]) != pictures.get(row["key"]):
                continue
            members = {}
            for role in ("image", "json"):
                file.seek(row[f"{role}_offset"])
                members[role] = file.read(row[f"{role}_length"])
            stored[row["key"]] = _picture_of(members["image"], json.loads(members["json"]))
    return stored


def _picture_of(data: bytes, record: dict[str, Any]) -> Picture:
    return Picture(
        data=data,
        full_size=(record["image_width_px"], record["image_height_px"]),
        stored_size=(record["stored_width_px"], record["stored_height_px"]),
        scale_x=record["resize_scale_x"],
        offset_x=record["resize_offset_x"],
        scale_y=record["resize_scale_y"],
        offset_y=record["resize_offset_y"],
    )


# --- what a shard depends on


def _picture_facts(case: Case, config: SampleConfig) -> list[Any]:
    return [
        versions(),
        _facts(config.picture),
        _facts(case.image),
        _file_facts(Path(case.image.root) / case.image.path),
    ]


def _case_facts(case: Case, override: Override | None, config: SampleConfig) -> list[Any]:
    """List what a sample depends on beside its picture; options of gaze only where there is gaze."""
    facts: list[Any] = [_facts(case), _facts(override), list(config.maps.grid)]
    if case.report is not None:
        facts.append(_file_facts(Path(case.report.root) / case.report.path))
    if case.reading is not None:
        facts += [_file_facts(path) for path in case.reading.files()]
        facts += [_facts(config.maps), _facts(config.alignment), _facts(config.filters)]
    return facts


def _file_facts(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError:
        return [path.name, "absent"]
    # Reading rights count too: an input that was rejected for lack of them is tried again once it has them.
    return [path.name, status.st_size, status.st_mtime_ns, os.access(path, os.R_OK)]


def _facts(value: Any) -> Any:
    """Turn records into plain json: arrays as hashes, paths as names, so that moving the sources changes nothing."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: _facts(getattr(value, f.name)) for f in fields(value) if f.name != "root"}
        return [type(value).__name__, found]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, dict):
        return {str(name): _facts(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_facts(one) for one in value]
    return value.name if isinstance(value, Path) else value


def _digest(facts: Any) -> str:
    return hashlib.blake2b(canonical_json(facts).encode(), digest_size=16).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Return the versions that the bytes of a shard may depend on, of the packages that are installed."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "schema": str(SCHEMA_VERSION)}
    for package in LOCKED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def explained_os_errors() -> Iterator[None]:
    """Turn what the output folder can refuse into messages with a cure."""
    try:
        yield
    except OSError as error:
        causes = {
            errno.ENOSPC: "the disk of the output folder is full: free space",
            errno.EDQUOT: "your quota on the output disk is used up: free space",
            errno.EFBIG: "a shard is larger than a file may be here: raise the limit, or lower shard_samples",
            errno.EACCES: "no permission to write into the output folder: choose another --out",
            errno.EPERM: "no permission to write into the output folder: choose another --out",
            errno.EROFS: "the output folder is read-only: choose another --out",
            errno.ENOTDIR: "the output path runs through a file: choose another --out",
            errno.EEXIST: "the output path is a file: choose another --out",
        }
        unusual = f"the output folder cannot be written ({error.strerror or type(error).__name__})"
        cause = causes.get(error.errno or 0, unusual)
        raise BuildError(f"{cause}; finished shards stay, run the same command to go on") from None

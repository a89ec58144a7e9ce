"""One shard, one job: a pure function of its cases and the config.

A job's tar appears under its final name only when whole, its stats file in .build after that; a job is done when
its stats file names the fingerprint of its inputs.
"""

import errno
import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from gazeprep.remote_paths import RemotePath, file_version, located
from gazeprep.reports import Override
from gazeprep.samples import Picture, SampleConfig, make_sample
from gazeprep.schema import SCHEMA_VERSION, Case, Rejected, Split
from gazeprep.shards import INDEX_SCHEMA, Sample, canonical_json, json_bytes, write_tar
from gazeprep.stores import WORK_FOLDER, Store, open_store, sha256_of

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
TRIES = 3  # of a shard whose source files change while they are read
STATS_KEYS = {"fingerprint", "recipe", "pictures", "rows", "rejected", "empty", "size", "sha256"}
INDEX_COLUMNS = set(INDEX_SCHEMA.names)


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

    def overrides_of(self, case: Case) -> list[Override | None]:
        """Return how a person sectioned the reports of the case: its own and, if it has one, the earlier study's."""
        return [self.overrides.get(study) for study in studies_of(case)]


def studies_of(case: Case) -> list[str]:
    """Return the studies whose reports a sample of the case is made of."""
    return [case.study_id, *([] if case.prior is None else [case.prior.study_id])]


@dataclass(frozen=True)
class JobReport:
    """What a finished job did."""

    name: str
    samples: int
    rejected: int
    rebuilt: bool


class _SourcesChangedError(Exception):
    """Source files changed while a shard was made of them."""


_stop: Any = None  # its value is not 0 where the jobs of this process should end early


def end_early_at(stop: Any) -> None:
    """Let the jobs of this process end at their next sample once `stop.value` is not 0."""
    global _stop
    _stop = stop


def run_job(job: Job, out: Path | str, config: SampleConfig) -> JobReport:
    """Write one shard and its stats, unless a finished one has the same fingerprint; raises BuildError."""
    with explained_os_errors():
        store = open_store(out)
        for _ in range(TRIES):
            with suppress(_SourcesChangedError):
                return _run(job, store, config)
    raise BuildError(
        f"source files of {job.name} changed each of the {TRIES} times that they were read: wait for what writes into "
        "the source folders; finished shards stay, run the same command to go on"
    )


def _run(job: Job, store: Store, config: SampleConfig) -> JobReport:
    states = _states(job)
    pictures = {case.key: _digest(_picture_facts(case, config, states)) for case in job.cases}
    facts = [_case_facts(case, job.overrides_of(case), config, states) for case in job.cases]
    fingerprint = _digest([job.shard, versions(), pictures, facts])
    stats = read_stats(store, job.name)
    rebuilt = stats.get("fingerprint") != fingerprint or not is_whole(store, job.shard, stats)
    if rebuilt:
        stored = _stored_pictures(store, job.shard, stats, pictures)
        made_from = {"fingerprint": fingerprint, "recipe": recipe(job, config), "pictures": pictures}
        stats = _write_shard(job, store, config, stored, states) | made_from
        store.write(_stats_name(job.name), json_bytes(stats))
    return JobReport(job.name, len(stats["rows"]), len(stats["rejected"]), rebuilt)


def _write_shard(
    job: Job, store: Store, config: SampleConfig, stored: dict[str, Picture], states: "States"
) -> dict[str, Any]:
    """Write the job's tar, or none where every input is rejected; returns its stats.

    Raises _SourcesChangedError, and writes nothing, where the source files are not in these states at the end.
    """
    rejected: list[Rejected] = []
    empty: Counter[str] = Counter()
    with store.scratch(job.name) as unfinished:
        rows = write_tar(unfinished, _samples(job, config, stored, rejected, empty))
        if _states(job) != states:
            raise _SourcesChangedError
        size, digest = unfinished.stat().st_size, sha256_of(unfinished)
        store.remove(_stats_name(job.name))  # what they say of the former tar is no longer true
        if rows:
            store.publish(unfinished, job.shard)
        else:
            store.remove(job.shard)
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
            made = make_sample(case, config, job.overrides, stored.get(case.key))
        except Exception as error:
            error.add_note(f"while making sample {case.key}")
            raise
        if isinstance(made, Sample):
            empty.update(made.empty)
            yield made
        else:
            rejected.append(made)


def is_whole(store: Store, shard: str, stats: dict[str, Any]) -> bool:
    """Tell by the size alone, which needs no reading: tars appear under their names only when whole."""
    return store.size(shard) == (stats["size"] if stats["rows"] else None)


def _stats_name(name: str) -> str:
    return f"{WORK_FOLDER}/{name}.json"


def read_stats(store: Store, name: str) -> dict[str, Any]:
    """Read a finished job's stats; nothing where there are none, or damaged ones, or of another layout."""
    try:
        stats = json.loads(store.read(_stats_name(name)))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(stats, dict) or stats.keys() != STATS_KEYS:
        return {}
    return stats if all(row.keys() == INDEX_COLUMNS for row in stats["rows"]) else {}


def _stored_pictures(store: Store, shard: str, stats: dict[str, Any], pictures: dict[str, str]) -> dict[str, Picture]:
    """Take the pictures that a changed config leaves alone from the shard's previous tar."""
    rows = [row for row in stats.get("rows", ()) if stats["pictures"].get(row["key"]) == pictures.get(row["key"])]
    if not rows or store.size(shard) != stats["size"]:
        return {}
    stored = {}
    with store.open(shard) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != stats["sha256"]:
            return {}
        for row in rows:
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


def recipe(job: Job, config: SampleConfig) -> str:
    """Return a digest of everything that a shard depends on but the state of the source files."""
    cases = [[_facts(case), _facts(job.overrides_of(case))] for case in job.cases]
    with_gaze = any(case.reading is not None for case in job.cases)
    options = [
        _facts(config.picture),
        list(config.maps.grid),
        config.prior,
        *(_gaze_facts(config) if with_gaze else ()),
    ]
    return _digest([job.shard, versions(), options, cases])


@dataclass(frozen=True)
class FileState:
    """A source file at one moment: what a fingerprint says of it, and what tells that it was written since."""

    facts: tuple[Any, ...]
    version: tuple[Any, ...] = ()


States = dict[Path, FileState]


def _states(job: Job) -> States:
    """Look at every file that the samples of a job are made of."""
    paths = [path for case in job.cases for path in (_image_path(case), *_other_files(case))]
    return {path: _file_state(path) for path in dict.fromkeys(paths)}


def _image_path(case: Case) -> Path:
    return located(case.image.root) / case.image.path


def _other_files(case: Case) -> tuple[Path, ...]:
    refs = (case.report, case.prior.report if case.prior is not None else None)
    reports = tuple(located(ref.root) / ref.path for ref in refs if ref is not None)
    return reports if case.reading is None else (*reports, *case.reading.files())


def _picture_facts(case: Case, config: SampleConfig, states: States) -> list[Any]:
    return [versions(), _facts(config.picture), _facts(case.image), states[_image_path(case)].facts]


def _case_facts(case: Case, overrides: Sequence[Override | None], config: SampleConfig, states: States) -> list[Any]:
    """List what a sample depends on beside its picture; options of gaze only where there is gaze."""
    facts: list[Any] = [_facts(case), _facts(overrides), list(config.maps.grid), config.prior]
    facts += [states[path].facts for path in _other_files(case)]
    return facts if case.reading is None else [*facts, *_gaze_facts(config)]


def _gaze_facts(config: SampleConfig) -> list[Any]:
    return [_facts(config.maps), _facts(config.alignment), _facts(config.filters)]


def _file_state(path: Path) -> FileState:
    try:
        version = file_version(path)
    except OSError:
        return FileState((path.name, "absent"))
    if isinstance(path, RemotePath):
        return FileState((path.name, *version), version)
    # Reading rights count too: an input that was rejected for lack of them is tried again once it has them.
    return FileState((path.name, *version[:2], os.access(path, os.R_OK)), version)


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

"""The build against a plain loop of pydicom, OpenCV and webdataset, 2 workers against 1, and where the time goes.

python benchmarks/build.py [--steps]
"""

import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest.mock import patch

import cv2
import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from timing import memory_mib

from gazeprep.build import BuildConfig, build, jobs_of
from gazeprep.cases import Sources, collect
from gazeprep.executors import ONE_THREAD, WORKER_ENVIRONMENT
from gazeprep.images import encode, read_image, resize
from gazeprep.jobs import Job, JobReport, run_job
from gazeprep.samples import Picture, SampleConfig, Texts, align, case_context, pack
from gazeprep.schema import Case, Size
from gazeprep.shards import Sample, sha256_of, write_tar
from gazeprep.stores import WORK_FOLDER
from gazeprep.synthetic.corpus import write_corpus

CONFIG = SampleConfig()
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
MANY_WORKERS = 2
SPLIT_REPEATS = 3  # of the split by step


@dataclass(frozen=True)
class Corpus:
    """What to measure on; the shards are small, so that a few dozen cases make many."""

    name: str
    subjects: int
    full_size: bool
    shard_samples: int
    repeats: int


CORPORA = (
    Corpus("full size, 2544 x 3056 px", subjects=16, full_size=True, shard_samples=3, repeats=7),
    Corpus("small, about 640 x 760 px", subjects=64, full_size=False, shard_samples=8, repeats=5),
)


# --- the plain loop


def plain_loop(jobs: Sequence[Job], out: Path) -> dict[str, float]:
    """Write all cases with pydicom, OpenCV and webdataset; returns the seconds of each job's cases.

    Recordings, reports, maps and records come from gazeprep here too, so the difference is the pipeline alone.
    """
    import webdataset  # imports torch, which the build's workers must not do

    taken = {}
    shard_samples = max(len(job.cases) for job in jobs)
    with webdataset.ShardWriter(f"{out}/plain-%05d.tar", maxcount=shard_samples, verbose=0) as writer:
        for job in jobs:
            start = time.perf_counter()
            for case in job.cases:
                sample = plain_sample(case, job)
                members = {name.removeprefix(f"{case.key}."): data for _, name, data in sample.named_members()}
                writer.write({"__key__": case.key, **members})
            taken[job.name] = time.perf_counter() - start
    return taken


def plain_sample(case: Case, job: Job) -> Sample:
    """Pack one case, its picture decoded, resized and encoded as pydicom's documentation does it."""
    dicom = pydicom.dcmread(Path(case.image.root) / case.image.path)
    shades = apply_voi_lut(apply_modality_lut(dicom.pixel_array, dicom), dicom)
    if "VOILUTSequence" in dicom:
        black, white = 0, 2 ** dicom.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" in dicom:
        black, white = 0, 2**dicom.BitsStored - 1
    else:
        black, white = shades.min(), shades.max()
    gray = np.rint((shades - black) / (white - black) * 255).astype(np.uint8)
    if dicom.PhotometricInterpretation == "MONOCHROME1":
        gray = 255 - gray
    rows, cols = gray.shape
    scale = CONFIG.picture.resize.size_px / min(rows, cols)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(gray, (round(cols * scale), round(rows * scale)), interpolation=method)
    data = cv2.imencode(".png", small, PNG_OPTIONS)[1].tobytes()
    picture = picture_of(data, (cols, rows), small)
    text = case_context(case, job.overrides.get(case.study_id))
    gaze = align(case.reading.load(), picture.full_size, CONFIG) if case.reading is not None else None
    return pack(case, picture, Texts(text), gaze, CONFIG)


def picture_of(data: bytes, full_size: Size, small: np.ndarray) -> Picture:
    """Describe a resized image (rows, cols) and its encoded bytes as the samples hold it."""
    rows, cols = small.shape
    return Picture(data, full_size, (cols, rows), cols / full_size[0], 0.0, rows / full_size[1], 0.0)


# --- the build


@dataclass(frozen=True)
class Built:
    """One build: seconds of the whole call, and when each job was done."""

    whole_s: float
    workers: int
    reports: list[tuple[float, JobReport]]

    @property
    def steady_s(self) -> float:
        """Seconds while every worker was busy: from the first report of each to the last but those of the others."""
        return self.reports[-self.workers][0] - self.reports[self.workers - 1][0]

    @property
    def steady(self) -> list[JobReport]:
        """Jobs that were done in those seconds; the halves of jobs at both ends cancel out."""
        return [report for _, report in self.reports[self.workers : len(self.reports) - self.workers + 1]]

    @property
    def cases_per_s(self) -> float:
        """Cases a second without start and end."""
        return sum(report.samples for report in self.steady) / self.steady_s

    def times_faster(self, plain_s: dict[str, float]) -> float:
        """Return the plain loop's time for the steady jobs over the build's, without start and end."""
        return sum(plain_s[report.name] for report in self.steady) / self.steady_s


def timed_build(sources: Sources, out: Path, shard_samples: int, workers: int) -> Built:
    """Build into a folder and note when each job was done."""
    reports: list[tuple[float, JobReport]] = []
    config = BuildConfig(out, sources, CONFIG, shard_samples=shard_samples, workers=workers)
    start = time.perf_counter()
    report = build(config, watch=lambda job, _: reports.append((time.perf_counter(), job)))
    if report.samples != sum(job.samples for _, job in reports):
        raise RuntimeError(f"the build made {report.samples} samples, its jobs reported another number")
    return Built(time.perf_counter() - start, workers, reports)


# --- where the time goes


@dataclass
class Stopwatch:
    """Adds up the seconds of each step, by a clock of one's choice."""

    now: Callable[[], float]
    taken: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Add the time spent inside to a step."""
        start = self.now()
        yield
        self.taken[step] = self.taken.get(step, 0.0) + self.now() - start


def step_seconds(jobs: Sequence[Job], out: Path, now: Callable[[], float]) -> dict[str, float]:
    """Do what a worker does, one step at a time; returns the seconds of each step over all jobs."""
    clock = Stopwatch(now)
    (out / WORK_FOLDER).mkdir(parents=True)
    for job in jobs:
        samples = [timed_sample(case, job, clock) for case in job.cases]
        with clock("write tar, fsync, sha256"):
            path = out / f"{job.name}.tar"
            write_tar(path, iter(samples))
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sha256_of(path)
        with clock("whole job in one call"):
            run_job(job, out, CONFIG)
        with clock("fingerprint of inputs"):
            run_job(job, out, CONFIG)  # finished: nothing but the comparison is left
    return clock.taken


def timed_sample(case: Case, job: Job, clock: Stopwatch) -> Sample:
    """Make one sample as gazeprep.samples.make_sample does, each step under the clock."""
    gaze = recording = None
    with clock("decode"):
        image = read_image(case.image)
    with clock("resize"):
        small = resize(image, CONFIG.picture.resize).image
    with clock("encode"):
        data = encode(small, CONFIG.picture.format)
    picture = picture_of(data, image.shape[::-1], small)
    with clock("read report"):
        text = case_context(case, job.overrides.get(case.study_id))
    if case.reading is not None:
        with clock("load recording"):
            recording = case.reading.load()
        with clock("align and render"):
            gaze = align(recording, picture.full_size, CONFIG)
    with clock("pack"):
        return pack(case, picture, Texts(text), gaze, CONFIG)


# --- one corpus


@dataclass(frozen=True)
class Memory:
    """Memory of a worker before its first job, and at the most."""

    start_mib: float
    peak_mib: float


@dataclass
class Measured:
    """Repetitions of one corpus, paired by position."""

    plain_s: list[dict[str, float]] = field(default_factory=list)
    one: list[Built] = field(default_factory=list)
    many: list[Built] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    memory: Memory | None = None


@contextmanager
def process_with(environment: dict[str, str]) -> Iterator[ProcessPoolExecutor]:
    """Start one process with environment variables set and one OpenCV thread."""
    context = multiprocessing.get_context("spawn")
    with (
        patch.dict(os.environ, environment),
        ProcessPoolExecutor(1, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool,
    ):
        yield pool


def measure(sources: Sources, jobs: Sequence[Job], corpus: Corpus, folder: Path) -> Measured:
    """Run loop and builds in turn, so that whatever else the machine does meets all of them."""
    found = Measured()
    with process_with(ONE_THREAD) as plain:
        check_same_bytes(sources, jobs, corpus, folder, plain)  # warms the files and the process too
        for _ in range(corpus.repeats):
            with TemporaryDirectory(dir=folder) as out:
                found.plain_s.append(plain.submit(plain_loop, jobs, Path(out)).result())
            with TemporaryDirectory(dir=folder) as out:
                found.one.append(timed_build(sources, Path(out), corpus.shard_samples, 1))
            with TemporaryDirectory(dir=folder) as out:
                found.many.append(timed_build(sources, Path(out), corpus.shard_samples, MANY_WORKERS))
                found.again_s.append(timed_build(sources, Path(out), corpus.shard_samples, 1).whole_s)
    measure_steps(jobs, folder, found)
    return found


def measure_steps(
    jobs: Sequence[Job], folder: Path, found: Measured, now: Callable[[], float] = time.perf_counter
) -> None:
    """Split a worker's time by step, and note its memory."""
    with process_with(WORKER_ENVIRONMENT) as worker:  # what the build gives its workers
        start_mib = worker.submit(memory_mib, "VmRSS").result()
        for _ in range(SPLIT_REPEATS):
            with TemporaryDirectory(dir=folder) as out:
                found.steps.append(worker.submit(step_seconds, jobs, Path(out), now).result())
        found.memory = Memory(start_mib, worker.submit(memory_mib, "VmHWM").result())


def check_same_bytes(
    sources: Sources, jobs: Sequence[Job], corpus: Corpus, folder: Path, pool: ProcessPoolExecutor
) -> None:
    """Raise RuntimeError unless the loop's tars hold the members of the build's, byte for byte."""
    with TemporaryDirectory(dir=folder) as plain, TemporaryDirectory(dir=folder) as built:
        pool.submit(plain_loop, jobs, Path(plain)).result()
        timed_build(sources, Path(built), corpus.shard_samples, 1)
        loop, own = (members_below(Path(out)) for out in (plain, built))
    if loop != own:
        different = [name for name in loop.keys() | own.keys() if loop.get(name) != own.get(name)]
        raise RuntimeError(f"{len(different)} members differ between loop and build, such as {min(different)}")


def members_below(folder: Path) -> dict[str, bytes]:
    """Read every member of every tar below a folder."""
    found = {}
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def spread(values: Iterable[float]) -> str:
    """Write median, lowest and highest."""
    ordered = sorted(values)
    return f"{median(ordered):.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"


def report(corpus: Corpus, jobs: Sequence[Job], found: Measured) -> None:
    """Print one corpus."""
    cases = [case for job in jobs for case in job.cases]
    gaze = sum(case.reading is not None for case in cases)
    print(f"\n{corpus.name}: {len(cases)} cases, {gaze} with gaze, {len(jobs)} shards; {corpus.repeats} repetitions")
    if found.plain_s:
        print_steady(found, len(cases))
        print_whole(found)
    print_steps(found.steps, len(cases))
    if found.memory is not None:
        print(
            f"  memory of a worker: {found.memory.start_mib:.0f} MiB at its start, {found.memory.peak_mib:.0f} at most"
        )


def print_steady(found: Measured, cases: int) -> None:
    """Print the rates while all workers are busy."""
    one = [built.times_faster(plain) for built, plain in zip(found.one, found.plain_s, strict=True)]
    many = [built.times_faster(plain) for built, plain in zip(found.many, found.plain_s, strict=True)]
    rate = median(cases / sum(plain.values()) for plain in found.plain_s)
    print("  steady, workers started and all of them busy; ratios on the same shards:")
    print(f"    plain loop        {rate:6.1f} cases/s")
    rate = median(built.cases_per_s for built in found.one)
    print(f"    build, 1 worker   {rate:6.1f} cases/s   {spread(one)} x the plain loop")
    rate = median(built.cases_per_s for built in found.many)
    print(f"    build, {MANY_WORKERS} workers  {rate:6.1f} cases/s   {spread(ratios(many, one))} x 1 worker")


def print_whole(found: Measured) -> None:
    """Print the whole calls."""
    plain = [sum(one.values()) for one in found.plain_s]
    one = [built.whole_s for built in found.one]
    many = [built.whole_s for built in found.many]
    print("  whole call of build(): lists the inputs, starts workers, writes shards and index; the loop is warm:")
    print(f"    plain loop        {median(plain):6.2f} s")
    print(f"    build, 1 worker   {median(one):6.2f} s         {spread(ratios(plain, one))} x the plain loop")
    print(f"    build, {MANY_WORKERS} workers  {median(many):6.2f} s         {spread(ratios(one, many))} x 1 worker")
    print(f"    again, unchanged  {median(found.again_s):6.2f} s         the same start, nothing to write")


def ratios(dividends: Iterable[float], divisors: Iterable[float]) -> list[float]:
    """Divide pair by pair."""
    return [dividend / divisor for dividend, divisor in zip(dividends, divisors, strict=True)]


def print_steps(steps: Sequence[dict[str, float]], cases: int) -> None:
    """Print the steps, the longest first, as milliseconds a case, and cases a second if there were no other step."""
    per_case_ms = {name: median(one[name] for one in steps) / cases * 1e3 for name in steps[0]}
    whole_ms = per_case_ms.pop("whole job in one call")
    print(f"  one worker's time by step, ms a case over all cases (whole jobs in one call: {whole_ms:.2f} ms):")
    total_ms = sum(per_case_ms.values())
    for name, ms in sorted(per_case_ms.items(), key=lambda step: -step[1]):
        print(f"    {name:26}{ms:6.2f}   {ms / total_ms:4.0%}   {1e3 / ms:8.0f} cases/s")
    print(f"    {'all':26}{total_ms:6.2f}          {1e3 / total_ms:8.1f} cases/s")


def main() -> None:
    """Measure every corpus in one run and print ratios; with --steps a worker's memory and time on the core alone."""
    only_steps = "--steps" in sys.argv[1:]
    print(f"{os.cpu_count()} cores. Each figure is the median of repetitions taken in turn, (lowest to highest).")
    print("The plain loop is one process of pydicom, cv2 and webdataset.ShardWriter, one thread like each worker. It")
    print("takes recordings, reports, maps and json from gazeprep, and its tars hold the same members byte for byte.")
    for corpus in CORPORA:
        with TemporaryDirectory() as folder:
            written = write_corpus(
                Path(folder) / "corpus", corpus.subjects, full_size=corpus.full_size, workers=os.cpu_count() or 1
            )
            sources = Sources(written.reflacx, written.egd, written.mimic_cxr, written.mimic_cxr_jpg)
            jobs = jobs_of(collect(sources), corpus.shard_samples)
            found = Measured()
            if only_steps:
                measure_steps(jobs, Path(folder), found, time.process_time)
            else:
                found = measure(sources, jobs, corpus, Path(folder))
            report(corpus, jobs, found)


if __name__ == "__main__":
    main()

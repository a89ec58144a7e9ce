"""Writes a whole synthetic corpus: subject by subject, then the tables they share."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from gazeprep.schema import InputError
from gazeprep.sources.csv_table import SYNTHETIC_MARK
from gazeprep.synthetic import egd, mimic, reflacx, truth
from gazeprep.synthetic.cast import Role, role_of
from gazeprep.synthetic.model import Settings, Subject, make_subject
from gazeprep.synthetic.tables import Tables, write_json
from gazeprep.workers import worker_pool

FOLDERS = ("reflacx", "egd-cxr", "mimic-cxr", "mimic-cxr-jpg")


@dataclass(frozen=True)
class Corpus:
    """What was written where."""

    out: Path
    subjects: int
    studies: int
    images: int
    reflacx_readings: int
    reflacx_discarded: int
    egd_readings: int

    @property
    def reflacx(self) -> Path:
        """Folder of the REFLACX recordings."""
        return self.out / "reflacx"

    @property
    def egd(self) -> Path:
        """Folder of the EGD-CXR recordings."""
        return self.out / "egd-cxr"

    @property
    def mimic_cxr(self) -> Path:
        """Folder of the DICOM files, reports and lists."""
        return self.out / "mimic-cxr"

    @property
    def mimic_cxr_jpg(self) -> Path:
        """Folder of the JPEG files and tables."""
        return self.out / "mimic-cxr-jpg"

    @property
    def truth(self) -> Path:
        """Folder of the known answer, see read_truth."""
        return self.out / "truth"


@dataclass(frozen=True)
class _Written:
    """One subject's rows of the shared tables, and counts."""

    tables: Tables
    studies: int
    images: int
    readings: tuple[tuple[str, bool], ...]  # dataset, discarded


def write_corpus(
    out: Path,
    subjects: int,
    seed: int = 0,
    full_size: bool = False,
    raw_gaze: bool = False,
    workers: int = 1,
    earlier: float = 0.0,
) -> Corpus:
    """Write recordings of synthetic subjects in the layouts of REFLACX, EGD-CXR and MIMIC-CXR(-JPG).

    Every file is a function of the seed and the subject's number alone: neither more subjects nor more
    workers (0 for one per core) change what an earlier subject has. The first twelve subjects hold every special
    case. The folder appears when it is whole.
    earlier: share of subjects with one more study, before the others, to which the first one's report refers; images,
    gaze and dictation of the others stay as they are without.
    `out`/truth holds the known answer, see read_truth. Raises InputError where `out` is not empty.
    """
    out = Path(out)
    if not 0 <= earlier <= 1:
        raise InputError("bad_option", f"the share of earlier studies is {earlier}, must be from 0 to 1")
    if subjects < 1:
        raise InputError("bad_option", f"subjects is {subjects}; ask for at least 1")
    if out.exists() and any(out.iterdir()):
        raise InputError(
            "output_not_empty", "the output folder of the synthetic corpus is not empty; remove it or name another"
        )
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        settings = Settings(seed, full_size, raw_gaze, earlier)
        written = _write(unfinished, settings, subjects, workers or os.cpu_count() or 1)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    readings = [reading for subject in written for reading in subject.readings]
    return Corpus(
        out,
        subjects,
        sum(subject.studies for subject in written),
        sum(subject.images for subject in written),
        sum(dataset == "reflacx" for dataset, _ in readings),
        sum(discarded for _, discarded in readings),
        sum(dataset == "egd-cxr" for dataset, _ in readings),
    )


def _write(out: Path, settings: Settings, subjects: int, workers: int) -> list[_Written]:
    for folder in (out, *(out / name for name in FOLDERS)):
        write_json(folder / SYNTHETIC_MARK, _mark(settings, subjects))
    roles = [role_of(settings.seed, index) for index in range(subjects)]
    numbers = list(accumulate((role.egd for role in roles), initial=0))[:-1]
    tables, done = Tables(), []
    for written in _each(partial(_write_subject, settings, out), list(zip(roles, numbers, strict=True)), workers):
        tables.extend(written.tables)
        done.append(written)
    _write_tables(tables, settings, out)
    return done


def _mark(settings: Settings, subjects: int) -> dict[str, object]:
    note = "Drawn and written by gazeprep. No patient, no reader: not for any clinical use."
    return {"synthetic": True, "generator": "gazeprep synth", "note": note, "subjects": subjects, **asdict(settings)}


def _each(job: "partial[_Written]", parts: list[tuple[Role, int]], workers: int) -> Iterator[_Written]:
    if workers <= 1:
        yield from map(job, parts)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(job, parts, chunksize=4)


def _write_subject(settings: Settings, out: Path, part: tuple[Role, int]) -> _Written:
    role, number = part
    subject = make_subject(settings, role)
    mimic.write_images(settings, subject, out / "mimic-cxr", out / "mimic-cxr-jpg")
    mimic.write_reports(subject, out / "mimic-cxr")
    tables = mimic.table_rows(subject)
    tables.extend(reflacx.write_readings(settings, subject, out / "reflacx"))
    tables.extend(egd.write_reading(settings, subject, number, out / "egd-cxr"))
    tables.extend(truth.write_subject(settings, subject, out / "truth"))
    return _Written(tables, len(subject.studies), _count_images(subject), _readings(subject))


def _count_images(subject: Subject) -> int:
    return sum(len(study.images) for study in subject.studies)


def _readings(subject: Subject) -> tuple[tuple[str, bool], ...]:
    return tuple((reading.dataset, reading.discarded) for reading in subject.readings)


def _write_tables(tables: Tables, settings: Settings, out: Path) -> None:
    reflacx.write_metadata(tables, out / "reflacx")
    egd.write_tables(tables, out / "egd-cxr", raw_gaze=settings.raw_gaze)
    mimic.write_tables(tables, out / "mimic-cxr", out / "mimic-cxr-jpg")
    truth.write_tables(tables, settings, out / "truth")

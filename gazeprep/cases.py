"""Sources -> cases: which readings and images there are, whose image, report, labels and split each has."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gazeprep.priors import Priors
from gazeprep.remote_paths import located, source_folder
from gazeprep.reports import Override
from gazeprep.schema import (
    CHEXPERT_LABELS,
    LABEL_ABSENT,
    SPLITS,
    Case,
    Context,
    ImageRef,
    InputError,
    PriorStudy,
    Reading,
    Rejected,
    ReportRef,
)
from gazeprep.shards import sample_key
from gazeprep.sources import egd, mimic_eye, reflacx
from gazeprep.sources import table as tables
from gazeprep.sources.csv_table import folder_is_synthetic
from gazeprep.sources.mimic_cxr import MimicCxr, MimicImage, open_mimic
from gazeprep.splits import Assigned, Claim, HashSplit, assign_splits

MIMIC_DATASET = "mimic-cxr"
# A reading rejected for one of these was never one: its image counts as without gaze.
NO_READING = ("eye_tracking_discarded", "no_fixations", "fixations_missing")


@dataclass(frozen=True)
class Sources:
    """Where the inputs lie, any subset; each is the folder, or URL, that holds the release's own tables.

    reflacx, egd, mimic (DICOM and reports), mimic_jpg: source folders. mimic_eye: in place of those four. table:
    anyone's tables. section_overrides: a csv of hand-treated reports. prefer: which file where an image is there as
    both. views: the view positions to take, empty for all. labels: which MIMIC label table.
    """

    reflacx: Path | None = None
    egd: Path | None = None
    mimic: Path | None = None
    mimic_jpg: Path | None = None
    mimic_eye: Path | None = None
    table: tables.TableSource | None = None
    section_overrides: Path | None = None
    prefer: Literal["dicom", "jpg"] = "dicom"
    views: tuple[str, ...] = ()
    labels: Literal["chexpert", "negbio", "test_set"] = "chexpert"

    def __post_init__(self) -> None:
        for name in ("reflacx", "egd", "mimic", "mimic_jpg", "mimic_eye"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, source_folder(getattr(self, name)))
        if self.section_overrides is not None:
            object.__setattr__(self, "section_overrides", located(self.section_overrides))
        originals = {name: getattr(self, name) for name in ("reflacx", "egd", "mimic", "mimic_jpg")}
        if not any((*originals.values(), self.mimic_eye, self.table)):
            raise ValueError(f"no source is named; give at least one of {', '.join(originals)}, mimic_eye, table")
        twice = [name for name, folder in originals.items() if folder]
        if self.mimic_eye and twice:
            raise ValueError(f"mimic_eye holds what {', '.join(twice)} would give a second time; leave one of them out")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything the sources hold: cases to build, inputs rejected already, what else was noted with counts."""

    cases: tuple[Case, ...]
    rejected: tuple[Rejected, ...]
    noted: dict[str, int]
    overrides: dict[str, Override] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """An input before its split is known; `reading` or `mimic` or `image` may be None, not all."""

    dataset: str
    reading_id: str
    dicom_id: str
    study_id: str
    subject_id: str
    view_position: str
    source_split: str
    image: ImageRef | None
    reading: Reading | None
    mimic: MimicImage | None
    context: Context | None
    synthetic: bool
    source: str
    reject: str = ""

    @property
    def scope(self) -> str:
        """Subjects of different tables are different people, those of REFLACX, EGD and MIMIC are the same."""
        return f"{self.dataset}\0{self.subject_id}" if self.dataset.startswith("table-") else self.subject_id

    @property
    def split_origin(self) -> str:
        return "reflacx" if self.dataset == reflacx.DATASET else "source"

    @property
    def key(self) -> str:
        return sample_key(self.dataset, self.reading_id or self.dicom_id)


@dataclass(eq=False)
class _Studies:
    """The reports and earlier studies of MIMIC-CXR; each report is looked for once."""

    mimic: MimicCxr
    _reports: dict[str, ReportRef | None] = field(default_factory=dict)

    def report(self, study_id: str, subject_id: str) -> ReportRef | None:
        """Return where a study's report lies, None without one."""
        if study_id not in self._reports:
            self._reports[study_id] = self.mimic.report_ref(study_id, subject_id)
        return self._reports[study_id]

    def prior(self, study_id: str, subject_id: str) -> PriorStudy | None:
        """Return the subject's last study before, None without one or where they were not asked for."""
        priors = self.mimic.priors
        earlier = None if priors is None else priors.of_study.get((subject_id, study_id))
        if earlier is None:
            return None
        return PriorStudy(earlier.study_id, earlier.days, self.report(earlier.study_id, subject_id))


def collect(sources: Sources, by_hash: HashSplit | None = None, *, prior: bool = False) -> Inputs:
    """List every input of the sources as a case or as rejected; raises InputError on an unusable source.

    prior: find the last study before each, too.
    """
    eye = _open_mimic_eye(sources, prior)
    mimic = eye.mimic if eye is not None else _open_mimic(sources, prior)
    if prior and mimic is None:
        raise InputError(
            "file_missing",
            "sample.prior needs the dates of MIMIC-CXR's studies; name sources.mimic_jpg (or mimic, or mimic_eye), or "
            "leave sample.prior out",
        )
    readings = [*(eye.readings if eye is not None else ()), *_readings(sources)]
    candidates = [_of_reading(reading, mimic) for reading in readings]
    taken = {reading.dicom_id for reading in readings if reading.reject not in NO_READING}
    if mimic is not None:
        synthetic = any(
            folder_is_synthetic(root) for root in (sources.mimic, sources.mimic_jpg, sources.mimic_eye) if root
        )
        candidates += [_of_image(image, synthetic) for image in mimic.images if image.dicom_id not in taken]
    if sources.table is not None:
        candidates += [_of_table(image) for image in tables.images(sources.table) if image.image_id not in taken]
    if not candidates:
        raise InputError("no_inputs", "the sources name no reading and no image; check the folders and their tables")
    _check_keys(candidates)
    splits = assign_splits(
        (candidate.scope for candidate in candidates), list(_claims(candidates, mimic)), by_hash or HashSplit()
    )
    noted = _noted_tables(sources, mimic)
    noted.update(_noted_rows(eye.dropped_rows if eye is not None else {}))
    return _sorted_out(candidates, splits, sources, mimic, noted)


def _open_mimic_eye(sources: Sources, prior: bool) -> mimic_eye.MimicEye | None:
    if sources.mimic_eye is None:
        return None
    return mimic_eye.open_mimic_eye(
        sources.mimic_eye, overrides=sources.section_overrides, labels=sources.labels, prior=prior
    )


def _open_mimic(sources: Sources, prior: bool) -> MimicCxr | None:
    if sources.mimic is None and sources.mimic_jpg is None:
        return None
    return open_mimic(
        sources.mimic,
        sources.mimic_jpg,
        overrides=sources.section_overrides,
        prefer=sources.prefer,
        labels=sources.labels,
        prior=prior,
    )


def _readings(sources: Sources) -> list[Reading]:
    readings: list[Reading] = []
    if sources.reflacx is not None:
        readings += reflacx.readings(sources.reflacx)
    if sources.egd is not None:
        readings += egd.readings(sources.egd)
    if sources.table is not None:
        readings += tables.readings(sources.table)
    return readings


def _of_reading(reading: Reading, mimic: MimicCxr | None) -> _Candidate:
    of_mimic = mimic.by_dicom.get(reading.dicom_id) if mimic is not None and reading.image is None else None
    return _Candidate(
        dataset=reading.dataset,
        reading_id=reading.reading_id,
        dicom_id=reading.dicom_id,
        study_id=of_mimic.study_id if of_mimic else reading.study_id,
        subject_id=of_mimic.subject_id if of_mimic else reading.subject_id,
        view_position=of_mimic.view_position if of_mimic else reading.view_position,
        source_split=reading.split,
        image=of_mimic.image if of_mimic else reading.image,
        reading=reading,
        mimic=of_mimic,
        context=reading.context,
        synthetic=reading.synthetic,
        source=reading.source,
        reject=reading.reject,
    )


def _of_image(image: MimicImage, synthetic: bool) -> _Candidate:
    return _Candidate(
        dataset=MIMIC_DATASET,
        reading_id="",
        dicom_id=image.dicom_id,
        study_id=image.study_id,
        subject_id=image.subject_id,
        view_position=image.view_position,
        source_split="",
        image=image.image,
        reading=None,
        mimic=image,
        context=None,
        synthetic=synthetic,
        source="MIMIC-CXR",
    )


def _of_table(image: tables.TableImage) -> _Candidate:
    return _Candidate(
        dataset=image.dataset,
        reading_id="",
        dicom_id=image.image_id,
        study_id=image.study_id,
        subject_id=image.subject_id,
        view_position=image.view_position,
        source_split=image.split,
        image=image.image,
        reading=None,
        mimic=None,
        context=image.context,
        synthetic=image.synthetic,
        source=image.source,
    )


def _check_keys(candidates: Sequence[_Candidate]) -> None:
    counts = Counter(candidate.key for candidate in candidates)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise InputError(
            "duplicate_key",
            f"{len(twice)} keys stand twice (the first is {twice[0]}): two inputs of a dataset have one id, such as a "
            "reading named like another image; give each its own",
        )


def _claims(candidates: Sequence[_Candidate], mimic: MimicCxr | None) -> Iterator[Claim]:
    if mimic is not None:
        for subject, split in mimic.split_of_subject.items():
            yield Claim(subject, split, "mimic-cxr")
    for candidate in candidates:
        for split in SPLITS:
            if candidate.source_split == split:
                yield Claim(candidate.scope, split, candidate.split_origin)


def _sorted_out(
    candidates: Sequence[_Candidate],
    splits: dict[str, Assigned],
    sources: Sources,
    mimic: MimicCxr | None,
    noted: Counter[str],
) -> Inputs:
    cases, rejected = [], []
    studies = None if mimic is None else _Studies(mimic)
    noted = Counter(noted)
    for candidate in candidates:
        reason = candidate.reject or _why_not(candidate, sources)
        if reason:
            rejected.append(Rejected.of(candidate, reason))
            continue
        case = _case(candidate, splits[candidate.scope], studies)
        noted.update(_lacks(case))
        if mimic is not None and mimic.priors is not None:
            noted.update(_lacks_prior(case, mimic.priors, of_mimic=candidate.mimic is not None))
        cases.append(case)
    return Inputs(
        cases=tuple(cases),
        rejected=tuple(rejected),
        noted={what: count for what, count in sorted(noted.items()) if count},
        overrides=mimic.overrides if mimic is not None else {},
    )


def _noted_tables(sources: Sources, mimic: MimicCxr | None) -> Counter[str]:
    """Count the tables that are not there, and the rows of a table that belong to no input."""
    noted: Counter[str] = Counter(f"no {table}" for table in (mimic.absent_tables if mimic is not None else ()))
    if sources.reflacx is not None:
        noted["no REFLACX metadata table"] = reflacx.missing_tables(sources.reflacx)
    if sources.egd is not None:
        noted.update(_noted_rows(egd.dropped_rows(sources.egd)))
    return noted


def _noted_rows(dropped: dict[str, int]) -> dict[str, int]:
    return {f"EGD-CXR {what.replace('_', ' ')} left out": count for what, count in dropped.items()}


def _why_not(candidate: _Candidate, sources: Sources) -> str:
    if sources.views and candidate.view_position not in sources.views:
        return "view_not_wanted"
    return "" if candidate.image is not None else "image_missing"


def _case(candidate: _Candidate, split: Assigned, studies: _Studies | None) -> Case:
    assert candidate.image is not None
    reading = candidate.reading
    of_mimic = studies if candidate.mimic is not None else None
    study = (candidate.study_id, candidate.subject_id)
    size = reading.image_size if reading is not None else None
    return Case(
        key=candidate.key,
        dataset=candidate.dataset,
        dicom_id=candidate.dicom_id,
        study_id=candidate.study_id,
        subject_id=candidate.subject_id,
        reading_id=candidate.reading_id,
        split=split.split,
        split_origin=split.origin,
        view_position=candidate.view_position,
        image=candidate.image,
        image_size=size or (candidate.mimic.size if candidate.mimic is not None else None),
        reading=reading,
        report=of_mimic.report(*study) if of_mimic is not None else None,
        prior=of_mimic.prior(*study) if of_mimic is not None else None,
        context=candidate.context,
        labels=_labels(candidate, of_mimic.mimic if of_mimic is not None else None),
        synthetic=candidate.synthetic,
        source=candidate.source,
    )


def _labels(candidate: _Candidate, mimic: MimicCxr | None) -> dict[str, int]:
    """MIMIC's labels of the study; the reading's own where MIMIC has none."""
    absent = dict.fromkeys(CHEXPERT_LABELS, LABEL_ABSENT)
    labels = mimic.labels(candidate.study_id) if mimic is not None else absent
    own = candidate.reading.chexpert if candidate.reading is not None else None
    if own is not None and labels == absent:
        return {name: own.get(name, LABEL_ABSENT) for name in CHEXPERT_LABELS}
    return labels


def _lacks(case: Case) -> list[str]:
    lacks = []
    own = case.context or Context()
    if case.report is None and not (own.findings or own.impression):
        lacks.append("inputs without report")
    if not case.view_position:
        lacks.append("inputs without view position in a table")
    if not case.study_id:
        lacks.append("inputs without study id")
    if set(case.labels.values()) == {LABEL_ABSENT}:
        lacks.append("inputs without labels")
    return lacks


def _lacks_prior(case: Case, priors: Priors, *, of_mimic: bool) -> list[str]:
    study = (case.subject_id, case.study_id)
    if not of_mimic or study in priors.undated:
        return ["inputs whose study has no date or time"]
    if study in priors.tied:
        return ["inputs before whose study several began last, at the same time"]
    if case.prior is None:
        return ["inputs without an earlier study"]
    return [] if case.prior.report is not None else ["inputs whose earlier study has no report"]

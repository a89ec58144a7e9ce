"""The known answer: subjects, studies, images and readings, each a pure function of the seed and an index."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gazeprep.schema import BoolArray, Size
from gazeprep.synthetic.anatomy import GRID_STEP_PX, REGIONS, Chest, region_mask, to_grid
from gazeprep.synthetic.cast import Role
from gazeprep.synthetic.dictation import Dictation, speak
from gazeprep.synthetic.earlier import comparisons, earlier_findings
from gazeprep.synthetic.findings import DISEASES, HEART_WIDTHS, Finding, Kind, draw_findings, finding_mask, make_finding
from gazeprep.synthetic.reports import Form, Report, write_report
from gazeprep.synthetic.scanpath import Manner, Scanpath, Scene, look
from gazeprep.synthetic.wording import Statement, statements

FULL_SIZES: tuple[Size, ...] = ((2544, 3056), (2544, 3056), (3056, 2544), (2021, 2500), (2500, 2048))
SMALL_SHRINK = 4
CHF: tuple[Kind, ...] = ("cardiomegaly", "edema", "effusion")
PNEUMONIA: tuple[Kind, ...] = ("consolidation", "groundglass")

EARLIER = 2  # number of the study before the first one
YEARS = {0: 0, 1: 1, EARLIER: -1}  # from the first study, by number

Window = Literal["one", "many", "none", "voi_lut"]


@dataclass(frozen=True)
class Settings:
    """What a whole corpus shares; earlier: share of subjects whose first study's report refers to one before it."""

    seed: int = 0
    full_size: bool = False
    raw_gaze: bool = False
    earlier: float = 0.0

    @property
    def grid_step_px(self) -> int:
        """Side of a truth mask's cell in image px."""
        return GRID_STEP_PX[self.full_size]


@dataclass(frozen=True)
class Image:
    """One DICOM: what it shows and how it is stored."""

    dicom_id: str
    view: str  # as in the metadata table, may be blank
    chest: Chest
    bits_stored: int
    monochrome1: bool
    window: Window
    stream: int  # of its random numbers


@dataclass(frozen=True)
class Study:
    """One study: its findings, its report, its images, the first one frontal."""

    study_id: int
    date: int
    time: float
    findings: tuple[Finding, ...]
    report: Report
    images: tuple[Image, ...]
    procedure: str

    @property
    def portable(self) -> bool:
        """Whether it was taken at the bedside, from the front."""
        return "PORTABLE" in self.procedure


@dataclass(frozen=True, eq=False)
class Reading:
    """One reader's reading of an image."""

    dataset: Literal["reflacx", "egd-cxr"]
    reading_id: str
    phase: int
    discarded: bool
    findings: tuple[Finding, ...]  # those this reader saw
    certainty: dict[str, int]  # by finding name, 1..5
    dictation: Dictation
    scanpath: Scanpath
    other: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """One patient with everything recorded of them."""

    role: Role
    subject_id: int
    woman: bool
    age: int
    studies: tuple[Study, ...]
    readings: tuple[Reading, ...]  # all of the first image of the first study
    scene: Scene | None = field(repr=False)

    @property
    def group(self) -> str:
        """Folder of the subject's folder."""
        return f"p{str(self.subject_id)[:2]}"

    def folder(self, study: Study) -> str:
        """Folder of a study's images below the dataset root."""
        return f"files/{self.group}/p{self.subject_id}/s{study.study_id}"


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Return the random numbers of one part of one subject."""
    return np.random.default_rng([seed, index, stream])


def make_subject(settings: Settings, role: Role) -> Subject:
    """Make a subject from the seed and the subject's part."""
    rng = generator(settings.seed, role.index, 2)
    woman, age = bool(rng.random() < 0.5), int(rng.integers(25, 90))
    subject_id = 10_000_000 + (role.index * 7_368_787 + settings.seed * 104_729 + 1_234_567) % 10_000_000
    studies = _make_studies(settings, role, woman)
    scene = make_scene(settings, studies[0]) if role.phase or role.egd else None
    readings = tuple(_make_readings(settings, role, studies[0], scene)) if scene else ()
    return Subject(role, subject_id, woman, age, studies, readings, scene)


def _make_studies(settings: Settings, role: Role, woman: bool) -> tuple[Study, ...]:
    """Make the studies, the first one first; the one before it, where there is one, last."""
    drawn = generator(settings.seed, role.index, 3)
    before: tuple[Finding, ...] | None = None
    if drawn.random() < settings.earlier:
        first = _study_findings(generator(settings.seed, role.index, 10), role, role.flags)
        before = earlier_findings(drawn, first)
    numbers = (*range(role.studies), *(() if before is None else (EARLIER,)))
    return tuple(_make_study(settings, role, number, woman, before) for number in numbers)


def _make_study(settings: Settings, role: Role, number: int, woman: bool, before: tuple[Finding, ...] | None) -> Study:
    rng = generator(settings.seed, role.index, 10 + 20 * number)
    flags = role.flags if number == 0 else frozenset()
    findings = before if before is not None and number == EARLIER else _study_findings(rng, role, flags)
    procedure = _procedure(rng, flags)
    form: Form = role.form if number == 0 else "full"
    compared = comparisons(before, findings) if before is not None and number == 0 else None
    report = write_report(rng, findings, woman, procedure, form, compared)
    chest = _make_chest(rng, _image_size(rng, settings, flags), findings, woman)
    images = tuple(
        _make_image(rng, flags, view, replace(chest, lateral=lateral), 11 + 20 * number + i, settings, role)
        for i, (view, lateral) in enumerate(_views(rng, flags, procedure))
    )
    study_id = 50_000_000 + ((role.index * 4 + number) * 3_141_593 + settings.seed * 7_919) % 10_000_000
    year, month, day = 2110 + role.index % 80 + YEARS[number], int(rng.integers(1, 13)), int(rng.integers(1, 29))
    clock = float(rng.integers(0, 24) * 10_000 + rng.integers(0, 60) * 100 + rng.integers(0, 60))
    date = year * 10_000 + month * 100 + day
    return Study(study_id, date, clock + round(float(rng.random()), 3), findings, report, images, procedure)


def _study_findings(rng: np.random.Generator, role: Role, flags: frozenset[str]) -> tuple[Finding, ...]:
    kinds: tuple[Kind, ...] = (CHF if rng.random() < 0.5 else PNEUMONIA) if role.egd else ()
    findings = draw_findings(rng, kinds, 0.15)
    if "normal" in flags:
        return ()
    if "findings" in flags and not any(DISEASES[finding.kind].weight for finding in findings):
        findings += (make_finding(rng, "effusion"), make_finding(rng, "consolidation"))
    if "nodule" in flags:
        kept = tuple(finding for finding in findings if finding.kind not in ("nodule", "atelectasis"))
        nodule = make_finding(rng, "nodule")
        findings = (*kept[:1], replace(nodule, shape=(*nodule.shape[:3], 0.1)), make_finding(rng, "atelectasis"))
    return findings


def _image_size(rng: np.random.Generator, settings: Settings, flags: frozenset[str]) -> Size:
    width, height = FULL_SIZES[int(rng.integers(len(FULL_SIZES)))]
    if "odd_width" in flags:
        width, height = 2021, 2500
    if "landscape" in flags:
        width, height = 3056, 2544
    return (width, height) if settings.full_size else (round(width / SMALL_SHRINK), round(height / SMALL_SHRINK))


def _make_chest(rng: np.random.Generator, size: Size, findings: tuple[Finding, ...], woman: bool) -> Chest:
    width, height = size
    heart = float(rng.uniform(0.73, 0.84))
    for finding in findings:
        if finding.kind == "cardiomegaly":
            heart = HEART_WIDTHS[finding.severity] + float(rng.uniform(-0.04, 0.04))
    return Chest(
        size,
        scale_px=min(0.42 * width, 0.40 * height) * float(rng.uniform(0.92, 1.04)),
        centre_px=(width * (0.5 + float(rng.normal(0, 0.01))), height * (0.52 + float(rng.normal(0, 0.01)))),
        tilt_rad=float(rng.normal(0, 0.025)),
        dome=float(rng.random()),
        heart_width=heart,
        female=woman,
    )


def _procedure(rng: np.random.Generator, flags: frozenset[str]) -> str:
    if rng.random() < 0.45 and "lateral" not in flags:
        return "CHEST (PORTABLE AP)"
    return "CHEST (PA AND LAT)" if "lateral" in flags or rng.random() < 0.2 else "CHEST (SINGLE VIEW)"


def _views(rng: np.random.Generator, flags: frozenset[str], procedure: str) -> list[tuple[str, bool]]:
    frontal = "AP" if "AP" in procedure else "PA"
    views = [(frontal, False)]
    if "two_frontals" in flags or ("AP" in procedure and rng.random() < 0.1):
        views.append((frontal, False))
    if "LAT" in procedure:
        views.append(("" if "blank_view" in flags else str(rng.choice(["LATERAL", "LL"])), True))
    return views


def _make_image(
    rng: np.random.Generator,
    flags: frozenset[str],
    view: str,
    chest: Chest,
    stream: int,
    settings: Settings,
    role: Role,
) -> Image:
    own = generator(settings.seed, role.index, stream)
    digits = own.bytes(20).hex()
    windows: tuple[Window, ...] = ("one", "many", "none") if role.phase else ("one", "many", "none", "voi_lut")
    weights = [0.66, 0.25, 0.09] if role.phase else [0.6, 0.22, 0.09, 0.09]
    window: Window = windows[int(rng.choice(len(windows), p=weights))]
    for flag, forced in (("multi_window", "many"), ("no_window", "none"), ("voi_lut", "voi_lut")):
        window = forced if flag in flags else window  # type: ignore[assignment]
    bits = 14 if "bits14" in flags or rng.random() < 0.3 else 12
    dicom_id = "-".join(digits[i : i + 8] for i in range(0, 40, 8))
    return Image(dicom_id, view, chest, bits, "monochrome1" in flags, window, stream)


def make_scene(settings: Settings, study: Study) -> Scene:
    """Return what can be looked at in a study's first image: its findings and the named regions."""
    chest, step = study.images[0].chest, settings.grid_step_px
    masks = {name: region_mask(chest, name) for name in REGIONS}
    masks |= {finding.name: finding_mask(finding, chest) for finding in study.findings}
    return Scene(chest.size, step, {name: to_grid(mask, step) for name, mask in masks.items()})


def finding_grids(settings: Settings, study: Study, image: Image) -> dict[str, BoolArray]:
    """Return the truth masks of a study's findings in one of its frontal images."""
    step = settings.grid_step_px
    return {finding.name: to_grid(finding_mask(finding, image.chest), step) for finding in study.findings}


def _make_readings(settings: Settings, role: Role, study: Study, scene: Scene) -> list[Reading]:
    readings = []
    readers = 5 if role.phase in (1, 2) else int(role.phase == 3)
    for reader in range(readers):
        number = ((role.index * 8 + reader) * 7_919 + settings.seed * 101) % 1_000_000
        discarded = reader == 4
        trial = f"P{role.phase}{role.trial:02}R{number:06}"
        readings.append(_make_reading(settings, role, study, scene, (trial, 100 + reader), discarded=discarded))
    if role.egd:
        readings.append(_make_reading(settings, role, study, scene, ("", 110)))
    return readings


def _make_reading(
    settings: Settings, role: Role, study: Study, scene: Scene, name: tuple[str, int], *, discarded: bool = False
) -> Reading:
    reading_id, stream = name
    rng = generator(settings.seed, role.index, stream)
    egd = not reading_id
    missed = rng.random(len(study.findings)) < (0.0 if "findings" in role.flags or role.phase == 3 else 0.05)
    seen = tuple(finding for finding, miss in zip(study.findings, missed, strict=True) if not miss)
    said = statements(rng, seen, int(rng.integers(4, 6) if egd else rng.integers(4, 9)))
    if "quirky_words" in role.flags:
        said = [_punctuated(statement) for statement in said]
    first_word = float(rng.uniform(1.8, 4.0) if egd else np.clip(rng.lognormal(np.log(8), 0.45), 3.0, 30.0))
    first_word = max(first_word, 8.0) if "strays" in role.flags else first_word
    dictation = speak(rng, said, first_word, "quirky_words" in role.flags)
    scanpath = look(rng, scene, dictation, _manner(rng, role, scene.size, egd))
    certainty = {
        finding.name: int(rng.choice([4, 5], p=[0.3, 0.7]) if finding.certain else rng.integers(2, 5))
        for finding in seen
    }
    other = str(rng.choice(["", "scoliosis", "tortuous aorta|old granuloma"], p=[0.85, 0.1, 0.05]))
    if "other_text" in role.flags:
        other = "surgical clips, left axilla|scoliosis"
    dataset: Literal["reflacx", "egd-cxr"] = "egd-cxr" if egd else "reflacx"
    identity = study.images[0].dicom_id if egd else reading_id
    return Reading(dataset, identity, role.phase, discarded, seen, certainty, dictation, scanpath, other)


def _punctuated(statement: Statement) -> Statement:
    """Say `atelectasis / scarring`, the slash as a word of its own, and a comma after a nodule."""
    text = statement.text.replace("telectasis / scarring", "telectasis").replace("telectasis", "telectasis / scarring")
    if " nodule " in text:
        text = f"{text[:-1]}, new."
    return replace(statement, text=text)


def _manner(rng: np.random.Generator, role: Role, size: Size, egd: bool) -> Manner:
    width, height = size
    strays: tuple[tuple[float, float], ...]
    if egd:
        strays = ((-0.8 * width, 0.4 * height), (1.05 * width, 0.5 * height))
        return Manner(median_s=0.4, strays=strays if "strays" in role.flags or rng.random() < 0.3 else ())
    strays = ((1.02 * width, 0.4 * height), (-0.03 * width, 0.5 * height), (0.5 * width, -0.02 * height))
    if "strays" in role.flags:
        return Manner(zoom=1.0, buttons=1.0, strays=strays)
    return Manner(zoom=0.25, buttons=0.6, strays=strays[:1] if rng.random() < 0.3 else ())

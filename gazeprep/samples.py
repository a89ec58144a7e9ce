"""Case -> sample: load the recording, report and image, align, render, and fill the record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gazeprep.fixations import Filters, mark_fixations
from gazeprep.images import GrayImage, ImageFormat, Resize, encode, read_image, resize, view_position
from gazeprep.maps import render_batch
from gazeprep.reports import Override, context, empty_sections
from gazeprep.schema import (
    PRIOR_SCHEMA_VERSION,
    SCHEMA_VERSION,
    BoolArray,
    Case,
    Context,
    Fixations,
    FloatArray,
    InputError,
    PriorContext,
    Recording,
    Rejected,
    Sentence,
    Size,
)
from gazeprep.shards import Sample, canonical_json, gaze_member, json_member, maps_member
from gazeprep.sources.mimic_cxr import read_report
from gazeprep.transcripts import Alignment, Span, sentence_weights, sentences_of, time_windows

MIN_EDGE_PX = 8  # of a picture; below stand placeholders, such as the one pixel of a failed export
MAX_ASPECT = 16  # of a picture; its short edge is brought to hundreds of pixels, so a strip would become huge


@dataclass(frozen=True)
class MapConfig:
    """The stored maps: grid (rows, cols) over the whole image; sigma in degrees, or in image px for all readings.

    px_per_deg stands in for recordings without a resolution (EGD-CXR); None takes the source's published
    sigma in px (150 for EGD-CXR).
    """

    grid: tuple[int, int] = (37, 37)
    sigma_deg: float = 1.0
    sigma_px: float | None = None
    px_per_deg: float | None = None

    def __post_init__(self) -> None:
        for name in ("sigma_deg", "sigma_px", "px_per_deg"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"maps.{name} is {value}, must be positive")
        if min(self.grid) < 1:
            raise ValueError(f"maps.grid is {self.grid}, expected (rows, cols), both at least 1")


@dataclass(frozen=True)
class PictureConfig:
    """The stored picture: how it is resized and compressed."""

    resize: Resize = field(default_factory=Resize)
    format: ImageFormat = "png"
    jpg_quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.jpg_quality <= 100:
            raise ValueError(f"picture.jpg_quality is {self.jpg_quality}, must be 1 to 100")


@dataclass(frozen=True)
class SampleConfig:
    """What a sample holds, beyond its inputs; prior: what the report of the subject's last study before says, too."""

    picture: PictureConfig = field(default_factory=PictureConfig)
    maps: MapConfig = field(default_factory=MapConfig)
    alignment: Alignment = field(default_factory=Alignment)
    filters: Filters = field(default_factory=Filters)
    prior: bool = False

    @property
    def schema_version(self) -> int:
        """The schema version of these samples."""
        return PRIOR_SCHEMA_VERSION if self.prior else SCHEMA_VERSION


@dataclass(frozen=True, eq=False)
class Picture:
    """The stored picture of a case: encoded bytes, full size and stored size, edges a full -> stored affine."""

    data: bytes
    full_size: Size
    stored_size: Size
    scale_x: float
    offset_x: float
    scale_y: float
    offset_y: float


@dataclass(frozen=True, eq=False)
class Gaze:
    """The aligned gaze of a case: maps (1 + S, rows, cols), the whole reading first, then each sentence."""

    recording: Recording
    fixations: Fixations
    sentences: tuple[Sentence, ...]
    windows: tuple[Span, ...]
    maps: npt.NDArray[np.float32]
    sigma_px: float  # 0 where sigma is in degrees
    assumptions: dict[str, Any]  # where the config stood in for the recording, for the provenance

    @property
    def has_mass(self) -> BoolArray:
        """Which maps (1 + S,) are not all zero."""
        return np.asarray(self.maps.max(axis=(1, 2)) > 0)


@dataclass(frozen=True, eq=False)
class Texts:
    """What the reports say: that of the case's study, and that of the last study before; None where not asked for."""

    own: Context
    prior: PriorContext | None = None


def make_sample(
    case: Case, config: SampleConfig, overrides: Mapping[str, Override] | None = None, picture: Picture | None = None
) -> Sample | Rejected:
    """Load a case and pack it; an input that cannot be used comes back as Rejected with its reason.

    `overrides`: how a person sectioned reports, by study. `picture` is the case's stored picture from an earlier build,
    which spares decoding it again.
    """
    overrides = overrides or {}
    try:
        case = case if case.view_position else replace(case, view_position=view_position(case.image))
        picture = picture or stored_picture(read_image(case.image), config.picture)
        recording = case.reading.load() if case.reading is not None else None
        text = case_context(case, overrides.get(case.study_id))
        prior = prior_context(case, overrides) if config.prior else None
        gaze = align(recording, picture.full_size, config) if recording is not None else None
        _check_size(case, picture)
    except InputError as error:
        return Rejected.of(case, error.reason, str(error))
    except (OSError, UnicodeDecodeError) as error:
        what = f"a source file of this case cannot be read ({type(error).__name__}); check it and its permissions"
        unreadable = InputError("source_unreadable", what)
        return Rejected.of(case, unreadable.reason, str(unreadable))
    return pack(case, picture, Texts(text, prior), gaze, config)


def _check_size(case: Case, picture: Picture) -> None:
    """Gaze is in pixels of the full-size image: a copy made smaller would put it in the wrong place."""
    if case.reading is None or case.image_size is None or case.image_size == picture.full_size:
        return
    width, height = picture.full_size
    raise InputError(
        "image_size_mismatch",
        f"the image file is {width} x {height} px, its table says {case.image_size[0]} x {case.image_size[1]}: gaze "
        "is in full-size pixels; use the release's own image, not a resized copy",
    )


def stored_picture(image: GrayImage, config: PictureConfig) -> Picture:
    """Resize and encode a full-size image (rows, cols); raises InputError on one that is a mere strip or dot."""
    rows, cols = image.shape
    if max(rows, cols) > MAX_ASPECT * min(rows, cols):
        raise InputError(
            "image_too_narrow", f"the image is {cols} x {rows} px, no radiograph; remove it from the input"
        )
    if min(rows, cols) < MIN_EDGE_PX:
        raise InputError(
            "image_too_small",
            f"the image is {cols} x {rows} px, no edge may have fewer than {MIN_EDGE_PX}; remove it from the input",
        )
    resized = resize(image, config.resize)
    stored_rows, stored_cols = resized.image.shape
    return Picture(
        data=encode(resized.image, config.format, jpg_quality=config.jpg_quality),
        full_size=(cols, rows),
        stored_size=(stored_cols, stored_rows),
        scale_x=resized.affine.a_x,
        offset_x=resized.affine.b_x,
        scale_y=resized.affine.a_y,
        offset_y=resized.affine.b_y,
    )


def case_context(case: Case, override: Override | None) -> Context:
    """Return the sections of the case's report; its source's own context where it has no report."""
    if case.report is None:
        return case.context or Context()
    return context(read_report(case.report), override)


def prior_context(case: Case, overrides: Mapping[str, Override]) -> PriorContext:
    """Return what the report of the last study before the case's says; nothing where there is none."""
    prior = case.prior
    if prior is None:
        return PriorContext()
    try:
        told = context(read_report(prior.report), overrides.get(prior.study_id)) if prior.report else Context()
    except InputError as error:
        raise InputError(error.reason, f"of the earlier study: {error}") from None
    return PriorContext(prior.study_id, prior.days, told.findings, told.impression, told.last_paragraph)


def align(recording: Recording, image_size: Size, config: SampleConfig) -> Gaze:
    """Mark fixations, find each sentence's share of them and render all maps on the stored grid."""
    fixations = _with_resolution(recording.fixations, config.maps)
    filters = config.filters.applicable_to(fixations)
    fixations = mark_fixations(fixations, filters, image_size)
    rule = config.alignment
    sentences = sentences_of(recording.words, full_stop=recording.full_stop, drop_tail=rule.drop_tail)
    weights = np.vstack([fixations.duration_s[None], sentence_weights(fixations, sentences, recording.words, rule)])
    sigma_px = _sigma_px(recording, fixations, config.maps)
    maps = render_batch(
        fixations,
        weights * fixations.kept,
        image_size,
        config.maps.grid,
        sigma_deg=config.maps.sigma_deg,
        sigma_px=sigma_px,
        dtype="float64",
    )
    return Gaze(
        recording=recording,
        fixations=fixations,
        sentences=sentences,
        windows=time_windows(sentences, recording.words, rule),
        maps=maps.astype(np.float32),
        sigma_px=sigma_px or 0.0,
        assumptions=_assumptions(recording, config, filters),
    )


def _assumptions(recording: Recording, config: SampleConfig, filters: Filters) -> dict[str, Any]:
    """Say what the config assumed of a recording, and which of its filters the recording has no columns for."""
    found: dict[str, Any] = {}
    if recording.fixations.px_per_deg_x is None and config.maps.px_per_deg is not None:
        found["px_per_deg_assumed"] = config.maps.px_per_deg
    skipped = [f.name for f in fields(Filters) if getattr(filters, f.name) != getattr(config.filters, f.name)]
    return found | ({"filters_not_applicable": skipped} if skipped else {})


def _with_resolution(fixations: Fixations, maps: MapConfig) -> Fixations:
    if maps.px_per_deg is None or fixations.px_per_deg_x is not None:
        return fixations
    resolution: FloatArray = np.full(len(fixations), maps.px_per_deg)
    return replace(fixations, px_per_deg_x=resolution, px_per_deg_y=resolution)


def _sigma_px(recording: Recording, fixations: Fixations, maps: MapConfig) -> float | None:
    """Width in image px where the config or the recording fixes one, None where it is in degrees."""
    if maps.sigma_px is not None or fixations.px_per_deg_x is not None:
        return maps.sigma_px
    if recording.sigma_px is None:
        raise InputError(
            "no_resolution",
            "the recording has no px_per_deg, so a degree has no size on its image; set maps.px_per_deg or "
            "maps.sigma_px",
        )
    return recording.sigma_px


def pack(case: Case, picture: Picture, texts: Texts, gaze: Gaze | None, config: SampleConfig) -> Sample:
    """Write a loaded case as the four members and the index row."""
    record = sample_record(case, picture, texts, gaze, config)
    if gaze is None:
        columns = gaze_member(Fixations.empty(), picture.full_size, (), (), ())
        maps = np.zeros((1, *config.maps.grid), dtype=np.float32)
    else:
        columns = gaze_member(gaze.fixations, picture.full_size, gaze.recording.words, gaze.sentences, gaze.windows)
        maps = gaze.maps
    members = {
        "image": picture.data,
        "gaze": columns,
        "maps": maps_member(maps),
        "json": json_member(record),
    }
    wordless = gaze is not None and not gaze.recording.words
    empty = (*empty_sections(texts.own), *(["words"] if wordless else []))
    return Sample(case.key, config.picture.format, members, index_row(case, gaze), empty)


def index_row(case: Case, gaze: Gaze | None) -> dict[str, Any]:
    """Return the case's row of the index, without shard, offsets and lengths."""
    return {
        "split": case.split,
        "split_origin": case.split_origin,
        "dataset": case.dataset,
        "subject": case.subject_id,
        "study": case.study_id,
        "dicom": case.dicom_id,
        "reading": case.reading_id,
        "view_position": case.view_position,
        "synthetic": case.synthetic,
        "has_gaze": bool(gaze is not None and gaze.has_mass[0]),
        "fixations": len(gaze.fixations) if gaze is not None else 0,
        "sentences": len(gaze.sentences) if gaze is not None else 0,
        "sentences_with_gaze": int(gaze.has_mass[1:].sum()) if gaze is not None else 0,
        "labels": list(case.labels.values()),
    }


def sample_record(
    case: Case, picture: Picture, texts: Texts, gaze: Gaze | None, config: SampleConfig
) -> dict[str, Any]:
    """Return the record of <key>.json: the same keys and types in every sample, nothing null, nothing empty."""
    row = index_row(case, gaze)
    return {
        "schema_version": config.schema_version,
        "key": case.key,
        "dataset": case.dataset,
        "dicom_id": case.dicom_id,
        "study_id": case.study_id,
        "subject_id": case.subject_id,
        "reading_id": case.reading_id,
        "split": case.split,
        "split_origin": case.split_origin,
        "view_position": case.view_position,
        "synthetic": case.synthetic,
        **asdict(texts.own),
        **(asdict(texts.prior) if texts.prior is not None else {}),
        "labels": case.labels,
        "has_gaze": row["has_gaze"],
        "transcript": gaze.recording.transcript if gaze is not None else "",
        "sentences": "\n".join(sentence.text for sentence in gaze.sentences) if gaze is not None else "",
        **_geometry(picture, config.picture),
        **_recipe(gaze, config),
        "annotations": canonical_json([asdict(drawn) for drawn in gaze.recording.annotations] if gaze else []),
        "provenance": canonical_json(_provenance(case, gaze)),
    }


def _geometry(picture: Picture, config: PictureConfig) -> dict[str, Any]:
    return {
        "image_width_px": picture.full_size[0],
        "image_height_px": picture.full_size[1],
        "stored_width_px": picture.stored_size[0],
        "stored_height_px": picture.stored_size[1],
        "resize_rule": config.resize.rule,
        "resize_scale_x": picture.scale_x,
        "resize_offset_x": picture.offset_x,
        "resize_scale_y": picture.scale_y,
        "resize_offset_y": picture.offset_y,
    }


def _recipe(gaze: Gaze | None, config: SampleConfig) -> dict[str, Any]:
    """Say how the maps were made; neutral values without gaze, so that no option of gaze changes such a sample."""
    rows, cols = config.maps.grid
    recipe = {"map_rows": rows, "map_cols": cols}
    if gaze is None:
        return recipe | {
            "map_recipe": "none",
            "map_sigma_deg": 0.0,
            "map_sigma_px": 0.0,
            "alignment": "{}",
            "fixation_marks": "{}",
        }
    mark = gaze.fixations.mark
    assert mark is not None
    return recipe | {
        "map_recipe": "integral",
        "map_sigma_deg": 0.0 if gaze.sigma_px else float(config.maps.sigma_deg),
        "map_sigma_px": float(gaze.sigma_px),
        "alignment": canonical_json(asdict(config.alignment)),
        "fixation_marks": canonical_json({str(i): str(mark[i]) for i in np.flatnonzero(mark != "")}),
    }


def _provenance(case: Case, gaze: Gaze | None) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        "source": case.source,
        "image_source": case.image.source,
        "image_path": case.image.path,
        "synthetic": case.synthetic,
    }
    if case.report is not None:
        found["report_path"] = case.report.member or case.report.path
    if gaze is not None:
        found["recording"] = gaze.recording.notes | gaze.assumptions
    return found

"""What one sample must be: members that can be read, of the right types, that agree with each other and the index."""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from gazeprep.exports.rendering import StoredGaze
from gazeprep.fixations import on_image
from gazeprep.images import decode
from gazeprep.maps import FloatMap
from gazeprep.reports import empty_sections
from gazeprep.schema import (
    CHEXPERT_LABELS,
    FIXATION_COLUMNS,
    LABEL_ABSENT,
    PRIOR_SCHEMA_VERSION,
    SCHEMA_VERSION,
    SENTENCE_COLUMNS,
    SPLITS,
    WORD_COLUMNS,
    Context,
    InputError,
    PriorContext,
)
from gazeprep.shards import LoadedSample, fixations_from_member, json_member, read_npy, read_npz

Columns = Mapping[str, npt.NDArray[Any]]
Record = dict[str, Any]

MAP_TOLERANCE = 1e-6  # of the map's peak: float32 keeps 1e-7
SUM_TOLERANCE = 1e-5
NUMBER_TYPES = {"on_image": "bool", "word_sentence": "int32"}  # of the npz; the rest is float64, words are text
INTS = (
    "schema_version",
    "image_width_px",
    "image_height_px",
    "stored_width_px",
    "stored_height_px",
    "map_rows",
    "map_cols",
)
FLOATS = (
    "resize_scale_x",
    "resize_offset_x",
    "resize_scale_y",
    "resize_offset_y",
    "map_sigma_deg",
    "map_sigma_px",
)
TEXTS = (
    "key",
    "dataset",
    "dicom_id",
    "study_id",
    "subject_id",
    "reading_id",
    "split",
    "split_origin",
    "view_position",
    *(section.name for section in fields(Context)),
    "transcript",
    "sentences",
    "resize_rule",
    "map_recipe",
    "alignment",
    "fixation_marks",
    "annotations",
    "provenance",
)
RECORD_TYPES: dict[str, type] = {
    **dict.fromkeys(INTS, int),
    **dict.fromkeys(FLOATS, float),
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(("synthetic", "has_gaze"), bool),
    "labels": dict,
}
PRIOR_TYPES: dict[str, type] = {one.name: type(one.default) for one in fields(PriorContext)}
RECORD_TYPES_OF = {SCHEMA_VERSION: RECORD_TYPES, PRIOR_SCHEMA_VERSION: RECORD_TYPES | PRIOR_TYPES}  # by schema version
JSON_TEXTS = {"alignment": dict, "fixation_marks": dict, "annotations": list, "provenance": dict}
ROW_OF_RECORD = {"subject": "subject_id", "study": "study_id", "dicom": "dicom_id", "reading": "reading_id"} | {
    name: name for name in ("key", "split", "split_origin", "dataset", "view_position", "synthetic", "has_gaze")
}
# What damaged bytes raise on their way through the readers.
DAMAGE = (OSError, ValueError, LookupError, TypeError, EOFError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Problem:
    """What is wrong and where: shard is a file of the folder, key a sample's; the text holds no source id."""

    kind: str
    what: str
    shard: str = ""
    key: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.shard, self.key, f"{self.kind}:", self.what) if part)


class WrongSampleError(ValueError):
    """A sample is not what it must be; the message holds no report text and no source id."""


@dataclass(frozen=True, eq=False)
class CheckedSample:
    """What is wrong with a sample, and which sections (or words) it lacks; None where its json cannot be read."""

    problems: tuple[Problem, ...]
    empty: tuple[str, ...] | None


@dataclass(frozen=True)
class Recipe:
    """What the manifest's config says of every sample; alignment as json."""

    map_rows: int
    map_cols: int
    resize_rule: str
    image_format: str
    alignment: str
    schema_version: int = SCHEMA_VERSION


def check_sample(members: Mapping[str, bytes], row: Mapping[str, Any] | None, recipe: Recipe) -> CheckedSample:
    """Check the four members of a sample by role, against each other, its row of the index and the recipe."""
    found: list[Problem] = []

    def attempt(kind: str, check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except (WrongSampleError, InputError) as error:
            found.append(Problem(kind, str(error)))
        except DAMAGE as error:  # their messages may quote what they read
            found.append(Problem(kind, f"cannot be read ({type(error).__name__})"))
        return None

    record = attempt("json", read_record, members["json"])
    gaze = attempt("gaze", read_gaze, members["gaze"])
    maps = attempt("maps", read_maps, members["maps"])
    if record is not None:
        attempt("image", check_image, members["image"], record)
        attempt("recipe", check_recipe, record, recipe)
    if record is not None and row is not None:
        attempt("index", check_row, row, record)
    if record is not None and gaze is not None:
        attempt("gaze", check_gaze, gaze, record)
    if record is not None and gaze is not None and maps is not None:
        attempt("index", check_counts, row, gaze, maps)
        attempt("maps", check_maps, maps, gaze, record)
    return CheckedSample(
        tuple(dict.fromkeys(found)), None if record is None or gaze is None else empty_of(record, gaze)
    )


def _wrong_unless(right: Any, what: str) -> None:
    if not right:
        raise WrongSampleError(what)


def empty_of(record: Record, gaze: Columns) -> tuple[str, ...]:
    """Return which sections of the report, or words, a sample lacks, as a build counts them."""
    sections = empty_sections(Context(**{section.name: record[section.name] for section in fields(Context)}))
    wordless = record["reading_id"] != "" and not len(gaze["word"])
    return (*sections, *(["words"] if wordless else []))


# --- the json


def read_record(data: bytes) -> Record:
    """Read a sample's json; raises WrongSampleError where it is not of this schema."""
    record = json.loads(data)
    _wrong_unless(isinstance(record, dict), "is no json object")
    version = record.get("schema_version")
    known = " and ".join(map(str, RECORD_TYPES_OF))
    _wrong_unless(
        type(version) is int and version in RECORD_TYPES_OF,
        f"has schema version {version!r:.20}, this gazeprep reads {known}",
    )
    types = RECORD_TYPES_OF[version]
    odd = sorted(record.keys() ^ types.keys())
    _wrong_unless(not odd, f"lacks fields, or has others than docs/data.md lists: {len(odd)} of them")
    for name, kind in types.items():
        _wrong_unless(type(record[name]) is kind, f"{name} is no {kind.__name__}")
    _wrong_unless(data == json_member(record), "is not written as canonical json: its bytes were changed")
    _check_values(record)
    return record


def _check_values(record: Record) -> None:
    _wrong_unless(np.isfinite([record[name] for name in FLOATS]).all(), "holds a number that is not finite")
    _wrong_unless(record["split"] in SPLITS, f"split is none of {', '.join(SPLITS)}")
    labels = record["labels"]
    _wrong_unless(set(labels) == set(CHEXPERT_LABELS), "labels are not the 14 of CheXpert")
    _wrong_unless(
        all(value in (1, 0, -1, LABEL_ABSENT) for value in labels.values()), "a label is none of 1, 0, -1, -2"
    )
    for name, kind in JSON_TEXTS.items():
        _wrong_unless(isinstance(json.loads(record[name]), kind), f"{name} holds no json {kind.__name__}")
    sizes = [record[name] for name in INTS]
    _wrong_unless(min(sizes) >= 1, "a size is not positive")
    if record["schema_version"] == PRIOR_SCHEMA_VERSION:
        _check_prior(record)


def _check_prior(record: Record) -> None:
    if not record["prior_study"]:
        odd = [one.name for one in fields(PriorContext) if record[one.name] != one.default]
        _wrong_unless(not odd, f"no earlier study, but {', '.join(odd)}")
        return
    days = record["prior_days"]
    _wrong_unless(np.isfinite(days) and days > 0, "prior_days does not tell a time before the study")
    _wrong_unless(record["prior_study"] != record["study_id"], "prior_study is the study itself")


def check_recipe(record: Record, recipe: Recipe) -> None:
    """Compare a sample's json with the config of the whole folder; raises WrongSampleError."""
    wanted = {name: getattr(recipe, name) for name in ("map_rows", "map_cols", "resize_rule", "schema_version")}
    wanted |= {"alignment": recipe.alignment} if record["reading_id"] else {}
    odd = [name for name, value in wanted.items() if record[name] != value]
    _wrong_unless(not odd, f"made by another {', '.join(odd)} than the folder's config says")


# --- the image


def check_image(data: bytes, record: Record) -> None:
    """Decode a sample's picture and compare its size; raises WrongSampleError."""
    try:
        image = decode(data)
    except InputError as error:  # whose cure is that of a source's file
        raise WrongSampleError(f"cannot be decoded ({error.reason})") from None
    stored = (record["stored_height_px"], record["stored_width_px"])
    _wrong_unless(image.shape == stored, f"is {image.shape} rows and columns, its json says {stored}")


# --- the npz


def read_gaze(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Read a sample's columns; raises WrongSampleError where one is missing, of another type or pickled."""
    try:
        gaze = read_npz(data)
    except ValueError as error:
        _wrong_unless("allow_pickle" not in str(error), "holds a pickled object, which runs code when it is loaded")
        raise
    names = (*FIXATION_COLUMNS, *WORD_COLUMNS, *SENTENCE_COLUMNS)
    _wrong_unless(tuple(gaze) == names, f"holds other columns than {', '.join(names)}")
    for name, column in gaze.items():
        _wrong_unless(column.ndim == 1, f"{name} has {column.ndim} dimensions, expected 1")
        kind = "text" if column.dtype.kind == "U" else str(column.dtype)
        wanted = "text" if name == "word" else NUMBER_TYPES.get(name, "float64")
        _wrong_unless(kind == wanted, f"{name} is {kind}, expected {wanted}")
    for group in (FIXATION_COLUMNS, WORD_COLUMNS, SENTENCE_COLUMNS):
        _wrong_unless(len({len(gaze[name]) for name in group}) == 1, f"columns from {group[0]} on have several lengths")
    return gaze


def check_gaze(gaze: Columns, record: Record) -> None:
    """Compare the columns with each other and the json; raises WrongSampleError or InputError."""
    fixations = fixations_from_member(gaze)
    size = (record["image_width_px"], record["image_height_px"])
    _wrong_unless(np.array_equal(gaze["on_image"], on_image(fixations, size)), "on_image contradicts the positions")
    for span in ("word", "sentence"):
        start, end = gaze[f"{span}_start_s"], gaze[f"{span}_end_s"]
        _wrong_unless(np.isfinite([start, end]).all() and (start <= end).all(), f"a {span} ends before it starts")
    sentences = record["sentences"].split("\n") if record["sentences"] else []
    count = len(gaze["sentence_start_s"])
    _wrong_unless(len(sentences) == count, f"has {count} sentences, its json {len(sentences)}")
    owners = gaze["word_sentence"][gaze["word_sentence"] >= 0]
    whole = np.array_equal(np.unique(owners), np.arange(count)) and (np.diff(owners) >= 0).all()
    _wrong_unless(whole and (gaze["word_sentence"] >= -1).all(), "word_sentence does not deal the words out in order")
    _wrong_unless(record["reading_id"] or not len(fixations), "has fixations, its json no reading")


# --- the maps


def read_maps(data: bytes) -> npt.NDArray[np.float32]:
    """Read a sample's maps; raises WrongSampleError where they are no float32 (1 + S, rows, cols)."""
    maps: npt.NDArray[np.float32] = read_npy(data)
    _wrong_unless(maps.dtype == np.float32, f"are {maps.dtype}, expected float32")
    _wrong_unless(maps.ndim == 3, f"have {maps.ndim} dimensions, expected 3")
    return maps


def check_maps(maps: npt.NDArray[np.float32], gaze: Columns, record: Record) -> None:
    """Compare the maps with the json and with a fresh render of the fixations; raises WrongSampleError."""
    wanted = (1 + len(gaze["sentence_start_s"]), record["map_rows"], record["map_cols"])
    _wrong_unless(maps.shape == wanted, f"have shape {maps.shape}, expected {wanted}")
    _wrong_unless(np.isfinite(maps).all() and (maps >= 0).all(), "hold a value that is negative or not finite")
    sums = maps.sum(axis=(1, 2), dtype=np.float64)
    odd = np.flatnonzero((sums != 0) & (np.abs(sums - 1) > SUM_TOLERANCE))
    _wrong_unless(not len(odd), f"map {odd[:1]} sums to {sums[odd[:1]]}, expected 1 or all zero")
    _wrong_unless(record["has_gaze"] == bool(sums[0]), "has_gaze contradicts the whole-reading map")
    fresh = fresh_maps(gaze, record)
    off = np.abs(maps - fresh).max(axis=(1, 2)) / np.maximum(fresh.max(axis=(1, 2)), 1e-30)
    worst = int(off.argmax())
    _wrong_unless(
        off[worst] <= MAP_TOLERANCE,
        f"map {worst} is off by {off[worst]:.2g} of its peak from a fresh render of the stored fixations",
    )


def fresh_maps(gaze: Columns, record: Record) -> FloatMap:
    """Render a sample's maps (1 + S, rows, cols) from its stored fixations by its stored recipe."""
    grid = (record["map_rows"], record["map_cols"])
    if record["map_recipe"] == "none":
        return np.zeros((1, *grid))
    _wrong_unless(record["map_recipe"] == "integral", "map_recipe is neither integral nor none")
    sample = LoadedSample(record["key"], b"", dict(gaze), np.zeros((0, *grid), np.float32), record)
    return StoredGaze.of(sample).maps(grid, dtype="float64")


# --- the row of the index


def check_row(row: Mapping[str, Any], record: Record) -> None:
    """Compare a sample's row of the index with its json; raises WrongSampleError."""
    odd = [name for name, field in ROW_OF_RECORD.items() if row[name] != record[field]]
    _wrong_unless(not odd, f"says otherwise than the json: {', '.join(odd)}")
    labels = [record["labels"][name] for name in CHEXPERT_LABELS]
    _wrong_unless(list(row["labels"]) == labels, "says otherwise than the json: labels")


def check_counts(row: Mapping[str, Any] | None, gaze: Columns, maps: npt.NDArray[np.float32]) -> None:
    """Compare the counts of a row of the index with the members; raises WrongSampleError."""
    if row is None:
        return
    counts = {
        "fixations": len(gaze["x_px"]),
        "sentences": len(gaze["sentence_start_s"]),
        "sentences_with_gaze": int((maps[1:].max(axis=(1, 2)) > 0).sum()) if len(maps) > 1 else 0,
    }
    odd = [f"{name} {row[name]}, not {count}" for name, count in counts.items() if row[name] != count]
    _wrong_unless(not odd, f"counts {', '.join(odd)}")

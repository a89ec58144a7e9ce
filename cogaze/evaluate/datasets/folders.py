"""A dataset's folder: its tables under any of their names, its pictures, and which of them lack each other."""

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from gazeprep.schema import ImageRef

Missing = Literal["refuse", "note"]  # what becomes of rows whose picture is not there
Notes = Counter[str]

MAX_TEXT_BYTES = 2**28  # of a list or json: ten times the largest

_KINDS: dict[str, Literal["dicom", "raster"]] = {
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
}
_PAGE = "docs/benchmarks.md shows the expected tree"


def release_folder(root: Path, dataset: str) -> Path:
    """Return the dataset's folder as a path; raises ValueError where there is none."""
    if not Path(root).is_dir():
        raise ValueError(f"{dataset}: its folder does not exist or is a file; check the path for a typing error")
    return Path(root)


def find_file(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files that is there, as it is or as .gz, None without any."""
    candidates = (root / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def need_file(root: Path, names: Sequence[str], dataset: str) -> Path:
    """Return the first of these files that is there; raises ValueError naming them where none is."""
    found = find_file(root, names)
    if found is None:
        raise ValueError(f"{dataset}: {' or '.join(names)} is not in the folder; add it ({_PAGE})")
    return found


def text_of(path: Path, kind: str) -> str:
    """Return the text of a file, unpacked where it is .gz; raises ValueError, calling it `kind`, where it is none."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise OSError
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{kind} cannot be read as text of at most {MAX_TEXT_BYTES} bytes ({type(error).__name__}); download it "
            "again, and check its permissions"
        ) from None


def pictures_below(root: Path, folders: Sequence[str], source: str) -> dict[str, ImageRef]:
    """Return the pictures in and below these folders of the root, by their path relative to the root.

    `folders` that are not there hold none; hidden files, which macOS leaves beside pictures, are none.
    """
    found: dict[str, ImageRef] = {}
    for folder in folders:
        for path in _files(root / folder):
            relative = path.relative_to(root).as_posix()
            kind = _KINDS.get(path.suffix.lower())
            if kind is not None and not path.name.startswith("."):
                found[relative] = ImageRef(str(root), relative, kind, source)
    return found


def pictures_at(root: Path, paths: Iterable[str], source: str) -> dict[str, ImageRef]:
    """Return those of these pictures that are there, by their paths relative to the root."""
    kinds = ((path, _KINDS[Path(path).suffix.lower()]) for path in paths if (root / path).is_file())
    return {path: ImageRef(str(root), path, kind, source) for path, kind in kinds}


def by_stem(pictures: Mapping[str, ImageRef], dataset: str) -> dict[str, ImageRef]:
    """Return pictures by their names without folder and ending; raises ValueError where two have the same name."""
    found = {Path(relative).name.rsplit(".", 1)[0]: ref for relative, ref in pictures.items()}
    if len(found) < len(pictures):
        raise ValueError(
            f"{dataset}: {len(pictures) - len(found)} of {len(pictures)} pictures have the name of another one in "
            "another folder or format; keep one of each"
        )
    return found


def with_picture(
    ids: Collection[str], pictures: Mapping[str, ImageRef], missing: Missing, dataset: str, notes: Notes
) -> list[str]:
    """Return the ids that have a picture, in order; counts those without, and pictures without a row, in the notes.

    Raises ValueError for ids without a picture where `missing` is refuse, or if no id has one.
    """
    if missing not in ("refuse", "note"):
        raise ValueError(f"{dataset}: missing is {missing!r}, must be 'refuse' or 'note'")
    kept = [one for one in ids if one in pictures]
    lacking = len(ids) - len(kept)
    if not kept or (lacking and missing == "refuse"):
        cure = "" if not kept else ", or give missing='note' to go on without them"
        raise ValueError(
            f"{dataset}: {lacking} of the {len(ids)} images that the table lists are not in the folder ({_PAGE}); "
            f"add them{cure}"
        )
    notes["images of the table that are not in the folder"] += lacking
    notes["images in the folder that no table lists"] += len(pictures) - len(kept)
    return kept


def note_count(notes: Notes, what: str, found: int, published: int) -> None:
    """Note how far a count is from the published one: part of a release, or another release."""
    notes[f"{what} too many or too few, published are {published}"] += abs(found - published)


def counted(notes: Notes) -> dict[str, int]:
    """Return the notes that have a count."""
    return {reason: count for reason, count in notes.items() if count}


def _files(folder: Path) -> Iterator[Path]:
    for above, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(above, name)

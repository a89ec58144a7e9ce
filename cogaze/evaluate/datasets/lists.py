"""Which image is in which part: split lists of one id a line, as BenchX has them, or a hash of the subject."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cogaze.evaluate.datasets.folders import Notes, note_count, release_folder, text_of
from cogaze.evaluate.records import EvalImage
from gazeprep.splits import HashSplit, hash_split

Parts = dict[str, tuple[EvalImage, ...]]
FILES = {
    "train": ("train.txt", "train_list.txt"),
    "train_1": ("train_1.txt",),
    "train_10": ("train_10.txt",),
    "validate": ("val.txt", "val_list.txt"),
    "test": ("test.txt", "test_list.txt"),
}
SHARES = {"train_1": 0.01, "train_10": 0.1}


def as_it_stands(line: str) -> str:
    """Return a line as the id that it is."""
    return line


@dataclass(frozen=True)
class ListForm:
    """What a dataset's lists look like: the id of a line, and the published number of ids by part."""

    id_of: Callable[[str], str] = as_it_stands
    published: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, Sequence[str]] = field(default_factory=lambda: FILES)


def read_lists(folder: Path, form: ListForm, dataset: str, notes: Notes) -> dict[str, list[str]]:
    """Return the ids of each part that has a list; a list of another length than the published one is noted.

    Raises ValueError where the folder is missing, holds none of the lists or no test.txt.
    """
    folder = release_folder(folder, f"{dataset} lists")
    found = {}
    for part, names in form.files.items():
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            found[part] = [form.id_of(line) for line in read_lines(path)]
    if "test" not in found:
        names = ", ".join(names[0] for names in form.files.values())
        raise ValueError(f"{dataset}: the folder of lists has no {form.files['test'][0]}; it may hold {names}")
    for part, ids in found.items():
        note_count(notes, f"ids in the list of {part}", len(ids), form.published.get(part, len(ids)))
    return found


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list without spaces around, blank ones left out; raises ValueError if it is no text."""
    lines = text_of(path, f"the list {path.name}").splitlines()
    return [line.strip() for line in lines if line.strip()]


def write_list(path: Path, ids: Iterable[str]) -> None:
    """Write ids one a line, in the form that `read_lists` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")


def listed_parts(
    images: Mapping[str, EvalImage],
    lists: Mapping[str, Sequence[str]],
    known: Collection[str],
    dataset: str,
    notes: Notes,
) -> Parts:
    """Return the images of each list in its order; those whose picture is not there, and in no list, are noted.

    images: by the id that the lists use. known: the ids of the dataset's table. Raises ValueError where a list names
    what the table does not.
    """
    parts: Parts = {}
    for part, ids in lists.items():
        unknown = len(set(ids) - set(known))
        if unknown:
            raise ValueError(
                f"{dataset}: {unknown} of {len(ids)} ids in the list of {part} are not in the dataset's table; take "
                "lists and tables of the same release, one id per line without a header"
            )
        parts[part] = tuple(images[one] for one in ids if one in images)
        notes[f"listed in {part}, but not in the folder"] += len(ids) - len(parts[part])
    notes["images in no list"] += len(set(images).difference(*lists.values()))
    return {part: chosen for part, chosen in parts.items() if chosen}


def hashed_parts(images: Iterable[EvalImage], by_hash: HashSplit) -> Parts:
    """Return train, validate, test and shares of train by a hash of each subject, or of the image without one."""
    parts: dict[str, list[EvalImage]] = defaultdict(list)
    for one in images:
        parts[hash_split(one.subject or one.id, by_hash)].append(one)
    return with_shares({part: tuple(parts[part]) for part in ("train", "validate", "test") if parts[part]}, by_hash)


def hash_origin(by_hash: HashSplit, unit: str = "subject") -> str:
    """Return in words what `hashed_parts` does."""
    return (
        f"a hash of the {unit}, seed {by_hash.seed}: {by_hash.validate:.0%} validate, {by_hash.test:.0%} test, "
        "the rest train"
    )


def with_shares(parts: Parts, by_hash: HashSplit) -> Parts:
    """Add train_1 and train_10 to parts that have train: 1 % and 10 % of its subjects, at least one.

    By a hash, so that train_1 lies in train_10; of a set with one finding, the same share of each of its labels.
    """
    if "train" not in parts:
        return parts
    groups: dict[int, list[str]] = defaultdict(list)
    kind = {one.subject or one.id: _kind(one) for one in parts["train"]}
    for subject in sorted(kind, key=lambda subject: _position(subject, by_hash.seed)):
        groups[kind[subject]].append(subject)
    shared = dict(parts)
    for part, share in SHARES.items():
        chosen = {one for group in groups.values() for one in group[: math.ceil(share * len(group))]}
        shared[part] = tuple(one for one in parts["train"] if (one.subject or one.id) in chosen)
    return shared


def _kind(image: EvalImage) -> int:
    return image.labels[0] if len(image.labels) == 1 else 0


def _position(subject: str, seed: int) -> bytes:
    return hashlib.blake2b(f"share\0{seed}\0{subject}".encode(), digest_size=8).digest()

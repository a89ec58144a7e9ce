"""What an evaluation is run on: images with labels, boxes and masks, in parts that share nobody."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from gazeprep.schema import ImageRef, Rectangle

Task = Literal["binary", "multi-class", "multi-label"]
UNKNOWN = -1  # of a label
APART = ("train", "validate", "test")
INSIDE_TRAIN = ("train_1", "train_10")


@dataclass(frozen=True)
class LabelledBox:
    """A finding's rectangle, as edges in px of the original image."""

    box: Rectangle
    label: str = ""


@dataclass(frozen=True)
class EvalImage:
    """An image and what is known of it; id and subject are the dataset's own and are told to nobody.

    labels: one for each class of its set, 1, 0 or UNKNOWN. subject: "" where the dataset has none. runs: a mask as
    run lengths, column by column from the end of the run before, several of which are joined (SIIM-ACR's form).
    report: the text that belongs to it. sex: "M", "F" or "".
    """

    id: str
    image: ImageRef
    labels: tuple[int, ...]
    subject: str = ""
    boxes: tuple[LabelledBox, ...] = ()
    runs: tuple[str, ...] = ()
    report: str = ""
    view: str = ""
    age_years: int | None = None
    sex: str = ""


@dataclass(frozen=True)
class LabelledText:
    """A sentence that stands for a class of its set, named by its place among the classes."""

    text: str
    label: int


@dataclass(frozen=True, eq=False)
class EvalSet:
    """A benchmark dataset, ready to be evaluated on.

    parts: by name, of which train, validate and test share no image and no subject, and train_1 and train_10 lie in
    train. notes: what was left out or doubtful, by reason, with counts. origin: who says which image is in which part.
    texts: sentences that the dataset itself brings, to retrieve with. Raises ValueError where parts overlap, or an
    image has another number of labels than the set classes; a binary set's classes are the one finding.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    parts: Mapping[str, tuple[EvalImage, ...]]
    notes: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""
    texts: tuple[LabelledText, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.parts) - {*APART, *INSIDE_TRAIN}
        if unknown:
            raise ValueError(f"{self.name}: parts {sorted(unknown)}, must be of {[*APART, *INSIDE_TRAIN]}")
        for part, images in self.parts.items():
            wrong = sum(len(one.labels) != len(self.classes) for one in images)
            if wrong:
                raise ValueError(f"{self.name}: {wrong} images of {part} have not {len(self.classes)} labels")
            twice = len(images) - len({one.id for one in images})
            if twice:
                raise ValueError(f"{self.name}: {twice} images are listed twice in {part}; list each one once")
        self._refuse_overlaps()

    def fingerprints(self) -> dict[str, str]:
        """Return 16 hex digits for each part: of the same images with the same labels, in any order, the same."""
        found = {}
        for part, images in self.parts.items():
            lines = sorted(f"{one.id}\t{one.labels}\n" for one in images)
            found[part] = hashlib.blake2b("".join(lines).encode(), digest_size=8).hexdigest()
        return found

    def _refuse_overlaps(self) -> None:
        present = [name for name in APART if name in self.parts]
        for one, other in combinations(present, 2):
            for what, ids in (("images", _ids), ("subjects", _subjects)):
                shared = len(ids(self.parts[one]) & ids(self.parts[other]))
                if shared:
                    raise ValueError(
                        f"{self.name}: {shared} {what} are in {one} and in {other}; a model must not be judged on what "
                        "it was trained or selected on: correct the split lists"
                    )
        for part in INSIDE_TRAIN:
            if part in self.parts and "train" in self.parts:
                outside = len(_ids(self.parts[part]) - _ids(self.parts["train"]))
                if outside:
                    raise ValueError(
                        f"{self.name}: {outside} images of {part} are not in train; correct the split lists"
                    )


def _ids(images: tuple[EvalImage, ...]) -> set[str]:
    return {one.id for one in images}


def _subjects(images: tuple[EvalImage, ...]) -> set[str]:
    return {one.subject for one in images if one.subject}

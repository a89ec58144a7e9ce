"""Images as a saved model gets them: on its canvas, by its view, with what is known of the patient if that is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from cogaze.data.dataset import CONTEXT, PRIOR, VIEW_NUMBER, VIEWS, sections_of
from cogaze.data.transforms import DRAWS, Record, View, ViewConfig, view_of
from cogaze.evaluate.records import EvalImage
from gazeprep.images import GrayImage, read_image
from gazeprep.maps import Grid

# OpenCV's threads do not cross a fork, and pictures are read by forked workers.
cv2.setNumThreads(1)

ADULT_YEARS = 18
WORDS = {("M", True): "man", ("F", True): "woman", ("M", False): "boy", ("F", False): "girl"}


@dataclass(frozen=True, eq=False)
class Canvas:
    """One image ready for a model, pixels (H, W) uint8.

    view: its affine leads from px of the picture that was read to px of the canvas. patch_mask (P,): which patches
    show image. view_position counts VIEWS. context: what may fill in the context prompt, by the names of its
    placeholders; a shard without earlier studies has no PRIOR.
    """

    pixels: GrayImage
    view: View
    patch_mask: npt.NDArray[np.bool_]
    view_position: int
    context: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys((*CONTEXT, PRIOR), ""))


@dataclass(frozen=True)
class CanvasReader:
    """What brings images onto the canvas of a model with `grid` patches (rows, cols): the run's view, still."""

    view: ViewConfig
    grid: Grid

    def read(self, image: EvalImage | Canvas) -> Canvas:
        """Read an image's file, as gazeprep does, and put it on the canvas, by one resize from the original's px.

        A build resizes twice, to the stored size and to the canvas. Raises InputError where it cannot be read.
        """
        if isinstance(image, Canvas):
            return image
        picture = read_image(image.image)
        view = whole_view(self.view, picture)
        return Canvas(
            pixels=view.draw(picture),
            view=view,
            patch_mask=view.patch_mask(self.grid),
            view_position=VIEW_NUMBER.get(image.view, len(VIEWS) - 1),
            context={**dict.fromkeys((*CONTEXT, PRIOR), ""), "indication": age_and_sex(image)},
        )

    def stored(self, record: Record, picture: GrayImage) -> Canvas:
        """Put a shard's picture on the canvas, with the clinical context of its record; its view is of stored px."""
        view = view_of(self.view.still(), record, np.zeros(DRAWS))
        sections = sections_of(record)
        return Canvas(
            pixels=view.draw(picture),
            view=view,
            patch_mask=view.patch_mask(self.grid),
            view_position=VIEW_NUMBER.get(record["view_position"], len(VIEWS) - 1),
            context={name: sections[name] for name in (*CONTEXT, PRIOR) if name in sections},
        )


def whole_view(config: ViewConfig, picture: GrayImage) -> View:
    """Return the view, nothing of it random, of a picture (rows, cols) that is all image."""
    rows, cols = picture.shape
    record = {
        "image_width_px": cols,
        "image_height_px": rows,
        "resize_scale_x": 1.0,
        "resize_offset_x": 0.0,
        "resize_scale_y": 1.0,
        "resize_offset_y": 0.0,
    }
    return view_of(config.still(), record, np.zeros(DRAWS))


def age_and_sex(image: EvalImage) -> str:
    """Say whose image it is, as an indication might: "A 55-year-old man"; "" where nothing is known."""
    age = image.age_years
    if age is None:
        word = WORDS.get((image.sex, True), "")
        return f"A {word}" if word else ""
    noun = WORDS.get((image.sex, age >= ADULT_YEARS), "patient")
    spoken_with_a_vowel = str(age).startswith("8") or age in (11, 18)
    return f"A{'n' if spoken_with_a_vowel else ''} {age}-year-old {noun}"

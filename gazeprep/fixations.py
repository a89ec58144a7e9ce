"""Frames of reference, filters that mark, and clipping of fixations to time windows."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from gazeprep.schema import BoolArray, Fixations, FloatArray, InputError, Rectangle, Size

Unit = Literal["image_px", "image_fraction", "screen_px", "screen_fraction"]


@dataclass(frozen=True)
class Frame:
    """How a recording writes positions and times.

    unit: what x and y count. base: the number of the first pixel, 0 or 1 (pixels only). time: "s" or "ms".
    screen_px: (width, height) of the screen, for screen_fraction. image_on_screen_px: edges of the rectangle
    on the screen in which the whole image was drawn, for both screen units.
    """

    unit: Unit = "image_px"
    base: int = 0
    time: Literal["s", "ms"] = "s"
    screen_px: tuple[int, int] | None = None
    image_on_screen_px: Rectangle | None = None

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"frame.unit is {self.unit!r}: choose one of {', '.join(get_args(Unit))}")
        if self.base not in (0, 1):
            raise ValueError(f"frame.base is {self.base}: the first pixel is number 0 or 1")
        if self.time not in ("s", "ms"):
            raise ValueError(f"frame.time is {self.time!r}: choose s or ms")
        if self.unit == "screen_fraction" and self.screen_px is None:
            raise ValueError("frame.unit is screen_fraction: give frame.screen_px, the (width, height) of the screen")
        if self.screen_px is not None and min(self.screen_px) <= 0:
            raise ValueError(f"frame.screen_px is {self.screen_px}: width and height must be positive")
        if self.image_on_screen_px is not None:
            left, top, right, bottom = self.image_on_screen_px
            if not (left < right and top < bottom):
                raise ValueError(
                    f"frame.image_on_screen_px is {self.image_on_screen_px}: give left, top, right, bottom"
                )

    @property
    def seconds(self) -> float:
        """Length of the time unit in seconds."""
        return 1e-3 if self.time == "ms" else 1.0


def to_image_px(
    values: FloatArray, axis: int, frame: Frame, image_side: int, drawn: tuple[FloatArray, FloatArray] | None
) -> FloatArray:
    """Convert positions (n,) along one axis (0 is x, 1 is y) to points in image px.

    image_side: image width or height px. drawn: low and high edge (n,) of the image on the screen, screen px,
    for screen units. Fractions count edges: 0 is the near edge of the first pixel, 1 the far edge of the last.
    """
    if frame.unit == "image_px":
        return values - frame.base
    if frame.unit == "image_fraction":
        return values * image_side - 0.5
    if drawn is None:
        raise InputError(
            "frame_incomplete",
            f"positions are in {frame.unit}: say where the image sat on the screen (frame.image_on_screen_px "
            "or the columns image_left_px, image_top_px, image_right_px, image_bottom_px)",
        )
    if frame.unit == "screen_fraction":
        assert frame.screen_px is not None
        edge = values * frame.screen_px[axis]
    else:
        edge = values - frame.base + 0.5
    low, high = drawn
    return (edge - low) * image_side / (high - low) - 0.5


def on_image(fixations: Fixations, image_size: Size) -> BoolArray:
    """Tell which fixations (n,) lie on a pixel of the image."""
    width, height = image_size
    x_edge, y_edge = fixations.x_px + 0.5, fixations.y_px + 0.5
    return (x_edge >= 0) & (x_edge < width) & (y_edge >= 0) & (y_edge < height)


def overlap_s(fixations: Fixations, start_s: float, end_s: float) -> FloatArray:
    """Seconds (n,) of each fixation inside the time window [start_s, end_s]."""
    inside = np.minimum(fixations.end_s, end_s) - np.maximum(fixations.start_s, start_s)
    return np.maximum(inside, 0.0)


@dataclass(frozen=True)
class Filters:
    """Which fixations to mark, and so leave out of a build's maps; none by default.

    off_image: those that lie on no pixel. min_duration_s: those shorter. outside_shown_deg: those further
    than this many degrees outside the shown rectangle. buttons_px: those beside the shown part of the image and
    within buttons_margin_px of a rectangle on the screen (REFLACX: 10, 933, 650, 1122 and 50).
    """

    off_image: bool = False
    min_duration_s: float | None = None
    outside_shown_deg: float | None = None
    buttons_px: Rectangle | None = None
    buttons_margin_px: float = 0.0

    def __post_init__(self) -> None:
        for name in ("min_duration_s", "outside_shown_deg", "buttons_margin_px"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"filters.{name} is {value}, must be 0 or more")
        if self.buttons_px is not None:
            left, top, right, bottom = self.buttons_px
            if not (left < right and top < bottom):
                raise ValueError(f"filters.buttons_px is {self.buttons_px}, expected left, top, right, bottom")

    def applicable_to(self, fixations: Fixations) -> "Filters":
        """Return the filters that these fixations have the columns for."""
        has_degrees = fixations.px_per_deg_x is not None
        has_screen = fixations.screen is not None and fixations.shown is not None
        return replace(
            self,
            outside_shown_deg=self.outside_shown_deg if has_degrees else None,
            buttons_px=self.buttons_px if has_screen else None,
        )


def mark_fixations(fixations: Fixations, filters: Filters, image_size: Size) -> Fixations:
    """Write the reason of the first filter that would leave a fixation out into `mark`; delete nothing.

    Raises ValueError where a filter needs px_per_deg, shown or screen and the recording has none.
    """
    mark = fixations.mark
    assert mark is not None
    mark = mark.astype(object)
    for reason, hit in _filter_hits(fixations, filters, image_size).items():
        mark[(mark == "") & hit] = reason
    return replace(fixations, mark=mark.astype(np.str_))


def _filter_hits(fixations: Fixations, filters: Filters, image_size: Size) -> dict[str, BoolArray]:
    hits = {}
    if filters.off_image:
        hits["off_image"] = ~on_image(fixations, image_size)
    if filters.min_duration_s is not None:
        hits["too_short"] = fixations.duration_s < filters.min_duration_s
    if filters.outside_shown_deg is not None:
        hits["outside_shown"] = degrees_outside_shown(fixations, image_size) > filters.outside_shown_deg
    if filters.buttons_px is not None:
        hits["buttons"] = _near_buttons(fixations, filters.buttons_px, filters.buttons_margin_px)
    return hits


def degrees_outside_shown(fixations: Fixations, image_size: Size) -> FloatArray:
    """Distance (n,) in degrees of visual angle from each fixation to the shown part of the image; 0 inside."""
    if fixations.px_per_deg_x is None or fixations.px_per_deg_y is None:
        raise ValueError("filter outside_shown_deg needs px_per_deg, which these fixations do not have")
    width, height = image_size
    whole = np.tile(np.array([0.0, 0.0, width, height]), (len(fixations), 1))
    left, top, right, bottom = (whole if fixations.shown is None else fixations.shown).T
    x, y = fixations.x_px + 0.5, fixations.y_px + 0.5
    return np.hypot(
        _distance(x, left, right) / fixations.px_per_deg_x, _distance(y, top, bottom) / fixations.px_per_deg_y
    )


def _near_buttons(fixations: Fixations, buttons_px: Rectangle, margin_px: float) -> BoolArray:
    if fixations.screen is None or fixations.shown is None:
        raise ValueError("filter buttons_px needs the screen rectangles, which these fixations do not have")
    shown, screen = fixations.shown, fixations.screen
    per_px = (screen[:, 2:] - screen[:, :2]) / np.maximum(shown[:, 2:] - shown[:, :2], 1e-9)
    x = screen[:, 0] + (fixations.x_px + 0.5 - shown[:, 0]) * per_px[:, 0]
    y = screen[:, 1] + (fixations.y_px + 0.5 - shown[:, 1]) * per_px[:, 1]
    left, top, right, bottom = (np.full(len(fixations), float(edge)) for edge in buttons_px)
    near = np.hypot(_distance(x, left, right), _distance(y, top, bottom)) <= margin_px
    beside = _distance(x, screen[:, 0], screen[:, 2]) + _distance(y, screen[:, 1], screen[:, 3]) > 0
    return near & beside


def _distance(value: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Distance from each value to its interval; 0 inside."""
    return np.maximum(np.maximum(low - value, value - high), 0.0)

"""REFLACX's screen: which part of an image is shown where, for a zoom and a pan."""

from dataclasses import dataclass

import numpy as np

from gazeprep.schema import FloatArray, Size

AREA = np.array([660.0, 0.0, 3180.0, 2160.0])  # where images are drawn on the 3840 x 2160 screen
BUTTONS = (10.0, 933.0, 650.0, 1122.0)
SCREEN_PX_PER_DEG = 94.0


@dataclass(frozen=True)
class View:
    """From start_s on: zoom 2^(zoom_step/4), the image's centre moved by the pan in image px (y up)."""

    start_s: float = 0.0
    zoom_step: int = 0
    pan_x_px: float = 0.0
    pan_y_px: float = 0.0


@dataclass(frozen=True, eq=False)
class Placement:
    """Rectangles left, top, right, bottom: `shown` in image px, `screen` in screen px; the magnification."""

    shown: FloatArray
    screen: FloatArray
    screen_px_per_px: float

    def to_image(self, x_screen: float, y_screen: float) -> tuple[float, float]:
        """Map a screen point to the image, also outside of it."""
        return (
            float(self.shown[0] + (x_screen - self.screen[0]) / self.screen_px_per_px),
            float(self.shown[1] + (y_screen - self.screen[1]) / self.screen_px_per_px),
        )


def base_scale(size: Size) -> float:
    """Screen px per image px without zoom."""
    return min(2160 / size[1], 2520 / size[0])


def place(size: Size, view: View) -> Placement:
    """Place an image on the screen."""
    width, height = size
    magnification = base_scale(size) * 2 ** (view.zoom_step / 4)
    centre = np.array([width / 2 + view.pan_x_px, height / 2 - view.pan_y_px])
    half = np.array([2520.0, 2160.0]) / magnification / 2
    whole = np.concatenate([centre - half, centre + half])
    shown = np.clip(whole, 0, [width, height, width, height])
    return Placement(shown, AREA + (shown - whole) * magnification, magnification)

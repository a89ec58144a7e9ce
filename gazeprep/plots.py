"""Pictures of samples: maps over images, each sentence's map under its words. Needs the extra gazeprep[plots]."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gazeprep.images import decode
from gazeprep.shards import LoadedSample

GAZE_COLOURS = "inferno"
PANEL_INCHES = 2.6
CAPTION_CHARACTERS = 38


def draw_overlay(axes: Axes, image: npt.NDArray[np.uint8], gaze_map: npt.NDArray[np.floating]) -> None:
    """Draw a map (rows, cols) over an image (rows, cols), more opaque where there is more gaze."""
    rows, cols = image.shape
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    peak = float(gaze_map.max())
    if peak > 0:
        strength = gaze_map / peak
        axes.imshow(
            strength,
            cmap=GAZE_COLOURS,
            vmin=0,
            vmax=1,
            alpha=0.75 * np.sqrt(strength),
            interpolation="bilinear",
            extent=(-0.5, cols - 0.5, rows - 0.5, -0.5),
        )
    axes.set_axis_off()


def sample_figure(sample: LoadedSample) -> Figure:
    """Draw one sample: the image, the whole-reading map, then each sentence's map under its words."""
    image = decode(sample.image)
    sentences = str(sample.record["sentences"]).split("\n") if sample.record["sentences"] else []
    panels = [("image", np.zeros_like(sample.maps[0])), ("whole reading", sample.maps[0])]
    panels += list(zip(sentences, sample.maps[1:], strict=True))
    return _grid_figure([(_caption(title), image, gaze_map) for title, gaze_map in panels], columns=4)


def contact_sheet(samples: Sequence[LoadedSample], columns: int = 4) -> Figure:
    """Draw the whole-reading map over the image of each sample, with its key and first sentence."""
    panels = []
    for sample in samples:
        first = str(sample.record["sentences"]).split("\n")[0] or (
            "no sentence" if sample.record["has_gaze"] else "no gaze"
        )
        panels.append((f"{sample.key}\n{_caption(first)}", decode(sample.image), sample.maps[0]))
    return _grid_figure(panels, columns)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a name that appears only when the file is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    temporary.replace(path)


def _grid_figure(panels: Sequence[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.floating]]], columns: int) -> Figure:
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context({"font.size": 7}):
        figure = Figure(figsize=(columns * PANEL_INCHES, rows * PANEL_INCHES * 1.35), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, image, gaze_map) in zip(grid, panels, strict=False):
            draw_overlay(axes, image, gaze_map)
            axes.set_title(title)
    return figure


def _caption(text: str) -> str:
    return "\n".join(textwrap.wrap(text, CAPTION_CHARACTERS, max_lines=4)) or " "

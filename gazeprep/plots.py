"""Pictures of samples: maps over images, each sentence's map under its words. Needs the extra gazeprep[plots]."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gazeprep.images import decode
from gazeprep.schema import Rectangle
from gazeprep.shards import LoadedSample

GAZE_COLOURS = "inferno"
PANEL_INCHES = 2.6
CAPTION_CHARACTERS = 38


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a figure: title, image (rows, cols), map (rows, cols), the map's edges on the image in px."""

    title: str
    image: npt.NDArray[np.uint8]
    gaze_map: npt.NDArray[np.floating]
    extent: Rectangle


def draw_overlay(axes: Axes, panel: Panel) -> None:
    """Draw a map over its image, more opaque where there is more gaze."""
    image, gaze_map = panel.image, panel.gaze_map
    left, top, right, bottom = panel.extent
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
            extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5),
        )
        rows, cols = image.shape
        axes.set(xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_axis_off()


def sample_figure(sample: LoadedSample) -> Figure:
    """Draw one sample: the image, the whole-reading map, then each sentence's map under its words."""
    sentences = str(sample.record["sentences"]).split("\n") if sample.record["sentences"] else []
    titled = [("image", np.zeros_like(sample.maps[0])), ("whole reading", sample.maps[0])]
    titled += zip(sentences, sample.maps[1:], strict=True)
    return _grid_figure([_panel(sample, _caption(title), gaze_map) for title, gaze_map in titled], columns=4)


def contact_sheet(samples: Sequence[LoadedSample], columns: int = 4) -> Figure:
    """Draw the whole-reading map over the image of each sample, with its key and first sentence."""
    panels = []
    for sample in samples:
        without = "no sentence" if sample.record["has_gaze"] else "no gaze"
        first = str(sample.record["sentences"]).split("\n")[0] or without
        panels.append(_panel(sample, f"{sample.key}\n{_caption(first)}", sample.maps[0]))
    return _grid_figure(panels, columns)


def _panel(sample: LoadedSample, title: str, gaze_map: npt.NDArray[np.floating]) -> Panel:
    """Lay a map, which spans the whole image, where the resize put that image."""
    record = sample.record
    edges = [
        (record[f"resize_offset_{axis}"], record[f"resize_scale_{axis}"] * record[f"image_{side}_px"])
        for axis, side in (("x", "width"), ("y", "height"))
    ]
    (left, width), (top, height) = edges
    return Panel(title, decode(sample.image), gaze_map, (left, top, left + width, top + height))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a name that appears only when the file is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    temporary.replace(path)


def _grid_figure(panels: Sequence[Panel], columns: int) -> Figure:
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context({"font.size": 7}):
        figure = Figure(figsize=(columns * PANEL_INCHES, rows * PANEL_INCHES * 1.35), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid, panels, strict=False):
            draw_overlay(axes, panel)
            axes.set_title(panel.title)
    return figure


def _caption(text: str) -> str:
    return "\n".join(textwrap.wrap(text, CAPTION_CHARACTERS, max_lines=4)) or " "

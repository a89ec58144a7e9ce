"""Figures of samples and of folders: maps over images, scanpaths, distributions. Needs the extra gazeprep[plots]."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from gazeprep.images import decode
from gazeprep.pictures import Fixation, fixations_drawn, map_extent
from gazeprep.schema import Rectangle
from gazeprep.shards import LoadedSample
from gazeprep.stores import appearing_whole, remove_abandoned
from gazeprep.summary import Distribution, marked

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


def scanpath_figure(sample: LoadedSample) -> Figure:
    """Draw where a reader looked, in which order and how long, and beside it when, with the sentences as spoken.

    Dots grow with the time looked, colours go from the first fixation to the last; those left out of the maps are
    hollow. Raises ValueError on a sample without fixations.
    """
    if not len(sample.gaze["x_px"]):
        raise ValueError(f"sample {sample.key} has no fixations; choose one of index.query('fixations > 0')")
    fixations = fixations_drawn(sample, set(marked(sample.record)), len(sample.gaze["x_px"]))
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(4 * PANEL_INCHES, 1.6 * PANEL_INCHES), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=(1, 1.6), height_ratios=(3, 3, 1))
        _draw_scanpath(figure.add_subplot(grid[:, 0]), sample, fixations)
        across, down, spoken = (figure.add_subplot(grid[row, 1]) for row in range(3))
        for axes, place, side in ((across, "x", "width"), (down, "y", "height")):
            _draw_trace(axes, fixations, place, sample.record[f"stored_{side}_px"])
        _draw_sentences(spoken, sample)
        for axes in (across, down):
            axes.sharex(spoken)
            axes.tick_params(labelbottom=False)
    return figure


def _draw_scanpath(axes: Axes, sample: LoadedSample, fixations: Sequence[Fixation]) -> None:
    image = decode(sample.image)
    rows, cols = image.shape
    axes.imshow(image, cmap="gray", vmin=0, vmax=400, extent=(0, cols, rows, 0))  # dimmed, so that dots stand out
    axes.plot([f.x for f in fixations], [f.y for f in fixations], color="white", linewidth=0.5, alpha=0.4)
    for f in fixations:
        axes.add_patch(Circle((f.x, f.y), f.radius, fill=not f.left_out, facecolor=f"{f.colour}80", edgecolor=f.colour))
    axes.set(xlim=(0, cols), ylim=(rows, 0), title=sample.key)
    axes.set_axis_off()


def _draw_trace(axes: Axes, fixations: Sequence[Fixation], place: str, side_px: int) -> None:
    at = [getattr(f, place) for f in fixations]
    begin, end = ([getattr(f, name) for f in fixations] for name in ("start_s", "end_s"))
    axes.hlines(at, begin, end, colors=[f.colour for f in fixations], linewidth=2)
    axes.set_facecolor("#14171a")
    axes.set(ylim=(side_px, 0), yticks=[], ylabel={"x": "left, right", "y": "top, bottom"}[place])


def _draw_sentences(axes: Axes, sample: LoadedSample) -> None:
    starts, ends = sample.gaze["sentence_start_s"], sample.gaze["sentence_end_s"]
    axes.barh(np.zeros(len(starts)), ends - starts, left=starts, color="#9aa4ad")
    for i, middle in enumerate((starts + ends) / 2):
        axes.text(middle, 0, str(i + 1), ha="center", va="center")
    axes.set(yticks=[], ylabel="sentence", xlabel="seconds")


def distributions_figure(distributions: Sequence[Distribution]) -> Figure:
    """Draw the histogram of each distribution that has values, as the report does."""
    filled = [distribution for distribution in distributions if len(distribution.pooled)]
    columns = max(min(3, len(filled)), 1)
    rows = max(-(-len(filled) // columns), 1)
    with mpl.rc_context({"font.size": 8}):
        size = columns * 1.3 * PANEL_INCHES, rows * 0.9 * PANEL_INCHES
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(filled) :]:
            axes.set_axis_off()
        for axes, distribution in zip(grid, filled, strict=False):
            counted = distribution.histogram()
            axes.bar(counted.edges[:-1], counted.counts, np.diff(counted.edges), align="edge", edgecolor="white")
            unit = f", {distribution.unit}" if distribution.unit else ""
            last = ", last bin open" if counted.open_ended else ""
            axes.set(title=distribution.title + unit, xlabel=f"{len(distribution.pooled)} {distribution.of}s{last}")
    return figure


def mean_maps_figure(mean_maps: Mapping[str, npt.NDArray[np.floating]]) -> Figure:
    """Draw where all readings of each dataset look, over a square that stands for any image.

    Raises ValueError where no dataset has gaze.
    """
    if not mean_maps:
        raise ValueError("no reading has gaze, so there is no mean map")
    figure = Figure(figsize=(len(mean_maps) * PANEL_INCHES, 1.1 * PANEL_INCHES), layout="constrained")
    grid = figure.subplots(1, len(mean_maps), squeeze=False)[0]
    for axes, (dataset, mean) in zip(grid, mean_maps.items(), strict=True):
        axes.imshow(mean, cmap=GAZE_COLOURS, interpolation="bilinear", aspect=mean.shape[1] / mean.shape[0])
        axes.set_title(dataset)
        axes.set_axis_off()
    return figure


def _panel(sample: LoadedSample, title: str, gaze_map: npt.NDArray[np.floating]) -> Panel:
    """Lay a map, which spans the whole image, where the resize put that image."""
    return Panel(title, decode(sample.image), gaze_map, map_extent(sample.record))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a name that appears only when the file is whole."""
    remove_abandoned(path)
    with appearing_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


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

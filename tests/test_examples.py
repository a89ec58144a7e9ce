"""The example notebooks run from top to bottom; figures of the report drawn by gazeprep.plots."""

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gazeprep import plots
from gazeprep.shards import ShardFolder
from gazeprep.summary import Distribution

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_look.ipynb"
FOLDER = "../out/demo/shards"


def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def shown_by(code, names):
    """Run one cell as a notebook does, commands to the notebook left out; returns what its last line shows."""
    body = ast.parse("\n".join("" if line.startswith("%") else line for line in code.splitlines())).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


@pytest.mark.slow
def test_the_notebook_runs(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    assert sum(FOLDER in source for source in sources) == 1
    names = {}
    shown = [shown_by(source.replace(FOLDER, str(shards)), names) for source in sources]
    table, distributions, means, sample, scanpath, difference, sheet, size = shown
    assert isinstance(table, pd.DataFrame)
    assert table["samples"].iloc[-1] == 26
    for figure in (distributions, means, sample, scanpath, sheet):
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / "figure.png", dpi=20)
    assert difference < 1e-6
    assert size == (tmp_path / "report.html").stat().st_size


def test_the_notebook_is_stored_without_what_it_showed():
    assert not [cell for cell in cells() if cell.get("outputs") or cell.get("execution_count")]


def test_a_scanpath_shows_every_fixation_at_its_time_and_place(shards):
    folder = ShardFolder(shards)
    sample = folder.sample(folder.index.query("sentences > 3")["key"].iloc[0])
    figure = plots.scanpath_figure(sample)
    image, across, down, spoken = figure.axes
    gaze, record = sample.gaze, sample.record
    x = (gaze["x_px"] + 0.5) * record["resize_scale_x"] + record["resize_offset_x"]
    lasting = gaze["end_s"] - gaze["start_s"]
    dots = image.patches
    assert [dot.center[0] for dot in dots] == pytest.approx(x, abs=0.06)
    assert np.corrcoef([dot.radius**2 for dot in dots], np.maximum(lasting, 0.02))[0, 1] > 0.99
    lines = across.collections[0].get_segments()
    assert [line[0, 0] for line in lines] == pytest.approx(gaze["start_s"])
    assert len(down.collections[0].get_segments()) == len(x)
    assert [bar.get_x() for bar in spoken.patches] == pytest.approx(gaze["sentence_start_s"])
    without = folder.index.query("fixations == 0")["key"].iloc[0]
    with pytest.raises(ValueError, match="has no fixations"):
        plots.scanpath_figure(folder.sample(without))


def test_mean_maps_are_drawn_each_under_its_dataset():
    figure = plots.mean_maps_figure({"a": np.eye(4), "b": np.ones((3, 5))})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), np.eye(4))
    with pytest.raises(ValueError, match="no reading has gaze"):
        plots.mean_maps_figure({})


def test_distributions_are_drawn_where_there_are_values():
    values = Distribution("Sentences", "", "reading", {"a": np.array([1.0, 2, 2]), "b": np.array([4.0])})
    empty = Distribution("Fixations", "", "reading", {})
    (axes,) = plots.distributions_figure([values, empty]).axes
    assert [bar.get_height() for bar in axes.patches] == [1, 2, 0, 1]
    assert axes.get_xlabel() == "4 readings"

"""The command: strict options, figures of a dataset in its own layout, what fails is told and loses nothing."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from twins.rsna import write_rsna

from cogaze.models.segmenter import SegmentationDecoder
from gazeprep.images import read_image

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipelines" / "finetune.py"
QUICK = [
    *("--shared.shares", '["100"]', "--shared.intervals.repeats", 2),
    *("--finetune.epochs", 1, "--probe.penalties", "[0.1]"),
    *("--segment.epochs", 1, "--segment.width", 8, "--segment.heads", 2, "--segment.doublings", 1),
]


@pytest.fixture
def main(monkeypatch):
    """The pipeline's main as main(*arguments)."""
    spec = importlib.util.spec_from_file_location("finetune", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        AcceleratorState._reset_state(True)
        monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, arguments)])
        return module.main()

    yield call
    AcceleratorState._reset_state(True)


@pytest.fixture
def rsna(tmp_path, model_folder):
    write_rsna(tmp_path / "rsna", tmp_path / "lists")
    data = ["--dataset", "rsna", "--root", tmp_path / "rsna", "--lists", tmp_path / "lists"]
    return ["--model", model_folder, *data, "--out", tmp_path / "out", *QUICK]


def test_every_task_of_rsna(main, rsna, tmp_path, capsys):
    assert main(*rsna) == 0
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    names = [one["name"] for each in written["results"].values() for one in each["figures"]]
    assert {"AUROC (linear probe, 100 %)", "F1 (fine-tuned, 100 %)", "Dice of positives (decoder, 100 %)"} <= set(names)
    assert written["settings"]["options"]["finetune"]["epochs"] == 1
    assert written["settings"]["dataset"]["task"] == "binary"
    said = capsys.readouterr().out
    assert "| Dice (decoder, 100 %)" in said
    assert str(tmp_path) not in said + (tmp_path / "out" / "results.json").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.json", "results.md", "weights"]
    probe = load_file(tmp_path / "out" / "weights" / "linear_probe-100.safetensors")
    assert {name: tuple(one.shape) for name, one in probe.items()} == {
        "mean": (16,), "scale": (16,), "weight": (1, 16), "bias": (1,),
    }  # fmt: skip
    tuned = load_file(tmp_path / "out" / "weights" / "fine_tuning-100.safetensors")
    assert {"head.weight", "model.latents"} <= set(tuned)
    SegmentationDecoder(16, 16, (4, 4), 56, width=8, heads=2, doublings=1).load_state_dict(
        load_file(tmp_path / "out" / "weights" / "segmentation-100.safetensors")
    )


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--tasks", '["guess"]'], 2, "guess"),
        (["--options", '{"boxes": "all"}'], 1, "boxes is 'all'"),
        (["--shared.shares", '["5"]'], 1, "shares are ['5']"),
        (["--finetune.lr", "-1"], 1, "finetune.lr"),
        (["--fine.lr", "1"], 2, "fine.lr"),
    ],
)
def test_wrong_options_are_told(main, rsna, capsys, more, code, said):
    try:
        ended = main(*rsna, *more)
    except SystemExit as stopped:
        ended = stopped.code
    assert (ended, said in capsys.readouterr().err) == (code, True)


def test_the_dataset_of_ones_own_in_the_docs_is_made(tmp_path, shards, monkeypatch):
    text = (ROOT / "docs" / "evaluation.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "out" / "demo").mkdir(parents=True)
    (tmp_path / "out" / "demo" / "shards").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(code.split("encoder = ")[0], made)  # the rest takes trained models, and minutes
    data = made["dataset"](made["folder"].index)
    images = [image for part in data.parts.values() for image in part]
    assert len(images) == made["folder"].index["dicom"].nunique()
    drawn = [image for image in images if image.boxes]
    assert drawn
    for image in drawn:
        height, width = read_image(image.image).shape
        for one in image.boxes:
            left, top, right, bottom = one.box
            assert -2 <= left < right <= width + 2
            assert -2 <= top < bottom <= height + 2


@pytest.mark.parametrize("name", ["cogaze", "egma"])
def test_configs_are_read(main, rsna, name, capsys):
    config = ROOT / "configs" / f"finetune_{name}.yaml"
    with pytest.raises(SystemExit) as stopped:
        main("--config", config, *rsna, "--print_config")
    assert stopped.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["tasks"] == yaml.safe_load(config.read_text())["tasks"]

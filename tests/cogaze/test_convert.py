"""Published weights: numerical parity, every key accounted for, wrappers and older names."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, Dinov2Config

from cogaze.convert import DROPPED, convert_published, main, our_name, published_config, read_published
from cogaze.models.cogaze import VIEWS, CoGazeModel

STYLE_4 = {
    "k_proj": "attention.key",
    "q_proj": "attention.query",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
}


def tower_configs(sizes):
    return Dinov2Config(**sizes["dinov2"]), BertConfig(**sizes["bert"])


@pytest.fixture
def published(shared):
    sizes = json.loads((shared / "parity/cogaze_tiny.json").read_text())
    state = load_file(shared / "parity/cogaze_tiny.safetensors")
    return state, published_config(state, *tower_configs(sizes), dim_head=8), sizes


@pytest.fixture
def io(shared):
    return dict(np.load(shared / "parity/cogaze_tiny_io.npz"))


def outputs(model, io):
    """The model's outputs for the fixture's inputs, image 1 being the one without context."""
    rows = len(io["pixel_values"])
    context = torch.zeros(rows, io["context_input_ids"].shape[1], dtype=torch.long)
    context[io["context_rows"]] = torch.from_numpy(io["context_input_ids"])
    has_context = torch.zeros(rows, dtype=torch.bool)
    has_context[io["context_rows"]] = True
    report = torch.from_numpy(io["report_input_ids"])
    whole = torch.ones_like(report, dtype=torch.bool)
    with torch.no_grad():
        out = model(
            pixel_values=torch.from_numpy(io["pixel_values"]),
            view_position=torch.tensor([VIEWS.index(view) for view in io["view_position"]]),
            context_input_ids=context,
            context_mask=torch.ones_like(context, dtype=torch.bool),
            has_context=has_context,
            report_input_ids=report,
            report_mask=whole,
            sentence_input_ids=report,
            sentence_mask=whole,
        )
        features = model.encode_text(report, whole).token_features
    names = ("patch_features", "visual_latents", "context_latents", "vision_logits", "report_logits")
    return {**{name: out[name] for name in names}, "report_features": features}


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_published_outputs_come_out(published, io, mask_padding):
    state, config, _ = published
    config.mask_padding = mask_padding  # no difference without padding
    for name, ours in outputs(convert_published(state, config), io).items():
        assert np.abs(ours.numpy() - io[name]).max() < 1e-5, name


def test_the_config_is_read_off_the_shapes(published):
    _, config, sizes = published
    sizes = sizes["perceiver"]
    assert (config.perceiver_depth, config.perceiver_latents) == (sizes["depth"], sizes["num_latents"])
    assert (config.perceiver_heads, config.hidden_size, config.projector_hidden_size) == (sizes["heads"], 32, 64)
    assert not config.mask_padding


def as_transformers_4_and_cxr_bert(state):
    """The names of a checkpoint trained with transformers 4 and the hub's own class of CXR-BERT."""
    renamed = {}
    for key, tensor in state.items():
        for new, old in STYLE_4.items():
            key = key.replace(f"attention.{new}", f"attention.{old}") if key.startswith("image_encoder") else key
        key = key.replace("text_encoder.", "text_encoder.bert.")
        renamed[key] = tensor
    renamed["text_encoder.cls.predictions.bias"] = torch.zeros(120)
    renamed["text_encoder.cls_projection_head.dense_to_hidden.weight"] = torch.zeros(8, 40)
    renamed["multi_label_loss.class_weights"] = torch.ones(14)
    return renamed


def test_names_of_transformers_4_and_of_cxr_bert_give_the_same_model(published):
    state, config, sizes = published
    older = as_transformers_4_and_cxr_bert(state)
    assert "image_encoder.encoder.layer.0.attention.attention.query.weight" in older
    ours = convert_published(older, published_config(older, *tower_configs(sizes), dim_head=8)).state_dict()
    expected = convert_published(state, config).state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_every_published_key_has_a_place_or_a_reason(published):
    state, config, _ = published
    places = {key: our_name(key) for key in state}
    dropped = {key for key, place in places.items() if place is None}
    assert dropped == {"perceiver.latents", "text_encoder.pooler.dense.bias", "text_encoder.pooler.dense.weight"}
    assert len({place for place in places.values() if place}) == len(state) - len(dropped)
    assert all(reason for reason in DROPPED.values())
    converted = convert_published(state, config)
    assert len(converted.state_dict()) == len(state) - len(dropped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("logit_scale"), r"nothing for \['logit_scale'\]"),
        (lambda state: state.update(extra=torch.zeros(1)), "no rule for the published key extra"),
        (lambda state: state.update({"image_encoder.extra": torch.zeros(1)}), r"no place for \['vision.tower.extra'\]"),
        (lambda state: state.update(shared_latent=torch.zeros(7, 32)), r"latents is \(7, 32\), but \(6, 32\)"),
        (lambda state: state.update(shared_latent=torch.zeros(32, 6)), r"latents is \(32, 6\), but \(6, 32\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(published, change, message):
    state, config, _ = published
    change(state)
    with pytest.raises(ValueError, match=message):
        convert_published(state, config)


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
@pytest.mark.parametrize("kind", ["lightning", "torch", "safetensors"])
def test_wrappers_and_prefixes_come_off(published, tmp_path, kind, prefix):
    state = {prefix + key: tensor for key, tensor in published[0].items()}
    path = tmp_path / ("best.safetensors" if kind == "safetensors" else "best.ckpt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "lightning" else state, path)
    assert read_published(path).keys() == published[0].keys()


class Touch:
    """Unpickled carelessly, writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Touch(tmp_path / "ran")}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match="could run code"):
        read_published(path)
    assert not (tmp_path / "ran").exists()


def test_another_checkpoint_is_told_apart(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no shared_latent among its 1 keys"):
        read_published(tmp_path / "other.safetensors")


def test_the_command_writes_a_folder_that_loads(published, io, shared, tmp_path):
    vision, text = tower_configs(published[2])
    vision.save_pretrained(tmp_path / "vision")
    text.save_pretrained(tmp_path / "text")
    checkpoint = shared / "parity/cogaze_tiny.safetensors"
    towers = ["--vision", str(tmp_path / "vision"), "--text", str(tmp_path / "text")]
    options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), *towers]
    assert main([*options, "--dim-head", "8"]) == 0
    model = CoGazeModel.from_pretrained(tmp_path / "out")
    assert not model.config.mask_padding
    for name, ours in outputs(model, io).items():
        assert np.abs(ours.numpy() - io[name]).max() < 1e-5, name


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["--checkpoint", str(tmp_path / "absent.ckpt"), "--out", str(tmp_path / "out")]) == 1
    assert "absent.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

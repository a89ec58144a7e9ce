"""Published weights: numerical parity, every key accounted for, wrappers and older names."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, Dinov2Config

from cogaze import convert
from cogaze.convert import convert_published, main, our_name, published_config, read_published
from cogaze.models.cogaze import VIEWS, CoGazeModel


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
        worst = np.abs(ours.numpy() - io[name]).max()
        print(name, worst)
        assert worst < 1e-4, name


def test_the_config_is_read_off_the_shapes(published):
    _, config, sizes = published
    sizes = sizes["perceiver"]
    assert (config.perceiver_depth, config.perceiver_latents) == (sizes["depth"], sizes["num_latents"])
    assert (config.perceiver_heads, config.hidden_size, config.projector_hidden_size) == (sizes["heads"], 32, 64)
    assert not config.mask_padding

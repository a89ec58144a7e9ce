"""EGMA's model: unit vectors by the plain formula, padding, towers, what is trained, saving and loading."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, SwinConfig, SwinModel

from cogaze.models.egma import EgmaConfig, EgmaModel, build_egma
from cogaze.models.text import Vocabulary

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = {
    "swin": lambda: SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, image_size=32)),
    "dino": lambda: Dinov2Model(Dinov2Config(**LAYERS, mlp_ratio=2, patch_size=8, image_size=32)),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(1)
    for name, tower in TOWERS.items():
        tower().save_pretrained(root / name)
    BertModel(BertConfig(**LAYERS, intermediate_size=32, vocab_size=50, max_position_embeddings=16)).save_pretrained(
        root / "bert"
    )
    return root


@pytest.fixture
def build(towers):
    sizes = {"hidden_size": 24, "averaged_layers": 2}
    return lambda vision="swin", **changes: build_egma(
        str(towers / vision), str(towers / "bert"), **{**sizes, **changes}
    )


def batch(image_size=32):
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 3:] = False
    return {
        "pixel_values": torch.randn(2, 3, image_size, image_size),
        "sentence_input_ids": torch.randint(1, 50, (4, 6)),
        "sentence_mask": mask,
    }


def dirty(model):
    """Fill memory of the sizes that the model takes with NaN, and free it."""
    shapes = [tensor.shape for tensor in [*model.parameters(), *model.buffers()]]
    garbage = [torch.full(shape, math.nan) for _ in range(20) for shape in shapes]
    del garbage


def assert_equal_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("vision", TOWERS)
def test_patches_and_sentences_are_the_plain_formula(build, vision):
    model = build(vision).eval()
    fields = batch()
    out = model(**fields)
    images = model.vision.tower(fields["pixel_values"]).last_hidden_state[:, -16:]
    torch.testing.assert_close(out.patch_embed, F.normalize(images @ model.projection.weight.T, dim=-1))
    for i, (ids, mask) in enumerate(zip(fields["sentence_input_ids"], fields["sentence_mask"], strict=True)):
        own = ids[mask]  # alone, without padding
        _, first, second = model.text.tower(own[None], output_hidden_states=True).hidden_states
        mean = ((first + second) / 2)[0].mean(dim=0)
        torch.testing.assert_close(out.sentence_embed[i], F.normalize(model.text.projection.weight @ mean, dim=0))
    assert model.patch_grid == (4, 4)
    assert out.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_padding_counts_only_where_published_behaviour_is_asked_for(build):
    fields = batch()
    longer = {**fields, "sentence_input_ids": F.pad(fields["sentence_input_ids"], (0, 5), value=7)}
    longer["sentence_mask"] = F.pad(fields["sentence_mask"], (0, 5), value=False)
    for mask_padding in (True, False):
        model = build(mask_padding=mask_padding).eval()
        same = torch.allclose(model(**fields).sentence_embed, model(**longer).sentence_embed, atol=1e-6)
        assert same == mask_padding


def test_a_sentence_without_a_token_gives_numbers(build):
    fields = batch()
    fields["sentence_mask"][2] = False
    assert build()(**fields).sentence_embed.isfinite().all()


def test_the_scale_ends_at_a_hundred(build):
    model = build()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert model(**batch()).logit_scale.exp().item() == pytest.approx(100)


@pytest.mark.parametrize(("tuned_blocks", "frozen"), [(-1, False), (0, True)])
def test_every_trained_parameter_has_a_gradient(build, tuned_blocks, frozen):
    model = build(tuned_blocks=tuned_blocks).train()
    draw = torch.randn(24)
    out = model(**batch())
    ((out.patch_embed @ draw).sum() + (out.sentence_embed @ draw).sum() + out.logit_scale).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad != (frozen and name.startswith("vision.")), name


def test_stored_tokens_stand_for_the_tower(build):
    model = build(tuned_blocks=0).eval()
    fields = batch()
    stored = {**fields, "pixel_values": None, "vision_tokens": model.vision(fields["pixel_values"])}
    assert torch.equal(model(**fields).patch_embed, model(**stored).patch_embed)


def test_swin_takes_another_size_than_its_own(build):
    model = build(image_size=48).eval()
    assert model.patch_grid == (6, 6)
    assert model(**batch(48)).patch_embed.shape == (2, 36, 24)


@pytest.mark.parametrize("vision", TOWERS)
def test_loading_into_dirty_memory_gives_the_saved_model(build, tmp_path, vision):
    model = build(vision, vocabulary=Vocabulary(57, 3), tuned_blocks=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path)
    fields = batch()
    for _ in range(3):
        dirty(model)
        loaded = EgmaModel.from_pretrained(tmp_path)
        assert_equal_weights(loaded, model)
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
        for name, tensor in model(**fields).items():
            torch.testing.assert_close(loaded(**fields)[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert EgmaConfig.from_pretrained(tmp_path).to_dict() == model.config.to_dict()


def test_weights_that_are_not_exactly_the_model_s_are_refused(build, tmp_path):
    build().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["projection.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys \['projection.weight'\] .* not the weights of an EGMA model"):
        EgmaModel.from_pretrained(tmp_path)


def test_a_size_that_cannot_be_is_refused(build):
    with pytest.raises(ValueError, match=r"EgmaConfig has no \['perceiver_depth'\]"):
        build(perceiver_depth=3)
    with pytest.raises(ValueError, match=r"averaged_layers is 4, but the text tower has 2 layers: set it to 1\.\.2"):
        build(averaged_layers=4)


def test_the_published_size_is_the_default():
    config = EgmaConfig(image_size=256)
    assert (config.vision_config.model_type, config.text_config.model_type) == ("swin", "bert")
    assert (config.hidden_size, config.averaged_layers, config.tuned_blocks) == (512, 4, -1)

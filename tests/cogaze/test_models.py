"""CoGaze's model: masks, the two kinds of rows in one pass, frozen towers, builders, saving and loading."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from cogaze.models.cogaze import CoGazeConfig, CoGazeModel, build_cogaze
from cogaze.models.perceiver import Attention, Perceiver
from cogaze.models.text import Vocabulary, load_text_tower
from cogaze.models.vision import RMSNorm, VisionTower

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DINO = Dinov2Config(**LAYERS, mlp_ratio=2, patch_size=7, image_size=28, hidden_dropout_prob=0.5, drop_path_rate=0.5)
BERT = BertConfig(**LAYERS, intermediate_size=32, vocab_size=50, max_position_embeddings=24)
SIZES = {
    "hidden_size": 24,
    "projector_hidden_size": 32,
    "perceiver_depth": 2,
    "perceiver_latents": 5,
    "perceiver_heads": 2,
    "perceiver_dim_head": 8,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(1)
    Dinov2Model(DINO).save_pretrained(root / "dino")
    BertModel(BERT).save_pretrained(root / "bert")
    return root


@pytest.fixture
def build(towers):
    return lambda **changes: build_cogaze(str(towers / "dino"), str(towers / "bert"), **{**SIZES, **changes})


def batch(rows=3, length=6, image_size=28):
    tokens = torch.randint(1, 50, (rows, length))
    return {
        "pixel_values": torch.randn(rows, 3, image_size, image_size),
        "view_position": torch.arange(rows) % 4,
        "context_input_ids": tokens,
        "context_mask": torch.ones(rows, length, dtype=torch.bool),
        "has_context": torch.tensor([True, False, True])[:rows],
        "report_input_ids": tokens.flip(0),
        "report_mask": torch.ones(rows, length, dtype=torch.bool),
        "sentence_input_ids": tokens[:2],
        "sentence_mask": torch.ones(2, length, dtype=torch.bool),
    }


def padded(fields, extra):
    """The same batch with `extra` tokens of padding behind every text."""
    longer = {}
    for name, tensor in fields.items():
        if name.endswith(("input_ids", "_mask")):
            tensor = F.pad(tensor, (0, extra), value=False if tensor.dtype == torch.bool else 7)
        longer[name] = tensor
    return longer


def assert_same(left, right, atol=1e-6):
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# ---- parts


def test_attention_is_the_formula_and_never_looks_at_masked_keys():
    layer = Attention(8, heads=2, dim_head=3)
    query, context = torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]]).bool()
    q, (k, v) = layer.to_query(query), layer.to_key_value(context).split(6, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        scores = q[..., head] @ k[..., head].mT / math.sqrt(3)
        heads.append(scores.masked_fill(~mask[:, None], -math.inf).softmax(-1) @ v[..., head])
    torch.testing.assert_close(layer(query, context, mask), layer.to_out(torch.cat(heads, -1)))


def test_perceiver_without_masked_tokens_is_the_perceiver_without_them():
    perceiver = Perceiver(8, depth=2, heads=2, dim_head=4)
    latents, context = torch.randn(1, 3, 8), torch.randn(1, 6, 8)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1]]).bool()
    torch.testing.assert_close(perceiver(latents, context, mask), perceiver(latents, context[:, mask[0]]))


def test_rms_norm_of_a_hand_made_token():
    norm = RMSNorm(2)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / math.sqrt(12.5))
    assert norm(torch.zeros(2)).tolist() == [0, 0]


# ---- rows and masks


def test_rows_with_and_without_context_come_out_as_if_alone(build):
    model = build().eval()
    fields = batch()
    together = model(**fields)
    for row in range(3):
        alone = {name: tensor[row : row + 1] if len(tensor) == 3 else tensor for name, tensor in fields.items()}
        out = model(**alone)
        torch.testing.assert_close(out.visual_latents[0], together.visual_latents[row], rtol=0, atol=1e-6)
    queries = model.latents + model.image_type
    torch.testing.assert_close(together.context_latents[1], queries)
    assert not torch.allclose(together.context_latents[0], queries)


def test_results_do_not_depend_on_how_long_the_padding_is(build):
    model = build().eval()
    fields = batch()
    assert_same(model(**fields), model(**padded(fields, extra=9)))


@pytest.mark.parametrize("name", ["report_embed", "visual_latents", "context_latents", "report_logits"])
def test_published_behaviour_lets_padding_in(build, name):
    model = build(mask_padding=False).eval()
    fields = batch()
    assert not torch.allclose(model(**fields)[name], model(**padded(fields, extra=9))[name], atol=1e-4)


def test_patches_of_padding_are_not_read(build):
    model = build().eval()
    features, context = torch.randn(2, 17, 24), torch.randn(2, 4, 24)
    patch_mask = torch.ones(2, 16, dtype=torch.bool)
    patch_mask[0, :4] = False
    texts = (context, torch.ones(2, 4, dtype=torch.bool), torch.tensor([True, False]))
    changed = features.clone()
    changed[0, 1:5] = torch.randn(4, 24)
    torch.testing.assert_close(
        model.fuse(features, patch_mask, *texts).visual, model.fuse(changed, patch_mask, *texts).visual
    )
    assert not torch.allclose(model.fuse(features, None, *texts).visual, model.fuse(changed, None, *texts).visual)
    changed[0, 0] = torch.randn(24)  # CLS is read
    assert not torch.allclose(
        model.fuse(features, patch_mask, *texts).visual[0], model.fuse(changed, patch_mask, *texts).visual[0]
    )


def test_text_without_a_token_gives_numbers(build):
    fields = batch()
    for name in ("context_mask", "report_mask", "sentence_mask"):
        fields[name][0] = False
    out = build()(**fields)
    assert all(tensor.isfinite().all() for tensor in out.values())


@pytest.mark.parametrize("has_context", [[True] * 3, [False] * 3, [True, False, True]])
@pytest.mark.parametrize("tuned_blocks", [1, -1])
def test_every_trained_parameter_takes_part_in_every_batch(build, has_context, tuned_blocks):
    model = build(tuned_blocks=tuned_blocks).train()
    out = model(**{**batch(), "has_context": torch.tensor(has_context)})
    sum(tensor.sum() for tensor in out.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_shapes_and_names(build):
    out = build()(**batch())
    shapes = {name: tuple(tensor.shape) for name, tensor in out.items()}
    assert shapes == {
        "patch_features": (3, 17, 24),
        "visual_latents": (3, 5, 24),
        "context_latents": (3, 5, 24),
        "visual_embed": (3, 24),
        "report_embed": (3, 24),
        "sentence_embed": (2, 24),
        "vision_logits": (3, 14),
        "report_logits": (3, 14),
        "logit_scale": (),
        "logit_scale_gaze": (),
    }


def test_stored_tokens_stand_for_the_tower(build):
    model = build().eval()
    fields = batch()
    stored = {**fields, "pixel_values": None, "vision_tokens": model.vision(fields["pixel_values"])}
    assert_same(model(**fields), model(**stored), atol=0)


def test_a_sentence_is_its_first_token_or_the_mean_of_its_tokens(build):
    fields = batch()
    for pooling in ("first", "mean"):
        model = build(sentence_pooling=pooling).eval()
        text = model.encode_text(fields["sentence_input_ids"], fields["sentence_mask"])
        expected = text.token_features[:, 0] if pooling == "first" else text.token_features.mean(1)
        torch.testing.assert_close(model(**fields).sentence_embed, expected)


# ---- towers


def test_the_frozen_tower_is_never_in_training_mode_and_gets_no_gradient(build):
    model = build().train()
    pixels = torch.randn(1, 3, 28, 28)
    assert model.training
    assert model.text.tower.training
    assert not any(module.training for module in model.vision.tower.modules())
    assert not any(parameter.requires_grad for parameter in model.vision.parameters())
    first, second = model.vision(pixels), model.vision(pixels)
    assert torch.equal(first, second)  # no dropout, no stochastic depth
    assert first.grad_fn is None


def test_the_last_blocks_and_the_norm_behind_them_can_be_tuned(build):
    tower = build(tuned_blocks=1).train().vision.tower
    trained = {name.rsplit(".", 1)[0] for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert "layernorm" in trained
    assert all(name.startswith(("encoder.layer.1.", "layernorm")) for name in trained)
    assert tower.encoder.layer[1].training
    assert not tower.encoder.layer[0].training


def test_a_whole_tower_can_be_tuned(build):
    tower = build(tuned_blocks=-1).train().vision.tower
    frozen = {name for name, parameter in tower.named_parameters() if not parameter.requires_grad}
    assert frozen == {"embeddings.mask_token"}  # no image has a gradient for it
    assert all(module.training for module in tower.modules())


def save(path, model):
    model.save_pretrained(path)
    return str(path)


OTHER_TOWERS = {
    "vit": (lambda: ViTModel(ViTConfig(**LAYERS, intermediate_size=32, patch_size=7, image_size=28)), 16),
    "registers": (
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**LAYERS, patch_size=7, image_size=28, num_register_tokens=3)
        ),
        16,
    ),
    "swin without CLS": (
        lambda: SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, image_size=32)),
        16,
    ),
}


@pytest.mark.parametrize("name", OTHER_TOWERS)
def test_other_towers_give_cls_and_patches(towers, tmp_path, name):
    tower, patches = OTHER_TOWERS[name]
    folder = save(tmp_path / "tower", tower())
    model = build_cogaze(folder, str(towers / "bert"), **SIZES).eval()
    size = model.config.image_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        tokens = model.vision(images)
        theirs = model.vision.tower(images)
    assert tokens.shape == (2, 1 + patches, 16)
    torch.testing.assert_close(tokens[:, 1:], theirs.last_hidden_state[:, -patches:])
    first = theirs.last_hidden_state[:, 0] if name != "swin without CLS" else theirs.last_hidden_state.mean(1)
    torch.testing.assert_close(tokens[:, 0], first)
    model.save_pretrained(tmp_path / "saved")
    assert_equal_weights(CoGazeModel.from_pretrained(tmp_path / "saved"), model)


FEATURE_MAPS = {
    "resnet": lambda: ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
}


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_cells_of_a_feature_map_are_patches(towers, tmp_path, name):
    folder = save(tmp_path / "tower", FEATURE_MAPS[name]())
    model = build_cogaze(folder, str(towers / "bert"), image_size=24, **SIZES).eval()
    assert model.patch_grid == (3, 3)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        tokens = model.vision(images)
        feature_map = model.vision.tower(images).last_hidden_state
    for cell in range(9):
        torch.testing.assert_close(tokens[:, 1 + cell], feature_map[:, :, cell // 3, cell % 3])
    torch.testing.assert_close(tokens[:, 0], feature_map.mean(dim=(2, 3)))
    model.save_pretrained(tmp_path / "saved")
    assert_equal_weights(CoGazeModel.from_pretrained(tmp_path / "saved"), model)
    with pytest.raises(ValueError, match=r"image_size 25 is not a multiple of the 8 px .* set it to 24"):
        build_cogaze(folder, str(towers / "bert"), image_size=25, **SIZES)


@pytest.mark.parametrize("tuned", [1, -1])
def test_batch_norm_works_with_its_stored_statistics(tuned):
    tower = VisionTower(FEATURE_MAPS["resnet"](), 24, tuned).train()
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    images = torch.randn(2, 3, 24, 24)
    both = tower(images)
    torch.testing.assert_close(both[:1], tower(images[:1]))  # whatever else is in the batch
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    trained = {name.split(".")[1] for name, parameter in tower.tower.named_parameters() if parameter.requires_grad}
    assert trained == ({"stages"} if tuned == 1 else {"stages", "embedder"})
    assert any(norm.weight.requires_grad for norm in norms)


def test_an_image_size_must_be_named_where_the_tower_takes_any(towers, tmp_path):
    folder = save(tmp_path / "tower", FEATURE_MAPS["resnet"]())
    with pytest.raises(ValueError, match="set image_size"):
        build_cogaze(folder, str(towers / "bert"), **SIZES)


@pytest.mark.parametrize("kind", ["dino", "vit"])
def test_positions_are_fitted_to_another_image_size(towers, tmp_path, kind):
    folder = str(towers / "dino") if kind == "dino" else save(tmp_path / "vit", OTHER_TOWERS["vit"][0]())
    model = build_cogaze(folder, str(towers / "bert"), image_size=42, **SIZES)
    assert model.patch_grid == (6, 6)
    assert model(**batch(image_size=42)).patch_features.shape == (3, 37, 24)


def test_an_image_that_is_not_whole_patches_is_refused(build):
    with pytest.raises(ValueError, match=r"image_size 30 is not a multiple of the 7 px .* set it to 28"):
        build(image_size=30)


def test_images_of_another_size_than_the_model_s_are_refused(build):
    with pytest.raises(ValueError, match=r"\(35, 35\) px, but the model was built for 28 px"):
        build()(**batch(image_size=35))


def test_a_tower_without_square_patches_is_refused():
    tower = Dinov2Model(Dinov2Config(**LAYERS, patch_size=[7, 7], image_size=28))
    assert VisionTower(tower, 28).patch_grid == (4, 4)
    tower.config.patch_size = [7, 14]
    with pytest.raises(ValueError, match=r"dinov2 tower has neither square patches nor a feature map: use Dinov2"):
        VisionTower(tower, 28)


def test_tokens_that_are_not_the_patch_grid_are_refused(monkeypatch):
    tower = Dinov2Model(DINO)
    tower.config.patch_size = 14  # the convolution still has 7
    with pytest.raises(ValueError, match=r"makes 17 tokens of an image of 28 px, not CLS and 2 x 2 patches"):
        VisionTower(tower, 28)


def test_more_blocks_than_there_are_cannot_be_tuned(build):
    with pytest.raises(ValueError, match=r"tuned_blocks 3 .* 0\.\.2, or to -1"):
        build(tuned_blocks=3)


@pytest.mark.parametrize("which", ["vision", "text"])
def test_a_missing_tower_is_named(towers, tmp_path, which):
    folders = {"vision": str(towers / "dino"), "text": str(towers / "bert"), which: str(tmp_path / "absent")}
    with pytest.raises(ValueError, match=f"no {which} tower at .*absent"):
        build_cogaze(folders["vision"], folders["text"], **SIZES)


@pytest.mark.parametrize("tower", ["dino", "bert"])
def test_a_tower_folder_without_all_its_weights_is_refused(towers, tmp_path, tower):
    folder = tmp_path / tower
    folder.mkdir()
    (folder / "config.json").write_bytes((towers / tower / "config.json").read_bytes())
    weights = load_file(towers / tower / "model.safetensors")
    weights.popitem()
    lacking = next(name for name in weights if name.endswith("norm1.weight") or name.endswith("query.weight"))
    del weights[lacking]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="has no weights for"):
        build_cogaze(*(str(folder if tower == name else towers / name) for name in ("dino", "bert")), **SIZES)


def test_text_towers_that_are_no_bert_are_refused(towers, tmp_path):
    roberta = RobertaModel(RobertaConfig(**LAYERS, intermediate_size=32, vocab_size=50))
    with pytest.raises(ValueError, match="holds a roberta model: name a BERT"):
        build_cogaze(str(towers / "dino"), save(tmp_path / "roberta", roberta), **SIZES)


def test_a_bert_with_heads_under_another_name_loads(towers, tmp_path):
    masked = BertForMaskedLM(BERT)
    folder = save(tmp_path / "cxr", masked)
    config = tmp_path / "cxr/config.json"
    config.write_text(config.read_text().replace('"model_type": "bert"', '"model_type": "cxr-bert"'))
    tower = load_text_tower(folder)
    assert_equal_weights(tower, masked.bert)


def test_text_layers_keep_the_first(build, towers):
    whole, short = build(), build(text_layers=1)
    assert len(short.text.tower.encoder.layer) == 1
    assert_equal_weights(short.text.tower.encoder.layer[0], whole.text.tower.encoder.layer[0])
    with pytest.raises(ValueError, match=r"text_layers 3, but .*bert has 2 layers: set it to 1\.\.2"):
        build(text_layers=3)


@pytest.mark.parametrize("size", [40, 57])
def test_another_vocabulary_resizes_the_word_embeddings(build, tmp_path, size):
    own, other = build(), build(vocabulary=Vocabulary(size, pad_token_id=3))
    words = other.text.tower.get_input_embeddings()
    kept = min(size, 50)
    assert words.weight.shape == (size, 16)
    assert torch.equal(words.weight[:kept], own.text.tower.get_input_embeddings().weight[:kept])
    assert words.weight.isfinite().all()
    other.save_pretrained(tmp_path)
    loaded = CoGazeModel.from_pretrained(tmp_path).text.tower
    assert (loaded.config.vocab_size, loaded.get_input_embeddings().padding_idx) == (size, 3)


def test_a_text_longer_than_the_positions_is_refused(build):
    with pytest.raises(ValueError, match="25 tokens, but the text tower has 24 positions"):
        build()(**batch(length=25))


# ---- building, saving, loading


def assert_equal_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_builder_keeps_the_towers_weights(build, towers):
    model = build()
    assert_equal_weights(model.vision.tower, Dinov2Model.from_pretrained(towers / "dino"))
    assert_equal_weights(model.text.tower, BertModel.from_pretrained(towers / "bert", add_pooling_layer=False))
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_a_size_that_does_not_exist_is_refused(build):
    with pytest.raises(ValueError, match="perceiver_width"):
        build(perceiver_width=3)


def test_every_own_parameter_is_initialised(build):
    """Built in memory full of NaN, nothing is NaN."""
    config = build().config
    dirty(CoGazeModel(config))
    model = CoGazeModel(config)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def dirty(model):
    """Fill memory of the sizes that the model takes with NaN, and free it."""
    shapes = [tensor.shape for tensor in [*model.parameters(), *model.buffers()]]
    garbage = [torch.full(shape, math.nan) for _ in range(20) for shape in shapes]
    del garbage


def test_loading_into_dirty_memory_gives_the_saved_model(build, tmp_path):
    model = build(vocabulary=Vocabulary(57, 3), tuned_blocks=1, num_labels=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path)
    for _ in range(3):
        dirty(model)
        loaded = CoGazeModel.from_pretrained(tmp_path)
        assert_equal_weights(loaded, model)
        assert {name for name, p in loaded.named_parameters() if p.requires_grad} == {
            name for name, p in model.named_parameters() if p.requires_grad
        }
        for (name, ours), (_, theirs) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
            assert torch.equal(ours, theirs), name
        fields = batch()
        assert_same(loaded(**fields), model(**fields))


def test_loading_asks_no_network(build, tmp_path, monkeypatch):
    model = build()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    assert_equal_weights(CoGazeModel.from_pretrained(tmp_path), model)


def test_under_bfloat16_autocast_the_outputs_are_near(build):
    model = build().eval()
    fields = batch()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**fields)
    for name, tensor in model(**fields).items():
        torch.testing.assert_close(half[name].float(), tensor, rtol=0.05, atol=0.05, msg=name)


def test_our_own_modules_have_no_buffers(build):
    towers = ("vision.tower.", "text.tower.")
    assert [name for name, _ in build().named_buffers() if not name.startswith(towers)] == []


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_that_are_not_exactly_the_model_s_are_refused(build, tmp_path, change):
    build().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["logit_scale_gaze"]
    else:
        weights["logit_scale_gaze_too"] = torch.zeros(())
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{change} keys \['logit_scale_gaze"):
        CoGazeModel.from_pretrained(tmp_path)


def test_weights_of_another_size_are_refused(build, tmp_path):
    build().save_pretrained(tmp_path)
    config = CoGazeConfig.from_pretrained(tmp_path, perceiver_latents=4)
    with pytest.raises(ValueError, match=r"mismatched keys .*latents.*\[5, 24\].*\[4, 24\]"):
        CoGazeModel.from_pretrained(tmp_path, config=config)


def test_the_config_survives_its_file(build, tmp_path):
    config = build(image_size=42, tuned_blocks=1, mask_padding=False).config
    config.save_pretrained(tmp_path)
    loaded = CoGazeConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.image_size, loaded.num_labels, loaded.views) == (42, 14, ["PA", "AP", "LATERAL", "UNK"])
    assert loaded.id2label[8] == "No Finding"
    assert isinstance(loaded.text_config, BertConfig)

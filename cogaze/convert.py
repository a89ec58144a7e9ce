"""Published CoGaze weights under our names, strictly: every key has a place, or a reason to be dropped."""

import argparse
import copy
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig

from cogaze.models.cogaze import VIEWS, CoGazeConfig, CoGazeModel
from cogaze.models.text import text_config as read_text_config

StateDict = Mapping[str, torch.Tensor]

ANCHOR = "shared_latent"  # a published key that nothing else ends in: what stands before it is a wrapper's prefix

DROPPED = {
    r"perceiver\.latents": "latents are always handed in; these were never used",
    r"text_encoder\.(bert\.)?pooler\..*": "token states are used, not the pooler's output",
    r"text_encoder\.(cls|cls_projection_head)\..*": "CXR-BERT's pretraining heads, not used",
    r"text_encoder\.(bert\.)?embeddings\.position_ids": "a counter that transformers makes itself",
    r"multi_label_loss\.class_weights": "loss weights, computed from the labels of the training data",
}

RENAMED = (
    (r"image_encoder\.(.*)", r"vision.tower.\1"),
    (r"image_projector\.add_pos_embed\.pos_embed", "image_projector.view_embedding.weight"),
    (r"image_projector\.add_pos_embed\.pos_norm\.weight", "image_projector.norm.weight"),
    (r"image_projector\.projector\.(.*)", r"image_projector.projector.\1"),
    (r"text_encoder\.(?:bert\.)?(.*)", r"text.tower.\1"),
    (r"text_projector\.layers\.(.*)", r"text.projector.\1"),
    (r"perceiver\.layers\.(\d+)\.0\.fn\.(.*)", r"perceiver.layers.\1.cross_attention.\2"),
    (r"perceiver\.layers\.(\d+)\.0\.norm\.(.*)", r"perceiver.layers.\1.cross_norm.\2"),
    (r"perceiver\.layers\.(\d+)\.0\.norm_context\.(.*)", r"perceiver.layers.\1.context_norm.\2"),
    (r"perceiver\.layers\.(\d+)\.1\.fn\.(.*)", r"perceiver.layers.\1.cross_feed_forward.\2"),
    (r"perceiver\.layers\.(\d+)\.1\.norm\.(.*)", r"perceiver.layers.\1.cross_feed_norm.\2"),
    (r"perceiver\.layers\.(\d+)\.2\.0\.0\.fn\.(.*)", r"perceiver.layers.\1.self_attention.\2"),
    (r"perceiver\.layers\.(\d+)\.2\.0\.0\.norm\.(.*)", r"perceiver.layers.\1.self_norm.\2"),
    (r"perceiver\.layers\.(\d+)\.2\.0\.1\.fn\.(.*)", r"perceiver.layers.\1.self_feed_forward.\2"),
    (r"perceiver\.layers\.(\d+)\.2\.0\.1\.norm\.(.*)", r"perceiver.layers.\1.self_feed_norm.\2"),
    (r"shared_latent", "latents"),
    (r"latent_type_embed\.(context|image)", r"\1_type"),
    (r"vision_classifier\.classifier\.(.*)", r"vision_head.classifier.\1"),
    (r"report_classifier\.classifier\.(.*)", r"report_head.classifier.\1"),
    (r"(logit_scale|logit_scale_gaze)", r"\1"),
)

PARTS = {  # inside the Perceiver's attention and feed-forward
    ".to_q.": ".to_query.",
    ".to_kv.": ".to_key_value.",
    ".net.0.": ".widen.",
    ".net.2.": ".narrow.",
}

TOWER_STYLES = (  # how transformers 4 and 5 name the same weights of Dinov2
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)


def read_published(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors, or a Lightning checkpoint without running any code in it, and strip a wrapper's prefix."""
    if path.suffix == ".safetensors":
        stored: Any = load_file(path)
    else:
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path.name} holds other things than tensors, which could run code: where you trust it, save its"
                ' "state_dict" alone as safetensors'
            ) from error
    state: StateDict = stored.get("state_dict", stored)
    prefix = next((key.removesuffix(ANCHOR) for key in state if key.endswith(ANCHOR)), None)
    if prefix is None:
        what = f"{path.name} has no {ANCHOR} among its {len(state)} keys"
        raise ValueError(f"{what}: it is no published CoGaze checkpoint")
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def our_name(published: str) -> str | None:
    """The name of a published weight in CoGazeModel; None if it is dropped.

    Raises:
        ValueError: No rule knows the name.
    """
    if any(re.fullmatch(pattern, published) for pattern in DROPPED):
        return None
    for pattern, name in RENAMED:
        if re.fullmatch(pattern, published):
            ours = re.sub(pattern, name, published)
            break
    else:
        raise ValueError(f"no rule for the published key {published}: add it to DROPPED with a reason, or to RENAMED")
    if ours.startswith("perceiver."):
        for part, name in PARTS.items():
            ours = ours.replace(part, name)
    return ours


def installed_name(name: str, installed: set[str]) -> str:
    """The name of a vision tower's weight in the style of the transformers at hand."""
    if name in installed or not name.startswith("vision.tower."):
        return name
    for styles in TOWER_STYLES:
        for ours, theirs in (styles, styles[::-1]):
            if name.replace(ours, theirs) in installed:
                return name.replace(ours, theirs)
    return name


def published_config(
    state: StateDict,
    vision_config: PreTrainedConfig,
    text_config: PreTrainedConfig,
    *,
    dim_head: int = 64,
    views: tuple[str, ...] = VIEWS,
) -> CoGazeConfig:
    """The config of published weights with the published behaviour: sizes from the shapes, the towers' from theirs."""

    def count(pattern: str) -> int:
        return len({found[1] for key in state if (found := re.match(pattern, key))})

    def rows(pattern: str) -> int:
        found = [len(tensor) for key, tensor in state.items() if re.fullmatch(pattern, key)]
        if not found:
            raise ValueError(f"the checkpoint lacks {pattern}, off which a size is read: convert a whole CoGaze model")
        return found[0]

    text_config = copy.deepcopy(text_config)
    text_config.vocab_size = rows(r"text_encoder\.(bert\.)?embeddings\.word_embeddings\.weight")
    text_config.num_hidden_layers = count(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.")
    text_config.pad_token_id = None  # the config's own is of another vocabulary
    return CoGazeConfig(
        vision_config=copy.deepcopy(vision_config),
        text_config=text_config,
        hidden_size=rows(r"image_projector\.projector\.2\.weight"),
        projector_hidden_size=rows(r"image_projector\.projector\.0\.weight"),
        views=list(views),
        perceiver_depth=count(r"perceiver\.layers\.(\d+)\."),
        perceiver_latents=rows(ANCHOR),
        perceiver_heads=rows(r"perceiver\.layers\.0\.0\.fn\.to_q\.weight") // dim_head,
        perceiver_dim_head=dim_head,
        mask_padding=False,
    )


def convert_published(state_dict: StateDict, config: CoGazeConfig) -> CoGazeModel:
    """A model with the published weights, each of them in its place.

    Raises:
        ValueError: A key has no place, a weight of ours has no key, or a shape differs from the config's.
    """
    model = CoGazeModel(config)
    ours = model.state_dict()
    named = {key: our_name(key) for key in state_dict}
    renamed = {installed_name(name, set(ours)): state_dict[key] for key, name in named.items() if name is not None}
    unexpected, missing = sorted(set(renamed) - set(ours)), sorted(set(ours) - set(renamed))
    if unexpected or missing:
        raise ValueError(
            f"the weights do not fill this config: no place for {unexpected}, nothing for {missing};"
            " check the towers' configs and the number of layers"
        )
    for name, tensor in renamed.items():
        if tensor.squeeze().shape != ours[name].squeeze().shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, but {tuple(ours[name].shape)} in the config: give the sizes that"
                " the weights were trained with"
            )
        renamed[name] = tensor.reshape(ours[name].shape)  # the view and type embeddings have a 1 in between
    model.load_state_dict(renamed, strict=True)
    return model.eval()


def main(arguments: list[str] | None = None) -> int:
    """Convert a published checkpoint into a folder for CoGazeModel.from_pretrained."""
    parser = argparse.ArgumentParser(prog="python -m cogaze.convert", description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="Lightning .ckpt or .safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vision", default="microsoft/rad-dino", help="name or folder of the vision tower's config")
    parser.add_argument(
        "--text", default="microsoft/BiomedVLP-CXR-BERT-specialized", help="name or folder of the text tower's config"
    )
    parser.add_argument("--dim-head", type=int, default=64, help="width of one Perceiver head")
    parser.add_argument("--views", nargs="+", default=VIEWS, help="names of the view positions, in their order")
    options = parser.parse_args(arguments)
    try:
        state = read_published(options.checkpoint)
        vision, text = AutoConfig.from_pretrained(options.vision), read_text_config(options.text)
        config = published_config(state, vision, text, dim_head=options.dim_head, views=tuple(options.views))
        convert_published(state, config).save_pretrained(options.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"cogaze.convert: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Small untrained towers and a tokenizer of one's own texts, as folders: for demos and tests without a hub."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
)

from cogaze.data.collate import PUBLISHED_TOKENS, ROLES


@dataclass(frozen=True)
class TinyTowers:
    """Kind and sizes of the towers.

    vision: "resnet", three stages of one block each, learns from a few hundred images what a transformer ("dinov2", of
    `layers` blocks on patches of `patch_px`) needs far more for. width: of both towers' tokens.
    """

    vision: Literal["resnet", "dinov2"] = "resnet"
    image_px: int = 112
    patch_px: int = 14
    width: int = 64
    layers: int = 2
    vocabulary: int = 1500
    seed: int = 0


def write_tiny_towers(out: Path, texts: Iterable[str], sizes: TinyTowers | None = None) -> None:
    """Write `out`/vision, text and decoder, random, with a WordPiece tokenizer trained on the texts in the last two."""
    sizes = sizes or TinyTowers()
    tokenizer = _tokenizer(texts, sizes.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.seed)
        vision = _vision(sizes)
        text = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=sizes.width,
                num_hidden_layers=sizes.layers,
                num_attention_heads=4,
                intermediate_size=2 * sizes.width,
                max_position_embeddings=320,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=sizes.width,
                n_layer=sizes.layers,
                n_head=4,
                n_positions=320,
                bos_token_id=tokenizer.cls_token_id,
                eos_token_id=tokenizer.sep_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    vision.save_pretrained(out / "vision")
    text.save_pretrained(out / "text")
    decoder.save_pretrained(out / "decoder")
    for folder in ("text", "decoder"):
        tokenizer.save_pretrained(out / folder)


def _vision(sizes: TinyTowers) -> PreTrainedModel:
    if sizes.vision == "resnet":
        widths = [sizes.width // 4, sizes.width // 2, sizes.width]
        return ResNetModel(
            ResNetConfig(embedding_size=widths[0], hidden_sizes=widths, depths=[1, 1, 1], layer_type="basic")
        )
    return Dinov2Model(
        Dinov2Config(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=4,
            image_size=sizes.image_px,
            patch_size=sizes.patch_px,
        )
    )


def _tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=["[UNK]", *PUBLISHED_TOKENS], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **ROLES)

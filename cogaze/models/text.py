"""The text side: a BERT's token states and a projector."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.utils.generic import ModelOutput

from cogaze.models.heads import masked_mean, projector

ABSENT: Any = None  # transformers wants this default for each field of an output, though none is ever left out
BERT_TYPES = ("bert", "cxr-bert")  # CXR-BERT is a BERT with one more head, under its own name


@dataclass
class TextFeatures(ModelOutput):
    """token_features (B, L, D); pooled (B, D), the mean of a text's own tokens."""

    token_features: torch.Tensor = ABSENT
    pooled: torch.Tensor = ABSENT


@dataclass(frozen=True)
class Vocabulary:
    """The size and padding token of the tokenizer that feeds a text tower: Vocabulary.of(tokenizer)."""

    size: int
    pad_token_id: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """Measure a tokenizer with its added tokens."""
        return cls(len(tokenizer), tokenizer.pad_token_id)


def text_config(name_or_path: str, layers: int | None = None) -> BertConfig:
    """Read a BERT's config, cut to its first `layers` layers."""
    try:
        stored, _ = BertConfig.get_config_dict(name_or_path)
    except OSError as error:
        raise ValueError(f"no text tower at {name_or_path}: name a folder with a BERT, or one on the hub") from error
    model_type = stored.pop("model_type", None)
    if model_type not in BERT_TYPES:
        raise ValueError(f"{name_or_path} holds a {model_type} model: name a BERT ({' or '.join(BERT_TYPES)})")
    config = BertConfig.from_dict(stored)
    depth = config.num_hidden_layers
    if layers is not None and not 0 < layers <= depth:
        raise ValueError(f"text_layers {layers}, but {name_or_path} has {depth} layers: set it to 1..{depth}")
    config.num_hidden_layers = layers or depth
    return config


def load_text_tower(name_or_path: str, layers: int | None = None, vocabulary: Vocabulary | None = None) -> BertModel:
    """Read a BERT's first `layers` layers, in float32; a weight that the folder lacks is an error.

    A vocabulary of another size cuts the word embeddings or adds rows to them. Under another tokenizer the rows that
    stay mean nothing any more: they are a start like any other.
    """
    config = text_config(name_or_path, layers)
    loaded: Any = BertModel.from_pretrained(
        name_or_path, config=config, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
    )
    tower, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{name_or_path} has no weights for {missing[:3]} ({len(missing)} in all) of a BERT: name a folder that"
            " holds the whole text model"
        )
    if vocabulary is not None:
        tower.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        tower.config.pad_token_id = tower.get_input_embeddings().padding_idx = vocabulary.pad_token_id
    return tower


class TextEncoder(nn.Module):
    """A BERT and a projector to the width shared with images."""

    def __init__(self, tower: BertModel, hidden_width: int, out_width: int, *, mask_padding: bool = True) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector(tower.config.hidden_size, hidden_width, out_width)
        self.mask_padding = mask_padding

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> TextFeatures:
        """(B, L) token numbers, (B, L) bool mask, True for a token, no row of it empty -> features.

        Without `mask_padding` the mean includes padding, as published; the tower itself never attends to it.
        """
        check_length(self.tower, input_ids)
        states = self.tower(input_ids=input_ids, attention_mask=mask).last_hidden_state
        features = self.projector(states)
        return TextFeatures(features, masked_mean(features, mask if self.mask_padding else None))


def check_length(tower: BertModel, input_ids: torch.Tensor) -> None:
    """Raise ValueError where texts (B, L) have more tokens than a tower has positions."""
    longest = tower.config.max_position_embeddings
    if input_ids.shape[1] > longest:
        raise ValueError(
            f"a text of {input_ids.shape[1]} tokens, but the text tower has {longest} positions: set the longest"
            f" text to {longest} tokens or less"
        )


def never_empty(mask: torch.Tensor) -> torch.Tensor:
    """(B, L) bool with every empty row filled, because attention over nothing is NaN; nobody uses such a row."""
    return mask | ~mask.any(dim=1, keepdim=True)

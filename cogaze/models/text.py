"""The text side: a BERT's token states and a projector."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedConfig
from transformers.utils import ModelOutput

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
    stored, _ = PreTrainedConfig.get_config_dict(name_or_path)
    if stored.get("model_type") not in BERT_TYPES:
        raise ValueError(
            f"{name_or_path} holds a {stored.get('model_type')} model: the text tower is a BERT ({', '.join(BERT_TYPES)})"
        )
    config = BertConfig.from_dict({key: value for key, value in stored.items() if key != "model_type"})
    if layers is not None and not 0 < layers <= config.num_hidden_layers:
        raise ValueError(
            f"text_layers {layers}, but {name_or_path} has {config.num_hidden_layers} layers: set it to"
            f" 1..{config.num_hidden_layers}"
        )
    config.num_hidden_layers = layers or config.num_hidden_layers
    return config


def load_text_tower(name_or_path: str, layers: int | None = None, vocabulary: Vocabulary | None = None) -> BertModel:
    """Read a BERT's first `layers` layers, in float32, for its own vocabulary or another.

    The word embeddings of another vocabulary start anew, because a row of the old one means another word.
    """
    config = text_config(name_or_path, layers)
    tower, report = BertModel.from_pretrained(
        name_or_path, config=config, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{name_or_path} has no weights for {missing[:3]} ({len(missing)} in all) of a BERT: name a folder that"
            " holds the whole text model"
        )
    if vocabulary is not None and vocabulary != Vocabulary(config.vocab_size, config.pad_token_id):
        replace_vocabulary(tower, vocabulary)
    return tower


def replace_vocabulary(tower: BertModel, vocabulary: Vocabulary) -> None:
    """Give the tower new word embeddings, as many as the vocabulary has tokens."""
    tower.config.pad_token_id = vocabulary.pad_token_id
    words = nn.Embedding(vocabulary.size, tower.config.hidden_size, padding_idx=vocabulary.pad_token_id)
    tower.set_input_embeddings(words)
    tower._init_weights(words)
    tower.config.vocab_size = vocabulary.size


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
        longest = self.tower.config.max_position_embeddings
        if input_ids.shape[1] > longest:
            raise ValueError(
                f"a text of {input_ids.shape[1]} tokens, but the text tower has {longest} positions: set the longest"
                f" text to {longest} tokens or less"
            )
        states = self.tower(input_ids=input_ids, attention_mask=mask).last_hidden_state
        features = self.projector(states)
        return TextFeatures(features, masked_mean(features, mask if self.mask_padding else None))

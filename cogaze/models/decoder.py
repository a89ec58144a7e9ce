"""A language model that attends over the latents of an image and its context: GPT-2 with cross-attention."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from cogaze.models.text import Vocabulary

Start = Literal["pretrained", "random", "model"]


class CrossAttentionDecoder(nn.Module):
    """A GPT-2 whose blocks attend over latents (B, N, D), projected where its width is another."""

    kind = "cross_attention"

    def __init__(self, config: GPT2Config, latent_width: int, model: GPT2LMHeadModel | None = None) -> None:
        super().__init__()
        self.model: Any = model or GPT2LMHeadModel(config)
        width = self.model.config.n_embd
        self.bridge = nn.Identity() if latent_width == width else nn.Linear(latent_width, width)

    def forward(self, latents: Tensor, input_ids: Tensor, mask: Tensor, latent_mask: Tensor) -> Tensor:
        """Return logits (B, L, vocabulary) after each of the tokens (B, L); mask (B, L) bool, True for a token.

        latent_mask is of decoders that read latents among their tokens.
        """
        del latent_mask
        seen = self.bridge(latents)
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=mask, encoder_hidden_states=seen, use_cache=False
        ).logits
        return logits

    @torch.no_grad()
    def write(self, latents: Tensor, input_ids: Tensor, mask: Tensor, latent_mask: Tensor, **options: Any) -> Tensor:
        """Return what follows the tokens (B, L), padded on the left, of each row: (B, at most max_new_tokens)."""
        del latent_mask
        seen = self.bridge(latents)
        written: Tensor = self.model.generate(
            input_ids=input_ids, attention_mask=mask, encoder_hidden_states=seen, **options
        )
        return written[:, input_ids.shape[1] :]


def check_positions(config: GPT2Config, max_tokens: int) -> None:
    """Raise ValueError where a text may have more tokens than the decoder has positions."""
    if max_tokens > config.n_positions:
        raise ValueError(
            f"a text may have {max_tokens} tokens, but the decoder has {config.n_positions} positions; lower max_tokens"
        )


def cross_attention_config(name_or_path: str, vocabulary: Vocabulary) -> GPT2Config:
    """Return a GPT-2's config with cross-attention and a vocabulary; raises ValueError where it is no GPT-2."""
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"no decoder at {name_or_path}: name a folder with a GPT-2, or one on the hub") from error
    if not isinstance(config, GPT2Config):
        raise ValueError(
            f"decoder.name is a {config.model_type}, but cross-attention needs a GPT-2 such as distilgpt2; set"
            " decoder.kind to llm for other language models"
        )
    config.add_cross_attention, config.is_decoder = True, True
    config.vocab_size, config.pad_token_id = vocabulary.size, vocabulary.pad_token_id
    return config


def build_cross_attention(
    name_or_path: str, tokenizer: Any, latent_width: int, start: Start = "pretrained"
) -> CrossAttentionDecoder:
    """A GPT-2 with new cross-attention, whose vocabulary is a tokenizer's.

    start: "random" keeps nothing but the sizes, as published; "pretrained" keeps all weights, which needs a tokenizer
    that begins with the GPT-2's own tokens. Raises ValueError where it does not.
    """
    vocabulary = Vocabulary.of(tokenizer)
    config = cross_attention_config(name_or_path, vocabulary)
    if start == "random":
        return CrossAttentionDecoder(config, latent_width)
    own = AutoTokenizer.from_pretrained(name_or_path).get_vocab()
    ours = tokenizer.get_vocab()
    elsewhere = sum(ours.get(token) != number for token, number in own.items())
    if elsewhere:
        raise ValueError(
            f"{elsewhere} of the decoder's {len(own)} tokens have another number in the tokenizer of the pretrained"
            " model: its weights would mean nothing; take the GPT-2 whose tokenizer the model has, or set"
            " decoder.start to random"
        )
    config.vocab_size = len(own)
    model: Any = GPT2LMHeadModel.from_pretrained(name_or_path, config=config, dtype=torch.float32)
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    return CrossAttentionDecoder(model.config, latent_width, model)

"""What differs between the methods when a saved model is evaluated: what an image is, and a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from cogaze.data.collate import CollateConfig, report_sentences
from cogaze.models.cogaze import CoGazeModel
from cogaze.models.egma import EgmaModel
from cogaze.models.heads import masked_mean


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as token numbers and mask, (texts, length) each; True in the mask for a token."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Shown:
    """B images as tensors: pixel_values (B, 3, H, W), patch_mask (B, P), view_position (B,), context, has_context."""

    pixel_values: Tensor
    patch_mask: Tensor
    view_position: Tensor
    context: Tokens
    has_context: Tensor


class Method(Protocol):
    """What differs between the methods."""

    model: Any
    report: str  # prompts with their placeholder
    sentence: str
    by_patches: bool  # an image is compared with a text patch by patch
    has_head: bool  # for diseases
    reads_context: bool  # clinical context steers the image

    def see(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Return patches (B, P, D) and latents (B, L, D)."""

    def texts(self, tokens: Tokens) -> Tensor:
        """Return one vector (texts, D) for each whole text."""

    def sentences(self, tokens: Tokens) -> Tensor:
        """Return one vector (sentences, D) for each spoken sentence."""

    def pieces(self, text: str) -> list[str]:
        """Return what a text consists of when it is compared with images, at least one piece."""

    def disease_logits(self, pooled: Tensor) -> Tensor:
        """Return the logits (B, 14) of a head on pooled latents (B, D), if the method has one."""

    def scale(self) -> Tensor:
        """Return what multiplies a cosine of sentence and patch."""


class CoGaze:
    """CoGaze: an image is the mean of its visual latents, a report the mean of its tokens."""

    by_patches, has_head, reads_context = False, True, True

    def __init__(self, model: CoGazeModel, collate: CollateConfig) -> None:
        self.model = model
        self.report, self.sentence = collate.text.report, collate.text.sentence

    def see(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Return patches (B, P, D) and visual latents (B, L, D)."""
        model = self.model
        patches = model.encode_image(shown.pixel_values, shown.view_position).patch_features
        context = model.encode_text(shown.context.ids, shown.context.mask).token_features
        latents = model.fuse(patches, shown.patch_mask, context, shown.context.mask, shown.has_context)
        return patches[:, 1:], latents.visual

    def texts(self, tokens: Tokens) -> Tensor:
        """Return the pooled report embedding (texts, D)."""
        pooled: Tensor = self.model.encode_text(tokens.ids, tokens.mask).pooled
        return pooled

    def sentences(self, tokens: Tokens) -> Tensor:
        """Return sentence embeddings (sentences, D), pooled as in training."""
        features = self.model.encode_text(tokens.ids, tokens.mask)
        found: Tensor = features.token_features[:, 0] if self.first_token else features.pooled
        return found

    @property
    def first_token(self) -> bool:
        """Whether a sentence is its first token."""
        return self.model.config.sentence_pooling == "first"

    def pieces(self, text: str) -> list[str]:
        """Return the whole text."""
        return [text]

    def disease_logits(self, pooled: Tensor) -> Tensor:
        """Return the image head's logits (B, 14)."""
        logits: Tensor = self.model.vision_head(pooled)
        return logits

    def scale(self) -> Tensor:
        """Return the gaze loss's scale."""
        return self.model.logit_scale_gaze.sum().exp()


class Egma:
    """EGMA: an image is its patches, a text its sentences, and context plays no part."""

    by_patches, has_head, reads_context = True, False, False

    def __init__(self, model: EgmaModel, collate: CollateConfig) -> None:
        self.model = model
        self.report, self.sentence = collate.text.report, collate.text.sentence

    def see(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Return patches (B, P, D), and the mean of those that show image as the one latent (B, 1, D)."""
        patches = self.model.encode_image(shown.pixel_values).patch_embed
        return patches, masked_mean(patches, shown.patch_mask).unsqueeze(1)

    def texts(self, tokens: Tokens) -> Tensor:
        """Return the embedding (texts, D) of each text as if it were one sentence."""
        embed: Tensor = self.model.encode_text(tokens.ids, tokens.mask).sentence_embed
        return embed

    def sentences(self, tokens: Tokens) -> Tensor:
        """Return sentence embeddings (sentences, D)."""
        return self.texts(tokens)

    def pieces(self, text: str) -> list[str]:
        """Return the sentences of a report, as training cuts it."""
        return report_sentences(text) or [text]

    def disease_logits(self, pooled: Tensor) -> Tensor:
        """Refuse: there is no head."""
        raise ValueError("EGMA has no head for diseases; leave the evaluator `labels` out")

    def scale(self) -> Tensor:
        """Return the losses' scale."""
        return self.model.logit_scale.clamp(max=self.model.config.max_logit_scale).sum().exp()


def _cogaze(folder: Path, collate: CollateConfig) -> Method:
    return CoGaze(CoGazeModel.from_pretrained(folder), collate)


def _egma(folder: Path, collate: CollateConfig) -> Method:
    return Egma(EgmaModel.from_pretrained(folder), collate)


METHODS = {"cogaze": _cogaze, "egma": _egma}

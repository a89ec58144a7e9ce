"""Where a sentence looks in its image, against where the reader looked."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cogaze.data.collate import Batch
from cogaze.evaluate.metrics import BoolArray, FloatArray
from cogaze.models.cogaze import CoGazeOutput
from gazeprep.metrics import auc_judd, auc_shuffled, cc, hits_of_map, kl, nss


@dataclass(frozen=True, eq=False)
class Spoken:
    """S spoken sentences over P patches: attention, gaze (S, P), shown (S, P), the image of each (S,)."""

    attention: FloatArray
    gaze: FloatArray
    shown: BoolArray
    image: FloatArray

    @classmethod
    def joined(cls, parts: list[Self], images: list[int]) -> Self:
        """Put batches of `images` images each behind one another."""
        offsets = np.cumsum([0, *images[:-1]])
        return cls(
            attention=np.concatenate([part.attention for part in parts]),
            gaze=np.concatenate([part.gaze for part in parts]),
            shown=np.concatenate([part.shown for part in parts]),
            image=np.concatenate([part.image + offset for part, offset in zip(parts, offsets, strict=True)]),
        )


def sentence_attention(output: CoGazeOutput, batch: Batch) -> Tensor:
    """Softmax (S, P) over an image's shown patches of scaled cosine with each of its sentences, as the loss has it."""
    of_image = (batch.sentence_image, batch.patch_mask)
    return attention(output.patch_features[:, 1:], output.sentence_embed, output.logit_scale_gaze, *of_image)


def attention(patches: Tensor, sentences: Tensor, log_scale: Tensor, image: Tensor, patch_mask: Tensor) -> Tensor:
    """Softmax (S, P) of the same, of patches (B, P, D) and sentences (S, D) of images (S,); patch_mask (B, P)."""
    patches = F.normalize(patches.float(), dim=-1)
    cosine = torch.einsum("spd,sd->sp", patches[image], F.normalize(sentences.float(), dim=-1))
    logits = log_scale.float().exp() * cosine
    return logits.masked_fill(~patch_mask[image], -torch.inf).softmax(dim=-1)


def spoken(attention: Tensor, batch: Batch) -> Spoken:
    """Keep the sentences with gaze on shown patches; an image's last row is its whole transcript and is left out."""
    image = batch.sentence_image
    whole = torch.ones_like(image, dtype=torch.bool)
    whole[:-1] = image[:-1] != image[1:]
    seen = (batch.heatmap * batch.patch_mask[image]).sum(dim=1) > 0
    keep = (batch.sentence_weight > 0) & ~whole & seen
    return Spoken(
        attention=attention[keep].double().cpu().numpy(),
        gaze=batch.heatmap[keep].double().cpu().numpy(),
        shown=batch.patch_mask[image[keep]].cpu().numpy(),
        image=image[keep].double().cpu().numpy(),
    )


def agreement(held_out: Spoken, trained_on: Spoken) -> dict[str, float]:
    """Mean NSS of the attention to each sentence, and of what has to be beaten.

    `mean gaze` is the mean map of the training sentences, which knows no sentence; `other sentence` the attention to
    the next sentence of the same image, against this one's gaze. A map that knows nothing has 0.
    """
    average = np.broadcast_to(trained_on.gaze.mean(axis=0), held_out.gaze.shape)
    following = next_of_same(held_out.image)
    other = following >= 0
    return {
        "sentence NSS": mean_nss(held_out.attention, held_out.gaze, held_out.shown),
        "sentence NSS of the mean gaze map": mean_nss(average, held_out.gaze, held_out.shown),
        "sentence NSS of another sentence": mean_nss(
            held_out.attention[following[other]], held_out.gaze[other], held_out.shown[other]
        ),
    }


def mean_nss(saliency: FloatArray, gaze: FloatArray, shown: BoolArray) -> float:
    """Mean over sentences of the NSS of their saliency under their gaze, among the shown patches alone.

    All (S, P); each sentence has gaze on a shown patch.
    """
    rows = zip(saliency, gaze, shown, strict=True)
    return float(np.mean([nss(one[None, cells], hits_of_map(seen[None, cells])) for one, seen, cells in rows]))


def next_of_same(image: FloatArray) -> FloatArray:
    """Give each sentence's next one of the same image, the first after the last; -1 for an only one."""
    following = np.full(len(image), -1)
    for number in np.unique(image):
        own = np.flatnonzero(image == number)
        if len(own) > 1:
            following[own] = np.roll(own, -1)
    return following


# --- one map after another, against what was looked at


@dataclass(frozen=True, eq=False)
class Gazed:
    """N texts of held-out readings, single sentences or whole dictations, and where their readers looked.

    gaze (N, P), with mass on shown patches; shown (N, P); subject (N,), for the intervals; elsewhere (P,): gaze on
    other images, the negatives of the shuffled AUC.
    """

    gaze: FloatArray
    shown: BoolArray
    subject: FloatArray
    elsewhere: FloatArray

    def __getitem__(self, rows: BoolArray) -> "Gazed":
        return Gazed(self.gaze[rows], self.shown[rows], self.subject[rows], self.elsewhere)

    def scores(self, saliency: FloatArray) -> "MapScores":
        """Score a map (N, P) for each text, or one (P,) for all, over the shown patches alone; NaN rows stay NaN."""
        rows = zip(np.broadcast_to(saliency, self.gaze.shape), self.gaze, self.shown, strict=True)
        found = [self._scored(one[cells], seen[cells], cells) for one, seen, cells in rows]
        return MapScores(*np.array(found).reshape(-1, len(METRICS)).T)

    def _scored(self, saliency: FloatArray, gaze: FloatArray, cells: BoolArray) -> tuple[float, ...]:
        if np.isnan(saliency).any():
            return (np.nan,) * len(METRICS)
        one, seen = saliency[None], gaze[None]
        hits = hits_of_map(seen)
        return (
            nss(one, hits),
            auc_judd(one, hits, negatives="all", thresholds="all"),
            auc_shuffled(one, hits, hits_of_map(self.elsewhere[None, cells])),
            cc(one, seen),
            kl(_with_uniform(one), seen),
        )


@dataclass(frozen=True, eq=False)
class MapScores:
    """How well maps tell where was looked, each (N,); all but kl are higher where they do better.

    nss: standard deviations. auc: against all shown patches. auc_shuffled: against the gaze on other images. kl: nats,
    of the gaze from the map with a hundredth of it spread evenly.
    """

    nss: FloatArray
    auc: FloatArray
    auc_shuffled: FloatArray
    cc: FloatArray
    kl: FloatArray


METRICS = {"NSS": "nss", "AUC": "auc", "shuffled AUC": "auc_shuffled", "CC": "cc", "KL": "kl"}
UNIFORM_SHARE = 0.01  # of a map, so that nothing is impossible to it, as in gazeprep.agreement


def _with_uniform(saliency: FloatArray) -> FloatArray:
    total = saliency.sum()
    even = np.full(saliency.shape, 1 / saliency.size)
    return (1 - UNIFORM_SHARE) * saliency / total + UNIFORM_SHARE * even if total > 0 else even

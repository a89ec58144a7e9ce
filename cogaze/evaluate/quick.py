"""One look at a saved model on held-out shards: retrieval, diseases, where sentences look; what to beat beside each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoTokenizer

from cogaze.config import RunConfig
from cogaze.data.collate import Batch, Collate
from cogaze.data.dataset import ShardDataset, read_table
from cogaze.data.loader import Stream
from cogaze.evaluate.gaze import Spoken, agreement, attention, sentence_attention, spoken
from cogaze.evaluate.metrics import auroc
from cogaze.evaluate.retrieval import retrieval_of
from cogaze.evaluate.similarity import Embedded, Similarity
from cogaze.methods import parts_of
from cogaze.models.cogaze import CoGazeModel, CoGazeOutput
from cogaze.models.egma import EgmaModel, EgmaOutput
from gazeprep.schema import CHEXPERT_LABELS, Split

HELD_OUT: tuple[Split, ...] = ("validate", "test")
LEAST_CASES = 5  # positives, and negatives, that a disease needs to be scored
STUDIES_OF_A_SPLIT = 10**9  # studies are numbered from 0 in each split
Ablation = Literal["", "no context", "no image"]
Array = npt.NDArray[np.float64]


class Look(Protocol):
    """What a method's output says of a batch; each of the first two has one entry for each valid sample."""

    @property
    def robbed(self) -> Mapping[str, Ablation]:
        """What evaluation takes away, by the words that its figures then end in."""

    def images(self, output: Any, batch: Batch) -> Embedded:
        """Return the images as what is compared with texts."""

    def reports(self, output: Any, batch: Batch) -> Embedded:
        """Return the reports as what is compared with images."""

    def texts(self, texts: Sequence[str], collate: Collate) -> Tensor:
        """Embed a text each (N, D)."""

    def scores(self, output: Any) -> Tensor | None:
        """Logits (B, 14) of diseases, if the method has them."""

    def attention(self, output: Any, batch: Batch) -> Tensor:
        """Softmax (S, P) of a sentence over its image's shown patches."""


@dataclass(frozen=True, eq=False)
class CoGazeLook:
    """CoGaze: an image is one vector, a report another."""

    model: CoGazeModel
    robbed: ClassVar[Mapping[str, Ablation]] = {"without its context": "no context", "without the image": "no image"}

    def images(self, output: CoGazeOutput, batch: Batch) -> Embedded:
        """Mean visual latent."""
        return Embedded.of(_array(output.visual_embed[batch.valid]))

    def reports(self, output: CoGazeOutput, batch: Batch) -> Embedded:
        """Mean report token."""
        return Embedded.of(_array(output.report_embed[batch.valid]))

    def texts(self, texts: Sequence[str], collate: Collate) -> Tensor:
        """Pooled as a report is."""
        prompts = [collate.config.text.report.format(report=text) for text in texts]
        return self.model.encode_text(**_tokens(prompts, collate, self.model)).pooled

    def scores(self, output: CoGazeOutput) -> Tensor:
        """Logits of the image's heads."""
        return output.vision_logits

    def attention(self, output: CoGazeOutput, batch: Batch) -> Tensor:
        """As its gaze loss has it."""
        return sentence_attention(output, batch)


@dataclass(frozen=True, eq=False)
class EgmaLook:
    """EGMA: an image is its shown patches, a report its sentences."""

    model: EgmaModel
    robbed: ClassVar[Mapping[str, Ablation]] = {"without the image": "no image"}

    def images(self, output: EgmaOutput, batch: Batch) -> Embedded:
        """Shown patches."""
        shown = batch.patch_mask[batch.valid]
        return Embedded(_array(output.patch_embed[batch.valid][shown]), shown.sum(dim=1).cpu().numpy())

    def reports(self, output: EgmaOutput, batch: Batch) -> Embedded:
        """Sentences; a vector of 0 stands where there is none."""
        groups = output.sentence_embed[batch.sentence_weight > 0].split(batch.sentences_per_image.tolist())
        nothing = output.sentence_embed.new_zeros(1, output.sentence_embed.shape[1])
        kept = [own if len(own) else nothing for own, valid in zip(groups, batch.valid.tolist(), strict=True) if valid]
        return Embedded(_array(torch.cat(kept)), np.array([len(own) for own in kept]))

    def texts(self, texts: Sequence[str], collate: Collate) -> Tensor:
        """As one sentence."""
        prompts = [collate.config.text.sentence.format(sentence=text) for text in texts]
        return self.model.encode_text(**_tokens(prompts, collate, self.model)).sentence_embed

    def scores(self, output: EgmaOutput) -> None:
        """There are no heads."""

    def attention(self, output: EgmaOutput, batch: Batch) -> Tensor:
        """By the scale that all its losses share."""
        of_image = (batch.sentence_image, batch.patch_mask)
        return attention(output.patch_embed, output.sentence_embed, output.logit_scale, *of_image)


def look_of(model: Any) -> Look:
    """Return what to make of a model's output."""
    return EgmaLook(model) if isinstance(model, EgmaModel) else CoGazeLook(model)


@dataclass(frozen=True, eq=False)
class Encoded:
    """N samples as a model sees them: images and reports, labels, mask and scores, if any, (N, 14), ids (N,).

    zero_shot (N, 14): how much more alike an image and the text that states a disease are than the one denying it.
    """

    image: Embedded
    report: Embedded
    scores: Array | None
    zero_shot: Array
    labels: Array
    mask: npt.NDArray[np.bool_]
    study_id: npt.NDArray[np.int64]
    has_report: npt.NDArray[np.bool_]
    spoken: Spoken

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Put batches behind one another."""
        scores = [part.scores for part in parts if part.scores is not None]
        plain = ("zero_shot", "labels", "mask", "study_id", "has_report")
        return cls(
            image=_joined([part.image for part in parts]),
            report=_joined([part.report for part in parts]),
            scores=np.concatenate(scores) if scores else None,
            spoken=Spoken.joined([part.spoken for part in parts], [len(part.image) for part in parts]),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in plain},
        )

    def retrieval(self) -> dict[str, float]:
        """Return the figures of the samples that have a report."""
        keep = np.flatnonzero(self.has_report)
        return retrieval_of(self.image[keep], self.report[keep], self.study_id[keep])

    def mean_auroc(self, scores: Array) -> float:
        """Return the mean over the diseases that have enough cases."""
        positive = ((self.labels > 0.5) & self.mask).sum(axis=0)
        negative = ((self.labels <= 0.5) & self.mask).sum(axis=0)
        enough = np.minimum(positive, negative) >= LEAST_CASES
        return float(auroc(scores, self.labels, self.mask)[enough].mean())


def evaluate(config: RunConfig, model: Any, splits: Sequence[Split] = HELD_OUT) -> dict[str, float]:
    """Figures by name of a model on splits of the config's shards, read as the config says, each view still.

    Every figure has what it has to beat beside it: `chance`, without the context, without the image (a gray canvas),
    the mean gaze map of the training split.
    """
    whole = encode(config, model, splits, gaze=False)
    robbed = {name: encode(config, model, splits, one, gaze=False) for name, one in look_of(model).robbed.items()}
    figures = {
        "samples": float(len(whole.image)),
        "studies": float(len(np.unique(whole.study_id))),
        **whole.retrieval(),
    }
    for name, encoded in robbed.items():
        found = encoded.retrieval()
        figures |= {f"{key} {name}": value for key, value in found.items() if not key.endswith("chance")}
    if whole.scores is not None:
        figures["mean AUROC"] = whole.mean_auroc(whole.scores)
    for name, encoded in robbed.items():
        if encoded.scores is not None:
            figures[f"mean AUROC {name}"] = encoded.mean_auroc(encoded.scores)
    figures["mean AUROC zero-shot"] = whole.mean_auroc(whole.zero_shot)
    looked = encode(config, model, splits).spoken
    if len(looked.image):
        figures |= agreement(looked, encode(config, model, ("train",)).spoken)
    return figures


def evaluate_folder(config: RunConfig, folder: Path, splits: Sequence[Split] = HELD_OUT) -> dict[str, float]:
    """Figures of a model that `fit` saved in a folder, tokenizer included."""
    tokenizer = str(folder)
    named = replace(config, model=replace(config.model, tokenizer=tokenizer))
    return evaluate(named, parts_of(config).model.from_pretrained(folder), splits)


@torch.no_grad()
def encode(
    config: RunConfig, model: Any, splits: Sequence[Split], ablation: Ablation = "", *, gaze: bool = True
) -> Encoded:
    """Encode every sample of the splits once.

    gaze: with the sentences that were dictated under gaze, and the attention to them; False for the reports alone, as
    they were written, of all samples.
    """
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model.tokenizer_name)
    collate = Collate(tokenizer, replace(config.collate, sentences="gaze") if gaze else config.collate)
    look = look_of(model)
    stated, denied = (_disease_texts(look, collate, text) for text in ("{}.", "no {}."))
    parts: list[Encoded] = []
    for number, split in enumerate(splits):
        for batch in _batches(config, model, collate, split, gaze=gaze):
            seen = _ablated(batch, ablation)
            output = model(**seen.model_inputs(model.batch_fields))
            image = look.images(output, seen)
            zero_shot = Similarity(image, stated).array() - Similarity(image, denied).array()
            parts.append(_encoded(look, output, seen, image, zero_shot, number * STUDIES_OF_A_SPLIT))
    return Encoded.joined(parts)


def _batches(config: RunConfig, model: Any, collate: Collate, split: Split, *, gaze: bool) -> Iterator[Batch]:
    """Deliver a split in its order, without anything random, gaze used wherever there is some, or nowhere."""
    plan = replace(config.plan, shuffle=False, gaze_ratio=float(gaze))
    dataset = ShardDataset(config.shards, read_table(config.shards, split), model.patch_grid, config.data.still())
    yield from Stream(dataset, collate, plan, workers=config.workers, device=model.device).epoch()


def _ablated(batch: Batch, ablation: Ablation) -> Batch:
    if ablation == "no context":
        return replace(batch, has_context=torch.zeros_like(batch.has_context))
    if ablation == "no image":
        gray = (255 * batch.pixel_mean[0]).round().to(batch.pixels.dtype)
        return replace(batch, pixels=torch.full_like(batch.pixels, int(gray)))
    return batch


def _disease_texts(look: Look, collate: Collate, text: str) -> Embedded:
    """Embed what states, or denies, each of the 14 diseases."""
    return Embedded.of(_array(look.texts([text.format(label.lower()) for label in CHEXPERT_LABELS], collate)))


def _tokens(prompts: list[str], collate: Collate, model: Any) -> dict[str, Tensor]:
    tokens = collate.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
    return {"input_ids": tokens["input_ids"], "mask": tokens["attention_mask"].bool()}


def _encoded(look: Look, output: Any, batch: Batch, image: Embedded, zero_shot: Array, first_study: int) -> Encoded:
    keep, scores = batch.valid, look.scores(output)
    return Encoded(
        image=image,
        report=look.reports(output, batch),
        scores=None if scores is None else _array(scores[keep]),
        zero_shot=zero_shot,
        labels=_array(batch.labels[keep]),
        mask=batch.label_mask[keep].cpu().numpy(),
        study_id=batch.study_id[keep].cpu().numpy() + first_study,
        has_report=batch.has_report[keep].cpu().numpy(),
        spoken=spoken(look.attention(output, batch), batch),
    )


def _joined(parts: Sequence[Embedded]) -> Embedded:
    return Embedded(np.concatenate([one.vectors for one in parts]), np.concatenate([one.count for one in parts]))


def _array(tensor: Tensor) -> Array:
    return tensor.double().cpu().numpy()

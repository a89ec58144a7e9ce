"""Which losses a method has, with what weight: output + batch -> named sums and counts -> one scalar."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from cogaze.data.collate import Batch
from cogaze.data.lines import ReportBatch
from cogaze.losses.contrastive import multi_positive_loss_sum
from cogaze.losses.egma import batch_contrastive_sum, cross_modal_mapping_sum, gaze_mlce_sum
from cogaze.losses.gaze import soft_gaze_loss_sum
from cogaze.losses.labels import class_balanced_bce_sum
from cogaze.losses.sums import LossSum
from cogaze.losses.words import IGNORED, token_nll_sum
from cogaze.models.cogaze import CoGazeOutput
from cogaze.models.egma import EgmaOutput
from cogaze.models.report import ReportOutput
from gazeprep.schema import CHEXPERT_LABELS

ALIGN = "align"

Embeddings = Mapping[str, Tensor]  # what the contrastive loss has to see of a micro-batch, by name


class Objective(Protocol):
    """The losses of a method: the loop sums, weighs and carries them back, and knows nothing else of it.

    The contrastive loss, named ALIGN, sees a whole global batch, in several micro-batches or one; the others add up
    over micro-batches. Where `contrasts` is False there is none, and nobody asks for embeddings.
    """

    contrasts: ClassVar[bool]

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each named loss."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Count what each loss will be summed over, before any model sees the batch."""

    def losses(self, output: Any, batch: Batch) -> dict[str, LossSum]:
        """Sum each loss other than the contrastive one over a batch of this process."""

    def embeddings(self, output: Any) -> Embeddings:
        """Take out of an output what the contrastive loss needs, with its gradients."""

    def aligned(self, seen: Sequence[Embeddings], window: Sequence[Batch]) -> LossSum:
        """Sum the contrastive loss of these micro-batches as of one batch, against those of all processes."""

    def scores(self, output: Any) -> Tensor | None:
        """Logits (B, labels) of diseases; None where the method has none."""

    def remarks(self) -> list[str]:
        """Say what of the training data will teach nothing."""


@dataclass(frozen=True)
class Weights:
    """Weights of named losses and their parameters; weight 0 leaves a loss out of the total."""

    losses: ClassVar[tuple[str, ...]] = ()
    shares: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, weight in self.weights().items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"objective.{name} is {weight}, must be at least 0, which leaves the loss out")
        for name in self.shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, must be a share from 0 to 1")

    def weights(self) -> dict[str, float]:
        """Return the weight of each named loss."""
        return {name: getattr(self, name) for name in self.losses}


def weighted_total(
    sums: Mapping[str, LossSum], counts: Mapping[str, Tensor], weights: Mapping[str, float], world: int
) -> Tensor:
    """Return the scalar to go back from: world · sum / count over all processes and micro-batches, weighted.

    With it the mean of gradients over processes, summed over micro-batches, is that of one process with the whole
    batch. No loss is ever left out of the graph, so every parameter has a gradient in every process.
    """
    parts = [weights[name] * world * loss.total / counts[name].clamp(min=1) for name, loss in sums.items()]
    return torch.stack(parts).sum()


def with_total(losses: dict[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Add the weighted sum of mean losses, by the name loss."""
    return {**losses, "loss": sum(weights[name] * value for name, value in losses.items())}


# --- CoGaze


@dataclass(frozen=True)
class CoGazeWeights(Weights):
    """Weights of CoGaze's losses and their parameters; the defaults are the published ones.

    class_beta: of the class-balanced weights. Weight 0 leaves a loss out of the total.
    """

    losses = (ALIGN, "gaze", "image_disease", "report_disease")
    shares = ("topk_ratio", "t2i_weight")

    align: float = 1.0
    gaze: float = 1.0
    image_disease: float = 0.5
    report_disease: float = 0.5
    topk_ratio: float = 0.25
    t2i_weight: float = 0.2
    class_beta: float = 0.9999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.class_beta < 1:
            raise ValueError(f"objective.class_beta is {self.class_beta}, must be at least 0 and below 1")


@dataclass(frozen=True, eq=False)
class CoGazeObjective:
    """CoGaze's losses: images and reports of a study, sentences and gaze, diseases; class_weights (14,)."""

    contrasts: ClassVar[bool] = True
    config: CoGazeWeights
    class_weights: Tensor

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each named loss."""
        return self.config.weights()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Count rows with a report, images with gaze, cells of labels."""
        cells = batch.label_mask & batch.valid[:, None]
        weight = batch.sentence_weight
        spoken_of = torch.zeros(len(batch), device=weight.device).index_add_(0, batch.sentence_image, weight)
        return {
            ALIGN: (batch.valid & batch.has_report).sum().float(),
            "gaze": (spoken_of > 0).sum().float(),
            "image_disease": cells.sum().float(),
            "report_disease": (cells & batch.has_report[:, None]).sum().float(),
        }

    def losses(self, output: CoGazeOutput, batch: Batch) -> dict[str, LossSum]:
        """Sum the losses of gaze and diseases."""
        cells = batch.label_mask & batch.valid[:, None]
        reports = cells & batch.has_report[:, None]
        return {
            "gaze": soft_gaze_loss_sum(
                output.patch_features,
                output.sentence_embed,
                batch.heatmap,
                batch.sentence_image,
                output.logit_scale_gaze,
                topk_ratio=self.config.topk_ratio,
                t2i_weight=self.config.t2i_weight,
                sentence_weight=batch.sentence_weight,
                patch_mask=batch.patch_mask,
            ),
            "image_disease": class_balanced_bce_sum(output.vision_logits, batch.labels, self.class_weights, cells),
            "report_disease": class_balanced_bce_sum(output.report_logits, batch.labels, self.class_weights, reports),
        }

    def embeddings(self, output: CoGazeOutput) -> Embeddings:
        """Image and report (B, D), the log of the scale."""
        return {"image": output.visual_embed, "report": output.report_embed, "scale": output.logit_scale}

    def aligned(self, seen: Sequence[Embeddings], window: Sequence[Batch]) -> LossSum:
        """Sum the contrastive loss over valid samples that have a report (CoGaze's global alignment)."""
        return multi_positive_loss_sum(
            torch.cat([one["image"] for one in seen]),
            torch.cat([one["report"] for one in seen]),
            torch.cat([batch.study_id for batch in window]),
            seen[0]["scale"],
            row_mask=torch.cat([batch.valid & batch.has_report for batch in window]),
        )

    def scores(self, output: CoGazeOutput) -> Tensor:
        """Logits (B, 14) of the image's diseases."""
        return output.vision_logits

    def remarks(self) -> list[str]:
        """Name the diseases that no training sample has."""
        unseen = [name for name, weight in zip(CHEXPERT_LABELS, self.class_weights.tolist(), strict=True) if not weight]
        if not unseen:
            return []
        return [f"no training sample is positive for {', '.join(unseen)}: nothing is learned of them"]


# --- EGMA


@dataclass(frozen=True)
class EgmaWeights(Weights):
    """Weights of EGMA's losses and their parameters; the defaults are the published ones.

    least_gaze: share of a map's strongest patch below which a patch was not looked at; what 8 bits make 0, by default.
    t2i_weight: of sentence to patches in the gaze loss. gaze_threshold, gaze_text_weight: of the mapping of images
    with gaze; threshold, text_weight: of those without. pad_with_zeros: True lets zero vectors take part in the
    contrastive loss where a text has fewer sentences than another, as published.
    """

    losses = (ALIGN, "gaze", "mapping")
    shares = ("least_gaze", "t2i_weight", "gaze_threshold", "gaze_text_weight", "threshold", "text_weight")

    align: float = 1.0
    gaze: float = 1.0
    mapping: float = 1.0
    least_gaze: float = 0.002
    t2i_weight: float = 0.8
    gaze_threshold: float = 3 / 7
    gaze_text_weight: float = 0.3
    threshold: float = 1 / 7
    text_weight: float = 0.5
    pad_with_zeros: bool = False


@dataclass(frozen=True, eq=False)
class EgmaObjective:
    """EGMA's losses: images and texts, sentences and gaze, patches and sentences mapped onto each other."""

    contrasts: ClassVar[bool] = True
    config: EgmaWeights
    with_gaze: int

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each named loss."""
        return self.config.weights()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Count images with sentences, and those of them with gaze."""
        spoken_of = batch.sentences_per_image > 0
        count = spoken_of.sum().float()
        return {ALIGN: count, "gaze": (spoken_of & batch.has_gaze).sum().float(), "mapping": count}

    def losses(self, output: EgmaOutput, batch: Batch) -> dict[str, LossSum]:
        """Sum the gaze loss over images with gaze, the mapping over images with sentences."""
        config = self.config
        looked = peak_scaled(batch.heatmap, config.least_gaze)
        embedded = (output.patch_embed, output.sentence_embed, batch.sentences_per_image)
        return {
            "gaze": gaze_mlce_sum(
                *embedded,
                looked,
                batch.has_gaze,
                output.logit_scale,
                t2i_weight=config.t2i_weight,
                patch_mask=batch.patch_mask,
            ),
            "mapping": cross_modal_mapping_sum(
                *embedded,
                output.logit_scale,
                heatmap=looked,
                has_gaze=batch.has_gaze,
                gaze_threshold=config.gaze_threshold,
                gaze_text_weight=config.gaze_text_weight,
                threshold=config.threshold,
                text_weight=config.text_weight,
                patch_mask=batch.patch_mask,
            ),
        }

    def embeddings(self, output: EgmaOutput) -> Embeddings:
        """Patches (B, P, D), sentences (S, D), the log of the scale."""
        return {"patch": output.patch_embed, "sentence": output.sentence_embed, "scale": output.logit_scale}

    def aligned(self, seen: Sequence[Embeddings], window: Sequence[Batch]) -> LossSum:
        """Sum the contrastive loss over images that have sentences (EGMA's batch-level loss)."""
        # Without the dummies, after which another micro-batch's sentences would come.
        spoken = [one["sentence"][batch.sentence_weight > 0] for one, batch in zip(seen, window, strict=True)]
        return batch_contrastive_sum(
            torch.cat([one["patch"] for one in seen]),
            torch.cat(spoken),
            torch.cat([batch.sentences_per_image for batch in window]),
            seen[0]["scale"],
            patch_mask=torch.cat([batch.patch_mask for batch in window]),
            pad_with_zeros=self.config.pad_with_zeros,
        )

    def scores(self, output: EgmaOutput) -> None:
        """EGMA has no disease heads."""

    def remarks(self) -> list[str]:
        """Say it where there is no gaze at all."""
        return [] if self.with_gaze else ["no gaze of a training sample is used: only images and texts teach"]


def peak_scaled(heatmap: Tensor, least: float) -> Tensor:
    """Scale maps (S, P) to a maximum of 1 each, and what is then below `least` to 0; a map of 0 stays one."""
    scaled = heatmap / heatmap.amax(dim=1, keepdim=True).clamp(min=torch.finfo(heatmap.dtype).tiny)
    return scaled.where(scaled >= least, 0.0)


# --- reports


@dataclass(frozen=True)
class ReportWeights(Weights):
    """The weight of the one loss of writing."""

    losses = ("words",)

    words: float = 1.0


@dataclass(frozen=True, eq=False)
class ReportObjective:
    """How unlikely each token of a report was under teacher forcing, the mean over all tokens of a global batch."""

    contrasts: ClassVar[bool] = False
    config: ReportWeights

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of the one loss."""
        return self.config.weights()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Count the tokens that are to be said."""
        assert isinstance(batch, ReportBatch)
        return {"words": (batch.target_labels != IGNORED).sum().float()}

    def losses(self, output: ReportOutput, batch: Batch) -> dict[str, LossSum]:
        """Sum the negative log likelihood of the tokens."""
        assert isinstance(batch, ReportBatch)
        return {"words": token_nll_sum(output.logits, batch.target_labels)}

    def embeddings(self, output: ReportOutput) -> Embeddings:
        """Nothing is contrasted."""
        return {}

    def aligned(self, seen: Sequence[Embeddings], window: Sequence[Batch]) -> LossSum:
        """Nothing is contrasted."""
        raise AssertionError("there is no contrastive loss")

    def scores(self, output: ReportOutput) -> None:
        """No diseases are scored."""

    def remarks(self) -> list[str]:
        """Nothing to say."""
        return []

"""One look at a saved model on held-out shards: retrieval, diseases, where sentences look; what to beat beside each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoTokenizer

from cogaze.config import RunConfig
from cogaze.data.collate import Batch, Collate
from cogaze.data.dataset import ShardDataset, read_table
from cogaze.data.loader import Stream
from cogaze.evaluate.gaze import Spoken, agreement, sentence_attention, spoken
from cogaze.evaluate.metrics import auroc
from cogaze.evaluate.retrieval import retrieval
from cogaze.models.cogaze import CoGazeModel, CoGazeOutput
from gazeprep.schema import CHEXPERT_LABELS, Split

HELD_OUT: tuple[Split, ...] = ("validate", "test")
LEAST_CASES = 5  # positives, and negatives, that a disease needs to be scored
STUDIES_OF_A_SPLIT = 10**9  # studies are numbered from 0 in each split
Ablation = Literal["", "no context", "no image"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """N samples as a model sees them: image, report (N, dim), scores, zero_shot, labels, mask (N, 14), ids (N,)."""

    image: npt.NDArray[np.float64]
    report: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    zero_shot: npt.NDArray[np.float64]
    labels: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_]
    study_id: npt.NDArray[np.int64]
    has_report: npt.NDArray[np.bool_]
    spoken: Spoken

    def retrieval(self) -> dict[str, float]:
        """Return the figures of the samples that have a report."""
        keep = self.has_report
        return retrieval(self.image[keep], self.report[keep], self.study_id[keep])

    def mean_auroc(self, scores: npt.NDArray[np.float64]) -> float:
        """Return the mean over the diseases that have enough cases."""
        positive = ((self.labels > 0.5) & self.mask).sum(axis=0)
        negative = ((self.labels <= 0.5) & self.mask).sum(axis=0)
        enough = np.minimum(positive, negative) >= LEAST_CASES
        return float(auroc(scores, self.labels, self.mask)[enough].mean())


def evaluate(config: RunConfig, model: CoGazeModel, splits: Sequence[Split] = HELD_OUT) -> dict[str, float]:
    """Figures by name of a model on splits of the config's shards, read as the config says, each view still.

    Every figure has what it has to beat beside it: `chance`, without the context, without the image (a gray canvas),
    the mean gaze map of the training split.
    """
    whole = encode(config, model, splits)
    no_context, no_image = encode(config, model, splits, "no context"), encode(config, model, splits, "no image")
    figures = {
        "samples": float(len(whole.image)),
        "studies": float(len(np.unique(whole.study_id))),
        **whole.retrieval(),
    }
    for name, encoded in (("without its context", no_context), ("without the image", no_image)):
        found = encoded.retrieval()
        figures |= {f"{key} {name}": value for key, value in found.items() if not key.endswith("chance")}
    figures |= {
        "mean AUROC": whole.mean_auroc(whole.scores),
        "mean AUROC without its context": no_context.mean_auroc(no_context.scores),
        "mean AUROC without the image": no_image.mean_auroc(no_image.scores),
        "mean AUROC zero-shot": whole.mean_auroc(whole.zero_shot),
    }
    if len(whole.spoken.image):
        figures |= agreement(whole.spoken, encode(config, model, ("train",)).spoken)
    return figures


def evaluate_folder(config: RunConfig, folder: Path, splits: Sequence[Split] = HELD_OUT) -> dict[str, float]:
    """Figures of a model that `fit` saved in a folder, tokenizer included."""
    tokenizer = str(folder)
    named = replace(config, model=replace(config.model, tokenizer=tokenizer))
    return evaluate(named, CoGazeModel.from_pretrained(folder), splits)


@torch.no_grad()
def encode(config: RunConfig, model: CoGazeModel, splits: Sequence[Split], ablation: Ablation = "") -> Encoded:
    """Encode every sample of the splits once."""
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model.tokenizer or config.model.text)
    collate = Collate(tokenizer, config.collate)
    diseases = _disease_prompts(model, collate)
    parts: list[Encoded] = []
    for number, split in enumerate(splits):
        for batch in _batches(config, model, collate, split):
            seen = _ablated(batch, ablation)
            output = model(**seen.model_inputs(model.batch_fields))
            parts.append(_encoded(output, seen, diseases, number * STUDIES_OF_A_SPLIT))
    columns = [one.name for one in fields(Encoded) if one.name != "spoken"]
    joined = Spoken.joined([part.spoken for part in parts], [len(part.image) for part in parts])
    return Encoded(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}, spoken=joined)


def _batches(config: RunConfig, model: CoGazeModel, collate: Collate, split: Split) -> Iterator[Batch]:
    """Deliver a split in its order, without anything random, gaze used wherever there is some."""
    plan = replace(config.plan, shuffle=False, gaze_ratio=1.0)
    dataset = ShardDataset(config.shards, read_table(config.shards, split), model.patch_grid, config.data.still())
    yield from Stream(dataset, collate, plan, workers=config.workers, device=model.device).epoch()


def _ablated(batch: Batch, ablation: Ablation) -> Batch:
    if ablation == "no context":
        return replace(batch, has_context=torch.zeros_like(batch.has_context))
    if ablation == "no image":
        gray = (255 * batch.pixel_mean[0]).round().to(batch.pixels.dtype)
        return replace(batch, pixels=torch.full_like(batch.pixels, int(gray)))
    return batch


def _disease_prompts(model: CoGazeModel, collate: Collate) -> Tensor:
    """Direction (14, dim) from the report that denies a disease to the one that states it."""
    sides = []
    for text in ("{}.", "no {}."):
        prompts = [collate.config.text.report.format(report=text.format(label.lower())) for label in CHEXPERT_LABELS]
        tokens = collate.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].bool().to(model.device)
        pooled = model.encode_text(tokens["input_ids"].to(model.device), mask).pooled
        sides.append(torch.nn.functional.normalize(pooled, dim=-1))
    return sides[0] - sides[1]


def _encoded(output: CoGazeOutput, batch: Batch, diseases: Tensor, first_study: int) -> Encoded:
    keep = batch.valid
    image = torch.nn.functional.normalize(output.visual_embed.float(), dim=-1)[keep]

    def array(tensor: Tensor) -> npt.NDArray[np.float64]:
        return tensor[keep].double().cpu().numpy()

    return Encoded(
        image=image.double().cpu().numpy(),
        report=array(output.report_embed),
        scores=array(output.vision_logits),
        zero_shot=(image @ diseases.T).double().cpu().numpy(),
        labels=array(batch.labels),
        mask=batch.label_mask[keep].cpu().numpy(),
        study_id=batch.study_id[keep].cpu().numpy() + first_study,
        has_report=batch.has_report[keep].cpu().numpy(),
        spoken=spoken(sentence_attention(output, batch), batch),
    )

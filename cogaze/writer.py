"""A saved model that writes reports: batches of images to texts, and where each of their sentences looks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cogaze.data.chat import ChatScript
from cogaze.data.collate import Batch, Collate, CollateConfig, report_sentences
from cogaze.data.dataset import DatasetConfig, SampleTable, ShardDataset
from cogaze.data.lines import ReportBatch, ReportCollate, Script
from cogaze.data.targets import TargetConfig, Targets
from cogaze.data.transforms import ViewConfig
from cogaze.evaluate.encoder import RUN_FILE, read_run
from cogaze.evaluate.gaze import attention
from cogaze.hints import Looker
from cogaze.models.cogaze import CoGazeModel
from cogaze.models.report import LATENT_FIELDS, ReportModel
from cogaze.scripts import read_cases, saved_script, told


@dataclass(frozen=True)
class Looked:
    """A sentence that was written, of which image of the batch, and its attention (P,) to the patches; sums to 1."""

    image: int
    sentence: str
    attention: Tensor


@dataclass(frozen=True, eq=False)
class SentenceLooker:
    """A CoGaze that says where a text's sentences look on an image: one that was pretrained, or the writer's own."""

    model: CoGazeModel
    tokenizer: PreTrainedTokenizerBase
    collate: CollateConfig

    @torch.no_grad()
    def patches(self, batch: Batch) -> Tensor:
        """Return the patches (B, 1 + P, D) of a batch's images."""
        return self.model.encode_image(batch.pixel_values, batch.view_position).patch_features

    @torch.no_grad()
    def looked(self, texts: Sequence[str], patches: Tensor, batch: Batch) -> list[Looked]:
        """Return where each sentence of each text looks: the softmax of its scaled cosine with the patches, as trained.

        A sentence counts as pretraining took one: its first token, or the mean of its tokens.
        """
        rows = [(image, sentence) for image, text in enumerate(texts) for sentence in report_sentences(text)]
        if not rows:
            return []
        model, prompt = self.model, self.collate.text.sentence
        tokens = self.tokenizer(
            [prompt.format(sentence=sentence).strip() for _, sentence in rows],
            add_special_tokens=False,
            truncation=True,
            max_length=self.collate.text.max_tokens,
            padding=True,
            return_tensors="pt",
        ).to(patches.device)
        features = model.encode_text(tokens["input_ids"], tokens["attention_mask"].bool())
        by_first = model.config.sentence_pooling == "first"
        embed = features.token_features[:, 0] if by_first else features.pooled
        image = torch.tensor([number for number, _ in rows], device=patches.device)
        found = attention(patches[:, 1:], embed, model.logit_scale_gaze.sum(), image, batch.patch_mask)
        return [Looked(*row, one) for row, one in zip(rows, found.cpu(), strict=True)]


@dataclass(frozen=True, eq=False)
class Writer:
    """A model with what it needs to read images and contexts as it learned to, and to write.

    encoder_sha256: of the weights of the pretrained model that it was trained on.
    """

    model: ReportModel
    tokenizer: PreTrainedTokenizerBase
    collate: CollateConfig
    view: ViewConfig
    target: TargetConfig
    script: Script
    encoder_sha256: str = ""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def looker(self) -> SentenceLooker:
        """The encoder, as it is after learning to write."""
        return SentenceLooker(self.model.encoder, self.tokenizer, self.collate)

    def reading(self, targets: Targets) -> ReportCollate:
        """Return what makes batches of examples."""
        return ReportCollate(self.tokenizer, self.collate, [targets], self.script)

    def told(
        self, shards: str, table: SampleTable, kept: Sequence[Path], workers: int = 0, *, skip_corrupt: bool = False
    ) -> "Writer":
        """Return the writer of these samples, to which a language model is told what the encoder predicts and finds.

        kept: as cogaze.hints.hints has it.
        """
        if not isinstance(self.script, ChatScript) or not self.script.config.asks_for_hints:
            return self
        data = DatasetConfig(view=self.view.still(), skip_corrupt=True)
        looker = Looker(
            self.model.encoder,
            self.encoder_sha256,
            lambda one: ShardDataset(shards, one, self.model.patch_grid, data),
            Collate(self.tokenizer, self.collate),
            workers,
            skip_corrupt,
        )
        allowed = DatasetConfig(skip_corrupt=skip_corrupt).skipped_in_a_row
        cases = read_cases(shards, self.target, allowed)
        return replace(self, script=told(self.script, looker, shards, [table], cases, kept))

    @torch.no_grad()
    def write(self, batch: ReportBatch, options: dict[str, Any]) -> tuple[list[str], Tensor]:
        """Return a text for each row, and the patches (B, 1 + P, D) of the images; options are `generate`'s."""
        seen = self.model.see(**batch.model_inputs(LATENT_FIELDS))
        written = self.model.decoder.write(
            seen.latents,
            batch.target_input_ids,
            batch.target_mask,
            batch.target_latents,
            **self.script.options(),
            **options,
        )
        return self.script.read(written), seen.patches


def load_looker(folder: str | Path, writer: Writer) -> SentenceLooker:
    """Load a CoGaze that pipelines/pretrain.py exported; raises ValueError where it sees other pixels."""
    read, view = read_run(folder, ("cogaze",)), writer.view
    if read.view.still() != view.still():
        raise ValueError(
            f"looker sees images of {read.view.size_px} px ({read.view.rule}), the writer of {view.size_px}"
            f" ({view.rule}); give the model that the writer was trained from"
        )
    theirs, ours = ((one.pixel_mean, one.pixel_std) for one in (read.collate, writer.collate))
    if theirs != ours:
        raise ValueError(
            f"looker's pixels have mean and std {theirs}, the writer's {ours}; give the model that the writer was"
            " trained from"
        )
    model: Any = CoGazeModel.from_pretrained(folder)
    return SentenceLooker(model.to(writer.device).eval(), AutoTokenizer.from_pretrained(folder), read.collate)


def load_writer(folder: str | Path, device: torch.device | str = "cpu", language_model: str = "") -> Writer:
    """Load what a run of report writing exported; raises ValueError where the folder holds something else.

    language_model: where the one is that it was trained on, if that was a folder.
    """
    read = read_run(folder, ("report",))
    target = _target_of(read.stated)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = ReportModel.from_pretrained(folder, language_model=language_model)
    model.to(device).eval()
    script = saved_script(Path(folder), model, tokenizer, target)
    trained_on = read.stated["model"]["encoder_sha256"]
    return Writer(model, tokenizer, read.collate, read.view, target, script, trained_on)


def _target_of(stated: dict[str, Any]) -> TargetConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TargetConfig, "target")
    try:
        read = parser.instantiate(parser.parse_object({"target": stated["target"]}))
    except Exception as error:
        raise ValueError(f"{RUN_FILE} does not say what was written ({type(error).__name__})") from error
    target: TargetConfig = read.target
    return target

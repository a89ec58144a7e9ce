"""What is CoGaze's, EGMA's and report writing's: model, tokens, data, losses. The rest of a run knows none of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cogaze.config import CoGazeRun, EgmaRun, RunConfig
from cogaze.data.collate import PUBLISHED_TOKENS, ROLES, Collate, count_positives
from cogaze.data.dataset import SampleTable
from cogaze.data.lines import ReportCollate
from cogaze.data.plan import gaze_choice
from cogaze.data.targets import read_targets
from cogaze.losses.labels import class_balanced_weights
from cogaze.models.cogaze import CoGazeModel, build_cogaze
from cogaze.models.decoder import build_cross_attention, check_positions
from cogaze.models.egma import EgmaModel, build_egma
from cogaze.models.llm import PromptedDecoder, load_language_model
from cogaze.models.pretrained import TwoTowerModel
from cogaze.models.report import ReportModel, new_report_model, pretrained_encoder, trained_further
from cogaze.models.text import Vocabulary
from cogaze.objectives import CoGazeObjective, EgmaObjective, Objective, ReportObjective
from cogaze.report_config import ReportRun
from cogaze.scripts import training_script
from gazeprep.schema import CHEXPERT_LABELS

Tables = dict[str, SampleTable]
OF_TOWERS = """It was trained on the data below and on nothing else than what its towers
brought with them."""
OF_ENCODER = """It was trained further on the data below: its encoder is a pretrained
CoGaze, known by its weights' sha256 in the configuration, whose own card says what it learned from; its decoder is a
language model with what that brought."""


class Reading(NamedTuple):
    """The samples that a run learns from and is validated on, by split, and what makes batches of them.

    remarks: what the run has to say of them.
    """

    tables: Tables
    collate: Collate
    remarks: tuple[str, ...] = ()


class Build(Protocol):
    """Makes a run's model; grown: its tokenizer was given tokens that the text tower does not know."""

    def __call__(self, config: Any, tokenizer: PreTrainedTokenizerBase, *, grown: bool) -> TwoTowerModel:
        """Return the model, ready to be trained."""


def all_samples(config: RunConfig, tables: Tables, tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Learn from every sample."""
    return Reading(tables, Collate(tokenizer, config.collate))


@dataclass(frozen=True)
class MethodParts:
    """A method: its name and paper, its model, the special tokens its tokenizer needs, its data, its losses.

    objective: made of a run's config, the table of its training samples and the device. origin: what a model was
    trained on beside the data of its run, for its card.
    """

    title: str
    about: str
    paper: str
    model: type[TwoTowerModel]
    build: Build
    tokens: tuple[str, ...]
    objective: Callable[[Any, SampleTable, torch.device], Objective]
    reading: Callable[[Any, Tables, PreTrainedTokenizerBase], Reading] = all_samples
    origin: str = OF_TOWERS


def parts_of(config: RunConfig) -> MethodParts:
    """Return what a run's method is made of."""
    return METHODS[config.method]


def of_towers(build: Callable[..., TwoTowerModel]) -> Build:
    """Return what builds a model of two towers."""

    def made(config: Any, tokenizer: PreTrainedTokenizerBase, *, grown: bool) -> TwoTowerModel:
        return build(
            config.model.vision,
            config.model.text,
            text_layers=config.model.text_layers or None,
            vocabulary=Vocabulary.of(tokenizer) if grown or config.model.tokenizer else None,
            image_size=config.data.view.size_px,
            **config.model.sizes(),
        )

    return made


# --- CoGaze


def _cogaze_objective(config: CoGazeRun, table: SampleTable, device: torch.device) -> CoGazeObjective:
    return CoGazeObjective(config.objective, _class_weights(config, table).to(device))


def _class_weights(config: CoGazeRun, table: SampleTable) -> Tensor:
    """Class-balanced weights (14,); where no disease loss counts, labels may be absent."""
    if not config.objective.image_disease and not config.objective.report_disease:
        return torch.ones(len(CHEXPERT_LABELS))
    positives = count_positives(table.labels, config.collate.labels)
    return class_balanced_weights(positives, config.objective.class_beta)


# --- EGMA


def _egma_objective(config: EgmaRun, table: SampleTable, device: torch.device) -> EgmaObjective:
    columns = table.plan_columns()
    return EgmaObjective(config.objective, int((columns.has_gaze & gaze_choice(columns, config.plan)).sum()))


# --- reports


def _build_report(config: ReportRun, tokenizer: PreTrainedTokenizerBase, *, grown: bool) -> ReportModel:
    if grown:
        raise ValueError("the pretrained model's tokenizer lacks special tokens; give the whole folder of a run")
    decoder = config.model.decoder
    if decoder.kind == "cross_attention":
        made = _writing_gpt2(config, tokenizer)
        check_positions(made.decoder.model.config, config.target.max_tokens)
        return made
    encoder = pretrained_encoder(config.model.encoder)
    width = encoder.config.hidden_size
    language_model = decoder.language_model(config.model.decoder_sha256)
    prompted = PromptedDecoder(load_language_model(language_model), width, decoder.lora)
    return new_report_model(encoder, prompted, config.model.frozen, language_model)


def _writing_gpt2(config: ReportRun, tokenizer: PreTrainedTokenizerBase) -> ReportModel:
    decoder, frozen = config.model.decoder, config.model.frozen
    if decoder.start == "model":
        return trained_further(config.model.encoder, frozen)
    encoder = pretrained_encoder(config.model.encoder)
    made = build_cross_attention(decoder.model_name, tokenizer, encoder.config.hidden_size, decoder.start)
    return new_report_model(encoder, made, frozen)


def _report_reading(config: ReportRun, tables: Tables, tokenizer: PreTrainedTokenizerBase) -> Reading:
    targets = {
        split: read_targets(config.shards, table, config.target, skipped_in_a_row=config.data.skipped_in_a_row)
        for split, table in tables.items()
    }
    script = training_script(config, targets, tokenizer)
    collate = ReportCollate(tokenizer, config.collate, list(targets.values()), script)
    remarks = tuple(remark for one in targets.values() for remark in one.remarks)
    return Reading({split: one.table for split, one in targets.items()}, collate, remarks)


def _report_objective(config: ReportRun, _table: SampleTable, _device: torch.device) -> ReportObjective:
    return ReportObjective(config.objective)


METHODS: Mapping[str, MethodParts] = {
    "cogaze": MethodParts(
        title="CoGaze",
        about="pretrained with clinical context and gaze",
        paper="arXiv 2603.26049",
        model=CoGazeModel,
        build=of_towers(build_cogaze),
        tokens=PUBLISHED_TOKENS,
        objective=_cogaze_objective,
    ),
    "egma": MethodParts(
        title="EGMA",
        about="pretrained with reports and gaze",
        paper="arXiv 2403.12416",
        model=EgmaModel,
        build=of_towers(build_egma),
        tokens=tuple(ROLES.values()),
        objective=_egma_objective,
    ),
    "report": MethodParts(
        title="CoGaze, writing reports",
        about="with a decoder that writes reports from images in the light of clinical context",
        paper="arXiv 2603.26049",
        model=ReportModel,
        build=_build_report,
        tokens=PUBLISHED_TOKENS,
        objective=_report_objective,
        reading=_report_reading,
        origin=OF_ENCODER,
    ),
}

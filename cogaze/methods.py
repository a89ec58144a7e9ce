"""What is CoGaze's and what EGMA's: model, special tokens, losses. The rest of a run asks here, and knows neither."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogaze.config import CoGazeRun, EgmaRun, RunConfig
from cogaze.data.collate import PUBLISHED_TOKENS, ROLES, count_positives
from cogaze.data.dataset import SampleTable
from cogaze.data.plan import gaze_choice
from cogaze.losses.labels import class_balanced_weights
from cogaze.models.cogaze import CoGazeModel, build_cogaze
from cogaze.models.egma import EgmaModel, build_egma
from cogaze.models.pretrained import TwoTowerModel
from cogaze.models.text import Vocabulary
from cogaze.objectives import CoGazeObjective, EgmaObjective, Objective
from gazeprep.schema import CHEXPERT_LABELS


@dataclass(frozen=True)
class MethodParts:
    """A method: its name and paper, its model, the special tokens its tokenizer needs, its losses.

    objective: made of a run's config, the table of its training samples and the device.
    """

    title: str
    about: str
    paper: str
    model: type[TwoTowerModel]
    build: Callable[..., TwoTowerModel]
    tokens: tuple[str, ...]
    objective: Callable[[Any, SampleTable, torch.device], Objective]


def parts_of(config: RunConfig) -> MethodParts:
    """Return what a run's method is made of."""
    return METHODS[config.method]


def build_model(config: RunConfig, vocabulary: Vocabulary | None) -> TwoTowerModel:
    """Build a run's model from its towers."""
    return parts_of(config).build(
        config.model.vision,
        config.model.text,
        text_layers=config.model.text_layers or None,
        vocabulary=vocabulary,
        image_size=config.data.view.size_px,
        **config.model.sizes(),
    )


def _cogaze_objective(config: CoGazeRun, table: SampleTable, device: torch.device) -> CoGazeObjective:
    return CoGazeObjective(config.objective, _class_weights(config, table).to(device))


def _class_weights(config: CoGazeRun, table: SampleTable) -> Tensor:
    """Class-balanced weights (14,); where no disease loss counts, labels may be absent."""
    if not config.objective.image_disease and not config.objective.report_disease:
        return torch.ones(len(CHEXPERT_LABELS))
    positives = count_positives(table.labels, config.collate.labels)
    return class_balanced_weights(positives, config.objective.class_beta)


def _egma_objective(config: EgmaRun, table: SampleTable, device: torch.device) -> EgmaObjective:
    columns = table.plan_columns()
    return EgmaObjective(config.objective, int((columns.has_gaze & gaze_choice(columns, config.plan)).sum()))


METHODS = {
    "cogaze": MethodParts(
        title="CoGaze",
        about="pretrained with clinical context and gaze",
        paper="arXiv 2603.26049",
        model=CoGazeModel,
        build=build_cogaze,
        tokens=PUBLISHED_TOKENS,
        objective=_cogaze_objective,
    ),
    "egma": MethodParts(
        title="EGMA",
        about="pretrained with reports and gaze",
        paper="arXiv 2403.12416",
        model=EgmaModel,
        build=build_egma,
        tokens=tuple(ROLES.values()),
        objective=_egma_objective,
    ),
}

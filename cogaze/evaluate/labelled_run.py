"""One supervised run: a saved model trained on a dataset's labels and judged on its test part; the weights are kept."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from accelerate import PartialState

from cogaze.checkpoint import versions
from cogaze.evaluate.classify import ProbeConfig
from cogaze.evaluate.datasets import read_dataset
from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.finetune import FinetuneConfig
from cogaze.evaluate.results import Found, Results
from cogaze.evaluate.segment import SegmentConfig
from cogaze.evaluate.supervised import SupervisedConfig, full_finetuning, kept_in, linear_probe, segmentation
from cogaze.run import quiet
from gazeprep.shards import sha256_of

Trained = Literal["linear_probe", "fine_tuning", "segmentation"]
PLACES = ("model", "out", "root", "lists", "workers", "device")


@dataclass(frozen=True)
class LabelledRun:
    """What is trained on what.

    model: a folder that a run exported. out: where results.json, results.md and weights/ go. dataset: a benchmark by
    name, in the folder root, with split lists in `lists` and its reader's own options. tasks: of linear_probe,
    fine_tuning and segmentation. device: "" takes what there is. workers: processes that read images ahead.
    """

    model: Path
    out: Path
    dataset: str
    root: Path
    lists: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[Trained, ...] = get_args(Trained)
    shared: SupervisedConfig = field(default_factory=SupervisedConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    device: str = ""
    workers: int = 0


def run_labelled(config: LabelledRun) -> Results:
    """Run the tasks one after another and return their figures; one that fails leaves its reason in its place.

    In a group of processes (torchrun) they share the work. Raises ValueError where model and data do not fit.
    """
    quiet()
    state = PartialState()
    encoder = load_encoder(config.model, config.device or state.device, workers=config.workers)
    data = read_dataset(config.dataset, config.root, config.lists, **config.options)
    settings = {
        "model": {path.name: sha256_of(path) for path in sorted(config.model.glob("*.safetensors"))},
        "dataset": {
            "name": data.name,
            "task": data.task,
            "classes": list(data.classes),
            "images": {name: len(images) for name, images in data.parts.items()},
            "left out or doubtful": dict(data.notes),
        },
        "options": {name: value for name, value in asdict(config).items() if name not in PLACES},
        "versions": versions(),
    }
    keep, shared = kept_in(config.out / "weights"), config.shared
    runs: dict[str, Callable[[], Found]] = {
        "linear_probe": lambda: linear_probe(encoder, data, shared, config.probe, keep),
        "fine_tuning": lambda: full_finetuning(encoder, data, shared, config.finetune, keep),
        "segmentation": lambda: segmentation(encoder, data, shared, config.segment, config.out / "features", keep),
    }
    results = Results(config.out, settings)
    for task in config.tasks:
        results.attempt(task, runs[task])
    return results

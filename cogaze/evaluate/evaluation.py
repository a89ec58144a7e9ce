"""One evaluation: a saved model, data that it was not trained on, the evaluators that fit; results beside baselines.

An evaluator that fails leaves its reason in the results and loses no other's figures.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from accelerate import PartialState

from cogaze.checkpoint import versions
from cogaze.evaluate.classify import SHARES, ProbeConfig
from cogaze.evaluate.datasets import read_dataset
from cogaze.evaluate.encoder import RUN_FILE, Encoder, load_encoder, weights_sha256
from cogaze.evaluate.finetune import FinetuneConfig
from cogaze.evaluate.held_out import Judged
from cogaze.evaluate.on_dataset import OnDataset, Supervised
from cogaze.evaluate.on_shards import OnShards
from cogaze.evaluate.processes import Process
from cogaze.evaluate.prompts import PROMPTS, read_prompts
from cogaze.evaluate.results import REPEATS, Results
from cogaze.evaluate.scores import Intervals
from cogaze.evaluate.segment import SegmentConfig
from cogaze.evaluate.supervised import SupervisedConfig
from cogaze.evaluate.zero_shot import Ensemble, ZeroShotConfig
from cogaze.log import say
from cogaze.run import quiet
from gazeprep.shards import ShardFolder, sha256_of

OF_DATASETS = ("dataset", "shares", "probe", "finetune", "segment")
UNSAID = ("model", "out", "shards", "root", "lists", "prompts", "options", "workers", "device")  # places, and speed


@dataclass(frozen=True)
class EvaluateConfig:
    """What is evaluated on what.

    model: a folder that a run exported. out: where results.json and results.md go. Either shards, a folder or URL, of
    whose `split` images are judged; or dataset, a benchmark by name, in the folder root, with split lists in `lists`
    and its reader's own options. evaluators: some of those that there are for shards (retrieval, zero_shot, labels,
    gaze, localisation) or datasets (zero_shot, retrieval, linear_probe, segmentation, fine_tuning); all that fit by
    default, but fine_tuning only where it is named. with_context: age and sex, or a shard's indication and history,
    steer the image. shares: percent of the training labels. prompts: a YAML file of sentences by class. repeats: of
    bootstrap intervals. device: "" takes what there is. workers: processes that read images ahead.
    """

    model: Path
    out: Path
    shards: str = ""
    split: Judged = "test"
    dataset: str = ""
    root: Path | None = None
    lists: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    evaluators: tuple[str, ...] = ()
    with_context: bool = False
    ensemble: Ensemble = "mean"
    prompts: Path | None = None
    shares: tuple[int, ...] = tuple(map(int, SHARES))
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    repeats: int = REPEATS
    seed: int = 0
    device: str = ""
    workers: int = 0

    def __post_init__(self) -> None:
        if bool(self.shards) == bool(self.dataset):
            raise ValueError("give either shards or dataset, one of the two, to evaluate on")
        if self.dataset and self.root is None:
            raise ValueError(f"give root, the folder of {self.dataset}")
        if self.shards and (self.root or self.lists or self.options):
            raise ValueError("root, lists and options belong to dataset; leave them out with shards")
        if self.split not in get_args(Judged):
            raise ValueError(
                f"split is {self.split!r}, must be {' or '.join(get_args(Judged))}: a model is not judged on what it "
                "was trained on"
            )
        if self.repeats < 0 or self.workers < 0:
            raise ValueError(f"repeats is {self.repeats} and workers {self.workers}, must be at least 0")

    def stated(self) -> dict[str, Any]:
        """Return what the figures depend on, without places."""
        left_out = OF_DATASETS if self.shards else ("split",)
        return {name: value for name, value in asdict(self).items() if name not in (*UNSAID, *left_out)}


def evaluate(config: EvaluateConfig) -> Results:
    """Run the evaluators one after another, write results after each, and return them.

    In a group of processes (torchrun) they share the work, and each has all figures in the end; the first one writes.
    Raises ValueError where model, data and options do not fit together.
    """
    quiet()
    state = PartialState()
    encoder = load_encoder(config.model, config.device or state.device, workers=config.workers)
    if config.with_context and not encoder.method.reads_context:
        raise ValueError("with_context is set, but this method's images know no context; leave it out")
    task = _task(config, encoder)
    evaluators = task.evaluators()
    unknown = sorted(set(config.evaluators) - set(evaluators))
    if unknown:
        raise ValueError(f"there is no evaluator {', '.join(unknown)} here; there are {', '.join(evaluators)}")
    chosen = [name for name in evaluators if name in (config.evaluators or task.fitting())]
    if not chosen:
        raise ValueError("no evaluator fits this data: it has no reports, labels, gaze or boxes of images to judge")
    results = Results(config.out, _settings(config, task.described()))
    for name in chosen:
        started = time.monotonic()
        outcome = results.attempt(name, evaluators[name])
        if Process.current().is_main:
            what = f"not made: {outcome.error}" if outcome.error else f"{len(outcome.figures)} figures"
            say(f"{name}: {what} ({time.monotonic() - started:.0f} s)")
    return results


def _task(config: EvaluateConfig, encoder: Encoder) -> OnShards | OnDataset:
    intervals = Intervals(config.repeats, config.seed)
    prompts = PROMPTS if config.prompts is None else read_prompts(config.prompts)
    asked = ZeroShotConfig(config.ensemble, config.with_context, prompts, intervals)
    if config.shards:
        return OnShards(encoder, ShardFolder(config.shards), config.split, asked)
    assert config.root is not None
    data = read_dataset(config.dataset, config.root, config.lists, **config.options)
    shared = SupervisedConfig(tuple(map(str, config.shares)), config.with_context, config.seed, intervals)
    supervised = Supervised(shared, config.probe, config.finetune, config.segment)
    return OnDataset(encoder, data, asked, supervised, config.out / "features.unfinished")


def _settings(config: EvaluateConfig, described: dict[str, Any]) -> dict[str, Any]:
    run = sha256_of(config.model / RUN_FILE)
    return {
        "model": {"weights sha256": weights_sha256(config.model), "run.json sha256": run},
        **described,
        "options": config.stated(),
        "intervals": f"95 %, {config.repeats} bootstrap resamples of subjects, seed {config.seed}",
        "processes": Process.current().count,
        "versions": versions(),
    }

"""Learning to write reports: a pretrained CoGaze, shards, a decoder -> a run of the one loop that all training has."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from cogaze.config import FitConfig
from cogaze.data.chat import PromptConfig
from cogaze.data.dataset import DatasetConfig
from cogaze.data.loader import WorkerConfig
from cogaze.data.plan import PlanConfig
from cogaze.data.targets import TargetConfig
from cogaze.evaluate.encoder import read_run, weights_sha256
from cogaze.models.llm import language_model_sha256
from cogaze.models.report import Frozen
from cogaze.optim import OptimConfig
from cogaze.report_config import DecoderConfig, ReportModelConfig, ReportRun

PLAN = PlanConfig(global_batch=64, gaze_ratio=0.0)  # nothing that is written needs a map of gaze
OPTIM = OptimConfig(decoder_times=10.0, plateau_patience=2)
FIT = FitConfig(epochs=30)


@dataclass(frozen=True)
class ReportData:
    """What becomes of a sample on its way to the model, beside its view, which is the pretrained model's.

    The fields are those of cogaze.data.dataset.DatasetConfig.
    """

    seed: int = 0
    context_dropout: float = 0.0
    skip_corrupt: bool = False
    max_corrupt_in_a_row: int = 10
    features: str = ""


@dataclass(frozen=True)
class ReportFinetune:
    """What is trained on what; the defaults are CoGaze's published ones for DistilGPT-2.

    model: the folder of a CoGaze that pipelines/pretrain.py exported, whose prompts, view and tokenizer stay, or of a
    GPT-2's report model, whose encoder, and with decoder.start "model" also decoder, learns further. shards: a folder
    or URL. out: where checkpoints and, in the end, model go. decoder: what writes. target: what is written.
    frozen: "tower" trains all but the vision tower, "encoder" the decoder alone. prompt: what a language model is told.
    """

    model: Path
    shards: str
    out: Path
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    frozen: Frozen = "tower"
    prompt: PromptConfig = field(default_factory=PromptConfig)
    plan: PlanConfig = PLAN
    data: ReportData = field(default_factory=ReportData)
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    optim: OptimConfig = OPTIM
    fit: FitConfig = FIT

    def run(self) -> ReportRun:
        """Return the run's config; raises ValueError where the folder holds no such model."""
        read = read_run(self.model, ("cogaze", "report"))
        self._refuse(read.method, prompted=read.stated.get("model", {}).get("decoder", {}).get("kind") == "llm")
        data = {one.name: getattr(self.data, one.name) for one in fields(self.data)}
        return ReportRun(
            out=self.out,
            shards=self.shards,
            model=ReportModelConfig(
                tokenizer=str(self.model),
                encoder=str(self.model),
                encoder_sha256=weights_sha256(self.model),
                decoder=self.decoder,
                decoder_sha256=self._decoder_sha256(),
                frozen=self.frozen,
            ),
            target=self.target,
            prompt=self.prompt,
            plan=self.plan,
            data=DatasetConfig(view=read.view, **data),
            collate=read.collate,
            workers=self.workers,
            optim=self.optim,
            fit=self.fit,
        )

    def _refuse(self, method: str, *, prompted: bool) -> None:
        """Raise ValueError where the decoder cannot be had of, or be trained on, a model of this method.

        prompted: whether a language model writes there.
        """
        prompts = self.decoder.kind == "llm"
        other = method != "report" or prompted or prompts
        if self.decoder.start == "model" and (other or self.decoder.name):
            raise ValueError(
                "decoder.start is model, which trains a GPT-2's report model further: give the folder of one, and leave"
                " decoder.name and decoder.kind out"
            )
        if prompts and method == "report" and self.prompt.asks_for_hints:
            raise ValueError(
                "the model's encoder has learned to write, and no longer predicts diseases and finds similar cases as"
                " it was pretrained to: give the pretrained model, or a prompt.user without {similar} and {diseases}"
            )

    def _decoder_sha256(self) -> str:
        return language_model_sha256(self.decoder.model_name) if self.decoder.kind == "llm" else ""

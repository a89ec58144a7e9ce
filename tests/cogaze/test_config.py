"""A run's config: the YAML files that are there, what the published one says, and values that no run can have."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from cogaze.config import (
    EGMA_COLLATE,
    CoGazeModelConfig,
    CoGazeRun,
    EgmaModelConfig,
    EgmaRun,
    FitConfig,
    from_options,
    run_parser,
)
from cogaze.data.collate import CollateConfig, TextConfig
from cogaze.data.dataset import DatasetConfig
from cogaze.data.loader import WorkerConfig
from cogaze.evaluate.labelled_run import LabelledRun
from cogaze.evaluate.reports.structured import ORGANS
from cogaze.generate import BeamConfig
from cogaze.objectives import CoGazeWeights, EgmaWeights
from cogaze.optim import OptimConfig
from cogaze.report_run import ReportFinetune

ROOT = Path(__file__).parents[2]
OTHER = ("gazeprep build", "pipelines/finetune.py")  # whose options are not a run's
TRAINING = [
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if not any(command in path.read_text().splitlines()[0] for command in OTHER)
]


def read(path, *options):
    arguments = ["--config", str(path), "--shards=s", "--out=o", *options]
    parser = run_parser(None, arguments)
    return from_options(parser, parser.parse_args(arguments))


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_every_config_of_a_training_can_be_read(path):
    assert isinstance(read(path), EgmaRun if "egma" in path.stem else CoGazeRun)
    first = path.read_text().splitlines()[0]
    assert f"--config configs/{path.name} --shards " in first, "its command"


def test_both_configs_of_trainings_are_among_them():
    assert {path.stem for path in TRAINING} >= {"cogaze_mimic", "demo", "egma_mimic_eye"}


def read_report(name, *options):
    path = ROOT / f"configs/{name}.yaml"
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(ReportFinetune, None)
    values = parser.instantiate(
        parser.parse_args(["--config", str(path), "--model=m", "--shards=s", "--out=o", *options])
    )
    del values["config"]
    return ReportFinetune(**vars(values))


def test_the_published_configs_of_reports_are_the_published_ones():
    free, structured = read_report("report_mimic"), read_report("report_srrg", "--target.table=t")
    for config in (free, structured):
        assert (config.optim.lr, config.optim.decoder_times) == (5e-5, 10)
        assert (config.optim.schedule, config.optim.plateau_factor, config.optim.plateau_patience) == (
            "plateau",
            0.1,
            2,
        )
        assert config.frozen == "tower"
    assert (free.decoder.model_name, free.decoder.start) == ("distilgpt2", "random")
    assert (free.plan.global_batch, free.fit.epochs, free.target.max_tokens) == (64, 30, 100)
    assert (structured.plan.global_batch, structured.fit.epochs, structured.target.max_tokens) == (96, 40, 150)
    assert structured.decoder.start == "model"
    assert ReportFinetune(Path("m"), "s", Path("o")).plan == free.plan
    assert BeamConfig().beams == 10


def test_a_language_model_is_asked_for_the_headings_of_structured_reports():
    free, structured = read_report("report_llm"), read_report("report_llm_srrg", "--target.table=t")
    assert all(organ in " ".join(structured.prompt.user.split()) for organ in ORGANS)
    assert structured.target.max_tokens == 150
    assert (structured.decoder, structured.optim, structured.fit) == (free.decoder, free.optim, free.fit)


def test_the_published_config_is_the_published_one():
    config = read(ROOT / "configs/cogaze_mimic.yaml")
    optim, fit, model = config.optim, config.fit, config.model
    assert (optim.lr, optim.schedule, optim.plateau_factor, optim.plateau_patience) == (5e-5, "plateau", 0.1, 10)
    assert (config.plan.global_batch, fit.accumulation, fit.epochs, fit.precision) == (160, 2, 50, "bf16")
    assert fit.validate_every == 0  # once an epoch
    assert (model.vision, model.text) == ("microsoft/rad-dino", "microsoft/BiomedVLP-CXR-BERT-specialized")
    assert (model.tokenizer, model.text_layers, model.tuned_blocks) == ("distilgpt2", 6, 0)
    assert (config.data.view.rule, config.data.view.size_px, config.collate.labels) == ("letterbox", 518, "published")
    objective = config.objective
    assert objective.weights() == {"align": 1, "gaze": 1, "image_disease": 0.5, "report_disease": 0.5}
    assert (objective.topk_ratio, objective.t2i_weight) == (0.25, 0.2)


def test_the_published_config_of_egma_is_the_published_one():
    config = read(ROOT / "configs/egma_mimic_eye.yaml")
    assert replace(config, workers=WorkerConfig()) == EgmaRun(Path("o"), "s")
    optim, fit, model, objective = config.optim, config.fit, config.model, config.objective
    assert (optim.lr, optim.weight_decay, optim.schedule, optim.warmup_share) == (1e-5, 1e-4, "cosine", 0.1)
    assert (config.plan.global_batch, fit.epochs, config.data.view.size_px) == (40, 10, 256)
    assert (model.vision, model.text) == ("microsoft/swin-tiny-patch4-window7-224", "emilyalsentzer/Bio_ClinicalBERT")
    assert (model.hidden_size, model.averaged_layers, model.tuned_blocks) == (512, 4, -1)
    assert objective.weights() == {"align": 1, "gaze": 1, "mapping": 1}
    assert (objective.t2i_weight, objective.gaze_text_weight, objective.text_weight) == (0.8, 0.3, 0.5)
    assert (objective.gaze_threshold, objective.threshold) == (3 / 7, 1 / 7)


@pytest.mark.parametrize(
    ("file", "option"),
    [("demo", "--objective.mapping=1"), ("egma_mimic_eye", "--model.perceiver_depth=1"), ("demo", "--method=clip")],
)
def test_options_of_another_method_are_refused(file, option):
    with pytest.raises(SystemExit) as stop:
        read(ROOT / f"configs/{file}.yaml", option)
    assert stop.value.code == 2


def test_an_option_may_say_the_method():
    arguments = ["--method", "egma", "--shards=s", "--out=o", "--objective.mapping=2", "--collate.text.max_tokens=9"]
    parser = run_parser(None, arguments)
    config = from_options(parser, parser.parse_args(arguments))
    assert (type(config), config.objective.mapping, config.method) == (EgmaRun, 2, "egma")
    assert config.collate == replace(EGMA_COLLATE, text=replace(EGMA_COLLATE.text, max_tokens=9))


def test_a_method_that_the_parser_was_not_made_for_is_refused():
    arguments = ["--config", '{"method": "egma"}', "--shards=s", "--out=o"]
    parser = run_parser(None, arguments)
    with pytest.raises(ValueError, match="method is egma, but these are options of cogaze; choose one"):
        from_options(parser, parser.parse_args(arguments))


def test_a_method_has_its_own_sentences():
    with pytest.raises(ValueError, match=r"collate.sentences is gaze, but egma learns from .* rule all; set it so"):
        EgmaRun(Path("o"), "s", collate=CollateConfig())
    with pytest.raises(ValueError, match="method is egma, but these are options of cogaze"):
        CoGazeRun(Path("o"), "s", method="egma")


def test_an_option_overrides_the_file():
    assert read(ROOT / "configs/demo.yaml", "--collate.text.max_tokens", "7").collate.text.max_tokens == 7


@pytest.mark.parametrize("option", ["--fit.epoch=1", "--shard=s", "--optim.learning_rate=1", "--fit.precision=fp8"])
def test_unknown_and_shortened_options_and_values_are_refused(option):
    with pytest.raises(SystemExit) as stop:
        read(ROOT / "configs/demo.yaml", option)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (OptimConfig, "clip_norm", -1.0, "optim.clip_norm is -1.0, must be at least 0, which means no clipping"),
        (OptimConfig, "clip_norm", math.nan, "optim.clip_norm is nan, must be at least 0"),
        (OptimConfig, "plateau_patience", -1, "optim.plateau_patience is -1, must be at least 0"),
        (OptimConfig, "plateau_factor", 1.0, "optim.plateau_factor is 1.0, must be above 0 and below 1"),
        (OptimConfig, "weight_decay", -0.1, "optim.weight_decay is -0.1, must be at least 0"),
        (OptimConfig, "betas", (0.9, 1.0), r"optim.betas is \(0.9, 1.0\), must each be at least 0 and below 1"),
        (CoGazeWeights, "gaze", -1.0, "objective.gaze is -1.0, must be at least 0"),
        (CoGazeWeights, "topk_ratio", 1.1, "objective.topk_ratio is 1.1, must be a share from 0 to 1"),
        (CoGazeWeights, "topk_ratio", -0.1, "objective.topk_ratio is -0.1, must be a share"),
        (CoGazeWeights, "t2i_weight", 2.0, "objective.t2i_weight is 2.0, must be a share"),
        (EgmaWeights, "mapping", -1.0, "objective.mapping is -1.0, must be at least 0"),
        (EgmaWeights, "threshold", 1.5, "objective.threshold is 1.5, must be a share from 0 to 1"),
        (EgmaModelConfig, "averaged_layers", 0, "model.averaged_layers is 0, must be at least 1"),
        (CoGazeWeights, "class_beta", 1.0, "objective.class_beta is 1.0, must be at least 0 and below 1"),
        (CoGazeModelConfig, "hidden_size", 0, "model.hidden_size is 0, must be at least 1"),
        (CoGazeModelConfig, "projector_hidden_size", 0, "model.projector_hidden_size is 0, must be at least 1"),
        (CoGazeModelConfig, "perceiver_depth", 0, "model.perceiver_depth is 0, must be at least 1"),
        (CoGazeModelConfig, "perceiver_latents", -2, "model.perceiver_latents is -2, must be at least 1"),
        (CoGazeModelConfig, "perceiver_heads", 0, "model.perceiver_heads is 0, must be at least 1"),
        (CoGazeModelConfig, "perceiver_dim_head", 0, "model.perceiver_dim_head is 0, must be at least 1"),
        (CoGazeModelConfig, "text_layers", -1, "model.text_layers is -1, must be at least 0"),
        (CoGazeModelConfig, "tuned_blocks", -2, "model.tuned_blocks is -2, must be at least -1"),
        (DatasetConfig, "max_corrupt_in_a_row", -1, "data.max_corrupt_in_a_row is -1, must be at least 0"),
        (TextConfig, "report", "[CLS] {text}", r"text.report is '\[CLS\] \{text\}', .* placeholders are \{report\}"),
        (TextConfig, "context", "{report}", r"text.context is .* placeholders are \{indication\} and \{history\}"),
        (TextConfig, "sentence", "{", r"text.sentence is '\{', .* placeholders are \{sentence\}"),
        (TextConfig, "sentence", "{}", r"text.sentence is '\{\}', .* placeholders are \{sentence\}"),
        (TextConfig, "report_sections", ("finding",), r"report_sections is \['finding'\], .* findings, impression"),
        (TextConfig, "report_sections", (), r"report_sections is \[\], must be one or more of indication"),
        (TextConfig, "max_tokens", 0, "text.max_tokens is 0, must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused_with_the_cure(kind, name, value, message):
    with pytest.raises(ValueError, match=message):
        kind(**{name: value})


def test_a_plateau_needs_validations(tmp_path):
    with pytest.raises(ValueError, match=r"schedule is plateau.* fit.validate_every is -1; set it to 0 or more"):
        CoGazeRun(tmp_path, "shards", fit=FitConfig(validate_every=-1))
    CoGazeRun(tmp_path, "shards", fit=FitConfig(validate_every=-1), optim=OptimConfig(schedule="cosine"))


def run_pipeline(name, monkeypatch, *options):
    """The exit code of a pipeline's main."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "pipelines" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    return module.main()


@pytest.mark.parametrize("name", ["pretrain", "probe", "cache_features", "tiny_towers"])
def test_a_problem_is_one_line_and_exit_code_1(name, monkeypatch, capsys, tmp_path):
    config = [] if name == "tiny_towers" else ["--config", str(ROOT / "configs/demo.yaml")]
    assert run_pipeline(name, monkeypatch, *config, "--shards=nope", f"--out={tmp_path / 'out'}") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["pretrain", "probe", "cache_features"])
def test_a_value_out_of_range_is_a_problem_too(name, monkeypatch, capsys):
    options = ["--config", str(ROOT / "configs/demo.yaml"), "--shards=nope", "--out=out", "--optim.clip_norm=-1"]
    assert run_pipeline(name, monkeypatch, *options) == 1
    assert "optim.clip_norm is -1.0" in capsys.readouterr().err


def test_a_method_has_its_own_conditions(monkeypatch, capsys):
    options = ["--config", str(ROOT / "configs/egma_demo.yaml"), "--shards=nope", "--out=out"]
    assert run_pipeline("probe", monkeypatch, *options, "--conditions", "[no context]") == 1
    assert "no condition ['no context']; choose from ['trained', " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrain", "probe", "cache_features", "tiny_towers"])
def test_a_shortened_option_is_wrong_usage(name, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        run_pipeline(name, monkeypatch, "--shard=nope", "--out=out")
    assert stop.value.code == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("finetune_*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_a_finetuning_can_be_read(path):
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(LabelledRun, None, fail_untyped=False)
    first = path.read_text().splitlines()[0].removeprefix("# python pipelines/finetune.py ")
    values = parser.instantiate(parser.parse_args(first.replace(f"configs/{path.name}", str(path)).split()))
    del values["config"]
    assert LabelledRun(**vars(values)).dataset == "rsna"

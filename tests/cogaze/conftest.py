"""Fixtures of the training half: tiny tokenizers that need no download."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked processes share two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a tower that is missing is missing at once

import pytest
import torch
from accelerate.state import AcceleratorState
from runs import changed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from writing import write_parts, write_shards

from cogaze.config import EGMA_COLLATE, CoGazeModelConfig, CoGazeRun, EgmaModelConfig, EgmaRun, FitConfig, RunConfig
from cogaze.data.collate import CollateConfig, TextConfig, add_special_tokens
from cogaze.data.dataset import DatasetConfig
from cogaze.data.plan import PlanConfig
from cogaze.data.transforms import ViewConfig
from cogaze.models.cogaze import build_cogaze
from cogaze.models.tiny import TinyTowers, write_tiny_towers
from cogaze.optim import OptimConfig

REPORT_WORDS = [
    "clear lungs . no effusion .",
    "the heart is normal in size .",
    "cough and fever , rule out pneumonia .",
]


def save_tokenizer(folder: Path, kind: str) -> Path:
    """Write a tiny tokenizer folder: word pieces with BERT's own special tokens, or DistilGPT-2's kind of bytes."""
    if kind == "wordpiece":
        own = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = [*own, *sorted({word for line in REPORT_WORDS for word in line.split()}), "a", "##b"]
        made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        roles = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(REPORT_WORDS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
        roles = {"eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bare_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a word-piece and a byte-pair tokenizer without CoGaze's special tokens."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: save_tokenizer(folder / kind, kind) for kind in ("wordpiece", "bytepair")}


@pytest.fixture(params=["wordpiece", "bytepair"])
def tokenizer(request: pytest.FixtureRequest, bare_tokenizers: dict[str, Path]) -> PreTrainedTokenizerBase:
    """A tokenizer that knows the prompts' special tokens."""
    made = AutoTokenizer.from_pretrained(bare_tokenizers[request.param])
    add_special_tokens(made)
    return made


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny towers for 56 px in 4 x 4 patches: vision, text, and still, a text tower without dropout. Read only."""
    folder = tmp_path_factory.mktemp("towers")
    write_tiny_towers(
        folder, REPORT_WORDS, TinyTowers(vision="dinov2", image_px=56, width=32, layers=1, vocabulary=200)
    )
    still = AutoConfig.from_pretrained(folder / "text")
    still.hidden_dropout_prob = still.attention_probs_dropout_prob = 0.0
    shutil.copytree(folder / "text", folder / "still")
    still.save_pretrained(folder / "still")
    return folder


@pytest.fixture(scope="session")
def model_folder(towers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CoGaze for 56 px as a run exports it: weights, tokenizer, what run.json tells evaluation."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    torch.manual_seed(0)
    widths = {"hidden_size": 16, "projector_hidden_size": 16}
    latents = {"perceiver_depth": 1, "perceiver_latents": 4, "perceiver_heads": 2, "perceiver_dim_head": 8}
    build_cogaze(str(towers / "vision"), str(towers / "text"), image_size=56, **widths, **latents).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(towers / "text").save_pretrained(folder)
    seen = {
        "collate": asdict(CollateConfig(text=TextConfig(max_tokens=24))),
        "data": {"view": asdict(ViewConfig(size_px=56))},
    }
    (folder / "run.json").write_text(json.dumps({"method": "cogaze", **seen}))
    return folder


@pytest.fixture(scope="session")
def run_into(shards: Path, towers: Path) -> Callable[..., RunConfig]:
    """Return run_into(folder, {"fit.max_steps": 2, ...}): the config of a run of 3 steps an epoch."""

    def config(out: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
        made = CoGazeRun(
            out=out,
            shards=str(shards),
            model=CoGazeModelConfig(
                vision=str(towers / "vision"),
                text=str(towers / "text"),
                tokenizer="",
                text_layers=0,
                tuned_blocks=1,
                hidden_size=16,
                projector_hidden_size=16,
                perceiver_depth=1,
                perceiver_latents=4,
                perceiver_heads=2,
                perceiver_dim_head=8,
            ),
            plan=PlanConfig(global_batch=8),
            data=DatasetConfig(view=ViewConfig(size_px=56)),
            collate=CollateConfig(text=TextConfig(max_tokens=24)),
            optim=OptimConfig(lr=1e-3, schedule="constant"),
            fit=FitConfig(epochs=2, precision="no", tracker="none"),
        )
        for path, value in (changes or {}).items():
            made = changed(made, path.split("."), value)
        return made

    return config


@pytest.fixture
def run_config(run_into: Callable[..., RunConfig], tmp_path: Path) -> Iterator[Callable[..., RunConfig]]:
    """Return run_config(name, changes): run_into a folder of that name."""
    AcceleratorState._reset_state(True)
    yield lambda name, changes=None: run_into(tmp_path / name, changes)
    AcceleratorState._reset_state(True)


@pytest.fixture
def egma_config(shards: Path, towers: Path, tmp_path: Path) -> Iterator[Callable[..., EgmaRun]]:
    """Return egma_config(name, changes): a run of 2 epochs into a folder of that name, without dropout."""

    def config(name: str, changes: Mapping[str, Any] | None = None) -> EgmaRun:
        made = EgmaRun(
            out=tmp_path / name,
            shards=str(shards),
            model=EgmaModelConfig(
                vision=str(towers / "vision"), text=str(towers / "still"), hidden_size=16, averaged_layers=1
            ),
            plan=PlanConfig(global_batch=8),
            data=DatasetConfig(view=ViewConfig(size_px=56)),
            collate=replace(EGMA_COLLATE, text=replace(EGMA_COLLATE.text, max_tokens=12)),
            optim=OptimConfig(lr=1e-3, schedule="cosine"),
            fit=FitConfig(epochs=2, precision="no", tracker="none"),
        )
        for path, value in (changes or {}).items():
            made = changed(made, path.split("."), value)
        return made

    AcceleratorState._reset_state(True)
    yield config
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 16 studies in each split, whose reports follow from image and context. Read only."""
    return write_shards(tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CoGaze, `model`, for these, and a GPT-2, `decoder`. Read only."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder)
    return folder

"""What tests of report writing share: shards whose reports follow from image and context, and tiny models for them."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from recorded import SMALL, Tables
from runs import changed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cogaze.config import CoGazeModelConfig, CoGazeRun, FitConfig, RunConfig
from cogaze.data.collate import CollateConfig, TextConfig, add_special_tokens
from cogaze.data.dataset import DatasetConfig
from cogaze.data.plan import PlanConfig
from cogaze.data.targets import TargetConfig
from cogaze.data.transforms import ViewConfig
from cogaze.fit import fit
from cogaze.models.cogaze import build_cogaze
from cogaze.models.text import Vocabulary
from cogaze.models.tiny import TinyTowers, write_tiny_towers
from cogaze.objectives import CoGazeWeights
from cogaze.optim import OptimConfig
from cogaze.report_config import DecoderConfig, ReportRun
from cogaze.report_run import ReportFinetune
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.executors import inline

PX = 64
ACROSS, DOWN = np.meshgrid(np.arange(PX), np.arange(PX))
SEEN = {
    "Clear lungs.": np.zeros((PX, PX)),
    "Reticular opacities.": (ACROSS // 2 % 2) * 150.0,
    "Kerley lines.": (DOWN // 2 % 2) * 150.0,
    "Nodules.": (ACROSS // 4 % 2) * (DOWN // 4 % 2) * 150.0,
}
ASKED = {"Fever.": "Pneumonia is possible.", "Fall.": "No rib is broken.", "Line.": "The line is well.", "": "Stable."}


CASES = [(seen, asked) for seen in SEEN for asked in ASKED]


def write_shards(folder: Path, per_split: int = 1) -> Path:
    """Shards in which the picture says the first sentence and the indication the second: 16 studies of each kind.

    Studies of one split differ from those of another in their noise alone.
    """
    (folder / "tables").mkdir(parents=True)
    tables, rng = Tables(folder / "tables"), np.random.default_rng(0)
    rows = []
    for split in ("train", "validate", "test"):
        for number, (seen, asked) in enumerate(CASES * per_split):
            name = f"{split}{number:02d}"
            tables.image(name, f"subject {name}", split, (SEEN[seen] + rng.integers(40, 70, (PX, PX))).astype(np.uint8))
            rows.append(f'{tables.images.pop()},study {name},"{asked}","{seen} {ASKED[asked]}"')
    header = "image_id,path,subject_id,split,study_id,indication,findings"
    source = replace(tables.source(), images=tables.root / "images.csv")
    (tables.root / "images.csv").write_text("\n".join([header, *rows]) + "\n")
    build(BuildConfig(folder / "shards", Sources(table=source), sample=SMALL), executor=inline)
    return folder / "shards"


def write_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of DistilGPT-2's kind, whose texts come back as they were."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = [f"{seen} {ASKED[asked]}" for seen, asked in CASES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_parts(folder: Path) -> None:
    """An untrained CoGaze as a run exports it, in `folder`/model, and a GPT-2 in `folder`/decoder."""
    towers = folder / "towers"
    write_tiny_towers(towers, ["clear lungs"], TinyTowers(image_px=PX, width=32, layers=1, vocabulary=100))
    text = AutoConfig.from_pretrained(towers / "text")
    text.hidden_dropout_prob = text.attention_probs_dropout_prob = 0.0
    text.save_pretrained(towers / "text")
    tokenizer = write_tokenizer(folder / "decoder")
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    GPT2LMHeadModel(GPT2Config(**sizes, **ends, **still)).save_pretrained(folder / "decoder")
    add_special_tokens(tokenizer)
    widths = {"hidden_size": 32, "projector_hidden_size": 32}
    latents = {"perceiver_depth": 1, "perceiver_latents": 4, "perceiver_heads": 2, "perceiver_dim_head": 16}
    model = build_cogaze(
        str(towers / "vision"),
        str(towers / "text"),
        vocabulary=Vocabulary.of(tokenizer),
        image_size=PX,
        **widths,
        **latents,
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    seen = {
        "collate": asdict(CollateConfig(text=TextConfig(max_tokens=24))),
        "data": {"view": asdict(ViewConfig(size_px=PX))},
    }
    (folder / "model" / "run.json").write_text(json.dumps({"method": "cogaze", **seen}))


def report_config(parts: Path, shards: Path, out: Path, changes: Mapping[str, Any] | None = None) -> ReportRun:
    """A run of 2 epochs of 2 steps."""
    made = ReportFinetune(
        model=parts / "model",
        shards=str(shards),
        out=out,
        decoder=DecoderConfig(name=str(parts / "decoder")),
        target=TargetConfig(max_tokens=40),
        plan=PlanConfig(global_batch=8),
        optim=OptimConfig(lr=1e-3, schedule="constant"),
        fit=FitConfig(epochs=2, precision="no", tracker="none"),
    )
    for path, value in (changes or {}).items():
        made = changed(made, path.split("."), value)
    return made.run()


def learn(config: RunConfig) -> Path:
    """Train in this process; returns the folder of the model."""
    AcceleratorState._reset_state(True)
    try:
        fit(config)
    finally:
        AcceleratorState._reset_state(True)
    return config.out / "model"


def pretrain(parts: Path, shards: Path, steps: int) -> None:
    """Let a CoGaze learn which picture and indication belong to which report, in place of the untrained one."""
    config = CoGazeRun(
        out=parts / "pretraining",
        shards=str(shards),
        model=CoGazeModelConfig(
            vision=str(parts / "towers" / "vision"),
            text=str(parts / "towers" / "text"),
            tokenizer=str(parts / "model"),
            text_layers=1,
            tuned_blocks=-1,
            hidden_size=32,
            projector_hidden_size=32,
            perceiver_depth=1,
            perceiver_latents=4,
            perceiver_heads=2,
            perceiver_dim_head=16,
            sentence_pooling="mean",
        ),
        plan=PlanConfig(global_batch=16),
        data=DatasetConfig(view=ViewConfig(size_px=PX)),
        collate=CollateConfig(text=TextConfig(max_tokens=24)),
        objective=CoGazeWeights(gaze=0.0, image_disease=0.0, report_disease=0.0),
        optim=OptimConfig(lr=3e-3, schedule="cosine"),
        fit=FitConfig(epochs=steps, validate_every=50, precision="no", tracker="none"),
    )
    learned = learn(config)
    shutil.rmtree(parts / "model")
    shutil.copytree(learned, parts / "model")

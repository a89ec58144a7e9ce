"""Training steps a second from a frozen tower's stored tokens against running the tower on the images every time.

python benchmarks/features.py
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import transformers
from streaming import write_shards
from transformers import Dinov2Config, Dinov2Model

from cogaze.config import CoGazeModelConfig, CoGazeRun, FitConfig, RunConfig
from cogaze.data.dataset import DatasetConfig
from cogaze.data.plan import PlanConfig
from cogaze.data.transforms import ViewConfig
from cogaze.fit import fit
from cogaze.frozen import cache_features
from cogaze.models.tiny import TinyTowers, write_tiny_towers
from cogaze.optim import OptimConfig
from gazeprep.shards import ShardFolder
from gazeprep.synthetic import write_corpus

IMAGE_PX, BATCH, SUBJECTS = 518, 4, 10  # the published view
WIDTH = 384  # Dinov2-small's; half of the published width everywhere
STEPS, REPEATS = 3, 3
SECTIONS = ("indication", "history", "findings", "impression", "transcript")


def write_towers(shards: Path, out: Path) -> None:
    """Write a random Dinov2-small and a BERT of six layers, as many as the published one keeps."""
    folder = ShardFolder(shards)
    records = (folder.sample(key).record for key in folder.index["key"])
    texts = (record[name] for record in records for name in SECTIONS)
    write_tiny_towers(out, texts, TinyTowers(image_px=IMAGE_PX, width=WIDTH, layers=6))
    torch.manual_seed(0)
    small = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=12, num_attention_heads=6, image_size=IMAGE_PX, patch_size=14
    )
    Dinov2Model(small).save_pretrained(out / "vision")


def run_of(folder: Path) -> RunConfig:
    """Return a run at half of the published widths that only trains."""
    model = CoGazeModelConfig(
        vision=str(folder / "towers" / "vision"),
        text=str(folder / "towers" / "text"),
        tokenizer="",
        text_layers=0,
        hidden_size=WIDTH,
        projector_hidden_size=2 * WIDTH,
        perceiver_latents=64,
        perceiver_heads=6,
    )
    return CoGazeRun(
        out=folder / "runs",
        shards=str(folder / "shards"),
        model=model,
        plan=PlanConfig(BATCH),
        data=DatasetConfig(ViewConfig(size_px=IMAGE_PX)),
        optim=OptimConfig(schedule="constant"),
        fit=FitConfig(max_steps=STEPS, validate_every=-1, precision="no", tracker="none"),
    )


def steps_per_s(config: RunConfig, features: str, repeat: int) -> list[float]:
    """Train anew and return the speed of each step but the first, reading included."""
    out = config.out / f"{features or 'images'}-{repeat}"
    fit(replace(config, out=out, data=replace(config.data, features=features)))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["samples_per_s"] / BATCH for line in lines][1:]


def compare(config: RunConfig) -> None:
    """Store the tokens, train in both ways in turn, print steps/s and their ratio."""
    report = cache_features(config, ["train"])
    per_image_kb = report.size_bytes / report.samples / 1e3
    print(f"stored {report.samples} images, {per_image_kb:.0f} kB each, {report.written / report.seconds:.1f} a second")
    ways = {"tower on images": "", "stored tokens": "auto"}
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for repeat in range(REPEATS):
        for name, features in ways.items():
            found[name].append(steps_per_s(config, features, repeat))
    medians = {name: [median(one) for one in runs] for name, runs in found.items()}
    for name, runs in medians.items():
        ratios = [a / b for a, b in zip(runs, medians["tower on images"], strict=True)]
        print(
            f"{name:16} {median(runs):6.2f} steps/s, {min(runs):.2f} to {max(runs):.2f}   {median(ratios):5.2f} x"
            f" ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    """Compare in one run."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    print(
        f"Dinov2-small at {IMAGE_PX} px, frozen; six BERT layers and the rest {WIDTH} wide, trained; batch {BATCH}, "
        f"{os.cpu_count()} cores, one thread, no workers, {REPEATS} interleaved runs of {STEPS} steps"
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(write_corpus(folder / "corpus", SUBJECTS, workers=2), folder / "shards")
        write_towers(folder / "shards", folder / "towers")
        compare(run_of(folder))


if __name__ == "__main__":
    main()

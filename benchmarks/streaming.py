"""Samples a second of cogaze's stream against webdataset, decoding from memory, and the published way.

python benchmarks/streaming.py
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import BitImageProcessorPil, PreTrainedTokenizerFast

from cogaze.data.collate import Collate, add_special_tokens
from cogaze.data.dataset import READ_MEMBERS, Example, Members, SampleTable, ShardDataset, read_table
from cogaze.data.loader import Stream, WorkerConfig
from cogaze.data.plan import PlanConfig, PlanItem, Position
from gazeprep import render_batch
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.images import decode
from gazeprep.shards import ShardFolder, fixations_from_member, read_npz
from gazeprep.synthetic import Corpus, write_corpus

GRID = (37, 37)
BATCH = 16
REPEATS = 7
PUBLISHED_REPEATS, OWN_EPOCHS = 3, 20  # few samples, fast: several epochs, or a moment of the machine decides
MEMORY_EPOCHS = 12
SUBJECTS, FULL_SIZE_SUBJECTS = 96, 8
GOALS = {"webdataset": 1.1, "from memory": 0.9}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words that needs no download."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    add_special_tokens(made)
    return made


def write_shards(corpus: Corpus, out: Path) -> Path:
    """Build the shards of a corpus, small ones so that there are several."""
    sources = Sources(reflacx=corpus.reflacx, egd=corpus.egd, mimic=corpus.mimic_cxr, mimic_jpg=corpus.mimic_cxr_jpg)
    build(BuildConfig(out, sources, shard_samples=32, workers=2))
    return out


# --- ways to the same batches


class MemoryFiles:
    """Every member of every sample, already read: nothing is left to do but decode."""

    def __init__(self, dataset: ShardDataset) -> None:
        table = dataset.table
        places = [
            (table.shard_names[table.shard[row]], int(table.start[row, i]), int(table.length[row, i]))
            for row in range(len(table))
            for i in range(len(READ_MEMBERS))
        ]
        self.members = {place: dataset.files.read(*place) for place in places}

    def read(self, shard: str, start: int, length: int) -> bytes:
        """Return a member's bytes."""
        return self.members[shard, start, length]


def stream_epochs(dataset: ShardDataset, collate: Collate, workers: int) -> Callable[[], Iterable[Any]]:
    """Return what gives one epoch of cogaze's own stream after the other."""
    stream = Stream(dataset, collate, PlanConfig(BATCH), workers=WorkerConfig(workers))
    epochs = iter(range(10**6))
    return lambda: stream.epoch(Position(next(epochs)))


class FromWebdataset:
    """One sample of plain webdataset -> the same example, by the same view and maps.

    decoded: webdataset's own decoders have run; else the members are bytes and cogaze's decode what is needed.
    """

    def __init__(self, dataset: ShardDataset, decoded: bool) -> None:
        self.dataset, self.decoded = dataset, decoded
        self.rows = {dataset.table.name(row): row for row in range(len(dataset))}

    def __call__(self, sample: dict[str, Any]) -> Example:
        """Make the example of a sample with members png, gaze.npz, maps.npy and json."""
        row = self.rows[sample["__key__"]]
        item = PlanItem(row, True, bool(self.dataset.table.has_gaze[row]), 0)
        picture, record, gaze = sample["png"], sample["json"], sample["gaze.npz"]
        if not self.decoded:
            picture, record = decode(picture), json.loads(record)
        columns = None if not item.use_gaze else dict(gaze) if self.decoded else read_npz(gaze)
        return self.dataset.example(item, Members(record, picture, columns))


def webdataset_epochs(
    tars: list[str], dataset: ShardDataset, collate: Collate, workers: int, decoded: bool
) -> Callable[[], Iterable[Any]]:
    """Return what gives one epoch of webdataset's usual pipeline after the other."""
    samples = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(256)
    samples = samples.decode("l8") if decoded else samples
    batches = samples.map(FromWebdataset(dataset, decoded)).batched(BATCH, collation_fn=collate)
    ahead = {"prefetch_factor": 2, "persistent_workers": True} if workers else {}
    loader = DataLoader(batches, batch_size=None, num_workers=workers, **ahead)
    return lambda: loader


def samples_per_s(ways: dict[str, Callable[[], Iterable[Any]]], repeats: int) -> dict[str, list[float]]:
    """Time whole epochs of every way in turn, so that a slow moment of the machine hits all alike."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, epoch in ways.items():
            start, seen = time.perf_counter(), 0
            for batch in epoch():
                seen += int(batch.valid.sum())
            if repeat:  # the first starts workers and fills caches
                rates[name].append(seen / (time.perf_counter() - start))
    return rates


# --- the published way


@dataclass(frozen=True)
class PublishedCase:
    """Files of one sample as the published code reads them: the full-size picture, a colour JPEG for each map."""

    image: Path
    maps: tuple[Path, ...]


def write_published(root: Path, table: SampleTable, corpus: Corpus, out: Path) -> list[PublishedCase]:
    """Write full-size colour JPEGs of the maps; the pictures are MIMIC-CXR-JPG's."""
    folder = ShardFolder(root)
    pictures = {path.stem: path for path in Path(corpus.mimic_cxr_jpg).rglob("*.jpg")}
    cases = []
    for row in range(len(table)):
        sample = folder.sample(table.name(row))
        picture = pictures.get(sample.record["dicom_id"])
        if picture is None:
            continue
        maps = written_maps(sample.gaze, sample.record, out / sample.key) if table.has_gaze[row] else ()
        cases.append(PublishedCase(picture, tuple(maps)))
    return cases


def written_maps(gaze: dict[str, Any], record: dict[str, Any], out: Path) -> Iterator[Path]:
    """Draw each sentence's map and the whole reading's over the full-size image, as the published files are."""
    out.mkdir(parents=True)
    fixations = fixations_from_member(gaze)
    size = record["image_width_px"], record["image_height_px"]
    sigma_px = record["map_sigma_px"] or None
    for i in range(1 + len(gaze["sentence_start_s"])):
        whole = render_batch(fixations, fixations.duration_s[None], size, size[::-1], sigma_px=sigma_px)[0]
        levels = (255 * whole / max(float(whole.max()), 1e-12)).astype(np.uint8)
        cv2.imwrite(f"{out}/{i}.jpg", cv2.applyColorMap(levels, cv2.COLORMAP_JET))
        yield out / f"{i}.jpg"


def published_sample(case: PublishedCase, processor: BitImageProcessorPil) -> torch.Tensor:
    """Load one sample in the published way, tokenization left out: picture and maps through PIL at full size."""
    picture = processor(Image.open(case.image).convert("RGB"), return_tensors="pt").pixel_values[0]
    for path in case.maps:
        published_map(path, processor)
    return picture


def published_map(path: Path, processor: BitImageProcessorPil) -> torch.Tensor:
    """Guess a patch map back out of a colour JPEG: resize, crop, luma, mean of each patch, background removed."""
    size = processor.crop_size["height"]
    plain = partial(processor, do_rescale=False, do_normalize=False, return_tensors="pt")
    red, green, blue = plain(Image.open(path).convert("RGB")).pixel_values[0].float()
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    patches = torch.nn.functional.adaptive_avg_pool2d(gray[None, None], size // 14)[0, 0]
    background = patches.flatten().mode().values
    return torch.where(patches <= background, 0.0, patches).flatten()


# --- runs


def compare_streams(folder: Path) -> None:
    """Print samples/s of the stream, webdataset and the limit."""
    root = write_shards(write_corpus(folder / "corpus", SUBJECTS, workers=2), folder / "shards")
    dataset, memory = (ShardDataset(root, read_table(root, "train"), GRID) for _ in range(2))
    memory.files = MemoryFiles(dataset)  # type: ignore[assignment]
    tars = [str(root / name) for name in dataset.table.shard_names]
    collate = Collate(tokenizer())
    print(f"{len(dataset)} samples, {int(dataset.table.has_gaze.sum())} with gaze, {len(tars)} shards, {GRID} patches")
    if Path("/proc/self/smaps_rollup").exists():
        print_memory(dataset)
    for workers in (0, 2):
        ways = {
            "cogaze": stream_epochs(dataset, collate, workers),
            "webdataset": webdataset_epochs(tars, dataset, collate, workers, decoded=True),
            "webdataset, cogaze's decoders": webdataset_epochs(tars, dataset, collate, workers, decoded=False),
            "from memory": stream_epochs(memory, collate, workers),
        }
        rates = samples_per_s(ways, REPEATS)
        for name, found in rates.items():
            ratio = median(a / b for a, b in zip(rates["cogaze"], found, strict=True))
            versus = "" if name == "cogaze" else f"   cogaze {ratio:4.2f} x   goal {GOALS.get(name, 'none')}"
            spread = f"{min(found):.0f} to {max(found):.0f}"
            print(f"{workers} workers  {name:30} {median(found):6.1f} samples/s, {spread}{versus}")


def anonymous_mb(process: int) -> float:
    """Memory of a process that no file backs, in MB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Anonymous:"))


def print_memory(dataset: ShardDataset) -> None:
    """Print the anonymous memory of a worker over epochs; what it shares with its parent counts too."""
    others = set(multiprocessing.active_children())
    epoch = stream_epochs(dataset, Collate(tokenizer()), 1)
    found = []
    for _ in range(MEMORY_EPOCHS):
        for _ in epoch():
            pass
        (worker,) = set(multiprocessing.active_children()) - others
        found.append(anonymous_mb(int(worker.pid or 0)))
    here, seen = anonymous_mb(os.getpid()), ", ".join(f"{found[i]:.0f}" for i in (0, 1, 3, MEMORY_EPOCHS - 1))
    print(
        f"a worker's anonymous memory after 1, 2, 4 and {MEMORY_EPOCHS} epochs: {seen} MB (this process {here:.0f} MB)"
    )


def compare_published(folder: Path) -> None:
    """Print samples/s of the stream and of the published way, on the same full-size cases."""
    corpus = write_corpus(folder / "full", FULL_SIZE_SUBJECTS, full_size=True, workers=2)
    root = write_shards(corpus, folder / "full shards")
    dataset = ShardDataset(root, read_table(root, "train"), GRID)
    cases = write_published(root, dataset.table, corpus, folder / "published")
    with_gaze, without = ([case for case in cases if bool(case.maps) is gaze] for gaze in (True, False))
    processor = BitImageProcessorPil(size={"shortest_edge": 518}, crop_size={"height": 518, "width": 518})
    own = stream_epochs(dataset, Collate(tokenizer()), 0)
    seconds: dict[str, list[float]] = {"cogaze": [], "with gaze": [], "without": []}
    for _ in range(PUBLISHED_REPEATS):
        batches = (batch.pixel_values for _ in range(OWN_EPOCHS) for batch in own())
        seconds["cogaze"].append(mean_seconds(batches, OWN_EPOCHS * len(dataset)))
        for name, chosen in (("with gaze", with_gaze), ("without", without)):
            seconds[name].append(mean_seconds((published_sample(case, processor) for case in chosen), len(chosen)))
    taken = {name: median(found) for name, found in seconds.items()}
    print(f"full size: {len(with_gaze)} samples with gaze and {sum(len(c.maps) for c in cases)} map files, ", end="")
    print(f"{len(without)} without; 0 workers; cogaze {1 / taken['cogaze']:.1f} samples/s over both")
    for name, share in (("with gaze", 1.0), ("without", 0.0), ("all", len(with_gaze) / len(cases))):
        published_s = share * taken["with gaze"] + (1 - share) * taken["without"]
        versus = f"cogaze {published_s / taken['cogaze']:.0f} x{'   goal 50' if name == 'all' else ''}"
        print(f"published, {name:9} {1 / published_s:6.2f} samples/s   {versus}")


def mean_seconds(work: Iterable[Any], samples: int) -> float:
    """Wall time of a sample where `work` goes through that many."""
    start = time.perf_counter()
    for _ in work:
        pass
    return (time.perf_counter() - start) / samples


def main() -> None:
    """Compare in one run and print ratios of medians."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, one thread in each process, medians of {REPEATS} interleaved epochs")
    with TemporaryDirectory() as folder:
        compare_streams(Path(folder))
        compare_published(Path(folder))


if __name__ == "__main__":
    main()

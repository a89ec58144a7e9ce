"""Reports of a whole split, by as many processes as there are, batch by batch, so that a killed run goes on.

The batches are the same whatever the number of processes, so the texts are. Each is a file of its own until all are
written; then they become generated.parquet, generated.jsonl and attention.npz, in the order of the samples' keys.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset

from cogaze.checkpoint import versions, write_whole
from cogaze.data.dataset import CorruptSampleError, DatasetConfig, ShardDataset, read_folder, read_table
from cogaze.data.lines import ReportBatch, as_taught
from cogaze.data.loader import as_first_told
from cogaze.data.plan import PlanItem
from cogaze.data.targets import Targets, chosen, ids_of, read_targets, records
from cogaze.data.transforms import DRAWS, Record, on_picture, view_of
from cogaze.evaluate.encoder import weights_sha256
from cogaze.evaluate.held_out import Judged
from cogaze.evaluate.processes import OtherProcessError, Process, any_failed, batches_of
from cogaze.log import say
from cogaze.models.decoder import check_positions
from cogaze.run import quiet
from cogaze.writer import Looked, Writer, load_looker, load_writer
from gazeprep.shards import FolderLock, appearing_whole, sha256_of

DEVICES: dict[str, Callable[[], bool]] = {
    "cpu": torch.cpu.is_available,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}
PARTS, LOCK = "parts.unfinished", ".lock"
SETTINGS = "generate.json"
REPORTS, LINES, ATTENTION = "generated.parquet", "generated.jsonl", "attention.npz"
COLUMNS = ("key", "study_id", "image_id", "subject_id", "reference", "text")


@dataclass(frozen=True)
class BeamConfig:
    """How a text is searched for: the most probable of `beams` lines of words, by their mean log probability.

    max_tokens: of a text; 0 takes what the model learned with. length_penalty: the power of a line's length by which
    its log probability is divided. no_repeat: words in a row that must not come twice, 0 for no such rule. to_the_end:
    look on until no line could become better, not only until it is unlikely, as published.
    """

    beams: int = 10
    max_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat: int = 0
    to_the_end: bool = False

    def __post_init__(self) -> None:
        if self.beams < 1 or min(self.max_tokens, self.no_repeat) < 0:
            raise ValueError(f"{self}: beams must be at least 1, max_tokens and no_repeat at least 0")

    def options(self, learned: int) -> dict[str, Any]:
        """Return the options of transformers' generate."""
        return {
            "num_beams": self.beams,
            "max_new_tokens": self.max_tokens or learned,
            "length_penalty": self.length_penalty,
            "no_repeat_ngram_size": self.no_repeat,
            "early_stopping": "never" if self.to_the_end else False,
            "do_sample": False,
        }


@dataclass(frozen=True)
class GenerateConfig:
    """What is written of what.

    model: a folder that pipelines/finetune.py exported, best or model. shards: a folder or URL. out: a folder for
    generated.parquet, generated.jsonl (ids, reference, text), attention.npz and generate.json; a call that was killed
    goes on where it was. split: whose studies. referenced: only those that have a reference. table: the parquet file of
    texts, if the model learned such, for the references. cut_references: to the tokens that the model learned to write,
    as published. batch: studies at once. attention: also where each sentence looks. looker: the pretrained model, whose
    sentences were taught where to look; without it the writer's encoder, which forgets that as it learns to write.
    limit: only so many studies, the first by key; 0 for all. skip_corrupt: a study whose picture cannot be read gets an
    empty text, one whose record cannot be read none, and both are told instead of ending the call. precision: "bf16"
    where the device has it. device: "" takes what there is. language_model: the folder of the one that the model was
    trained on, if that was a folder.
    """

    model: Path
    shards: str
    out: Path
    split: Judged = "test"
    referenced: bool = False
    table: str = ""
    cut_references: bool = False
    search: BeamConfig = field(default_factory=BeamConfig)
    batch: int = 16
    attention: bool = True
    looker: Path | None = None
    limit: int = 0
    skip_corrupt: bool = False
    precision: Literal["no", "bf16"] = "no"
    device: str = ""
    language_model: str = ""
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.limit, self.workers) < 0:
            raise ValueError(
                f"batch is {self.batch}, limit {self.limit} and workers {self.workers}: at least 1, 0 and 0"
            )
        there = [name for name, has in DEVICES.items() if has()]
        if self.device and self.device.split(":")[0] not in there:
            raise ValueError(
                f"device is {self.device!r}, must be {' or '.join(there)} here; leave it out to take what there is"
            )


@dataclass(frozen=True)
class Written:
    """How many studies there are reports of, and how many of those this call wrote."""

    studies: int
    new: int


def generate(config: GenerateConfig) -> Written:
    """Write a report of every study of a split; in a group of processes (torchrun) they share them out.

    Raises ValueError where model, shards and out do not fit together.
    """
    quiet()
    state = PartialState()
    writer = load_writer(config.model, config.device or state.device, config.language_model)
    if writer.model.config.language_model is None:
        check_positions(writer.model.decoder.model.config, config.search.max_tokens)
    targets = _targets(config, writer)
    for remark in targets.remarks if Process.current().is_main else ():
        say(remark)
    settings = _settings(config, writer, targets)
    with ExitStack() as held:
        _together(lambda: _begin(config.out, settings, held))
        if (config.out / REPORTS).exists():
            return Written(len(targets.table), 0)
        kept = [config.model.parent, config.out]
        writer = writer.told(config.shards, targets.table, kept, config.workers, skip_corrupt=config.skip_corrupt)
        batches, process = batches_of(len(targets.table), config.batch), Process.current()
        missing = [number for number in range(len(batches)) if not _part(config.out, number).exists()]
        _together(lambda: None)  # all have looked before one writes, so that they share out the same
        own = missing[process.rank :: process.count]
        _together(lambda: _write_parts(config, writer, targets, {one: batches[one] for one in own}))
        _together(lambda: _join(config.out, len(batches), settings))
        return Written(len(targets.table), sum(len(batches[one]) for one in own))


def _together(work: Callable[[], None]) -> None:
    """Let all processes do something, and wait for each other; one that fails ends all of them."""
    fault: Exception | None = None
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the other processes have to hear of whatever it is
        fault = error
    failed = any_failed(fault is not None)
    if fault is not None:
        raise fault
    if failed:
        raise OtherProcessError("another process could not do its part; what is written is kept")


# --- before


def _targets(config: GenerateConfig, writer: Writer) -> Targets:
    """Choose the studies, by key, with their references where there are any."""
    learned = writer.target
    if bool(learned.table) != bool(config.table):
        raise ValueError(
            "the model learned to write the texts of a table: give that file (--table), for the references"
            if learned.table
            else "table is given, but the model learned to write sections of the shards' reports; leave it out"
        )
    target = replace(learned, table=config.table, images="study")
    found = read_targets(
        config.shards,
        read_table(config.shards, config.split),
        target,
        empty=not config.referenced,
        skipped_in_a_row=DatasetConfig(skip_corrupt=config.skip_corrupt).skipped_in_a_row,
    )
    order = np.argsort(found.table.key)[: config.limit or None]
    text = found.text
    if config.cut_references:
        text = dict(zip(text, as_taught(writer.script, list(text), list(text.values())), strict=True))
    return Targets(chosen(found.table, order), text, found.remarks)


def _settings(config: GenerateConfig, writer: Writer, targets: Targets) -> dict[str, Any]:
    """Return what the texts depend on, without places."""
    manifest = read_folder(config.shards).manifest
    keys = [targets.table.name(row) for row in range(len(targets.table))]
    search = replace(config.search, max_tokens=config.search.max_tokens or writer.target.max_tokens)
    found = {
        "model": {"weights sha256": weights_sha256(config.model), "run.json": sha256_of(config.model / "run.json")},
        "shards": {
            "index.parquet": manifest["tables"]["index.parquet"]["sha256"],
            "all": hashlib.sha256("".join(one["sha256"] for one in manifest["shards"]).encode()).hexdigest(),
        },
        "split": config.split,
        "studies": len(keys),
        "with a reference": sum(bool(targets.text[key]) for key in keys),
        "target": asdict(writer.target) | {"table": sha256_of(Path(config.table)) if config.table else ""},
        "search": asdict(search),
        "references": "cut" if config.cut_references else "whole",
        "left out": list(targets.remarks),
        "batch": config.batch,
        "attention": _looked_with(config),
        "precision": config.precision,
        "versions": versions(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # as it will be read again
    return plain


def _looked_with(config: GenerateConfig) -> str:
    if not config.attention:
        return "none"
    return "the writer" if config.looker is None else weights_sha256(config.looker)


def _begin(out: Path, settings: dict[str, Any], held: ExitStack) -> None:
    """In the main process, make the folder, or go on with one of the same settings, and hold it against other calls.

    What is whole is not written to again, as its disk may be read-only by now.
    """
    if not Process.current().is_main or (_is_of(out, settings) and _is_whole(out)):
        return
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    held.enter_context(FolderLock(out / LOCK, holder="call"))
    if not _is_of(out, settings):  # asked again, as another call may just have begun
        write_whole(out / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    if (out / REPORTS).exists():  # killed just after, or another call has just ended
        _clear(out)


def _is_of(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder was begun with these settings; raises ValueError where it was with others."""
    path = out / SETTINGS
    if not path.exists():
        if (out / REPORTS).exists():
            raise ValueError(f"out holds {REPORTS} without the {SETTINGS} that tells of what; give another out")
        return False
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{SETTINGS} in out is damaged; give another out, or remove what is in it") from None
    differing = [name for name in sorted(before | settings) if before.get(name) != settings.get(name)]
    if differing:
        raise ValueError(
            f"out holds reports of another {', '.join(differing)}; give another out, or remove what is in it"
        )
    return True


def _is_whole(out: Path) -> bool:
    return (out / REPORTS).exists() and not (out / PARTS).exists() and not (out / LOCK).exists()


def _clear(out: Path) -> None:
    """Remove all that was needed on the way, and what killed calls left half-way."""
    for name in (SETTINGS, ATTENTION, LINES, REPORTS):
        for half in out.glob(f".{name}.*.tmp"):  # the folder is held, so nobody is writing them
            half.unlink(missing_ok=True)
    shutil.rmtree(out / PARTS)
    (out / LOCK).unlink(missing_ok=True)


# --- writing


@dataclass(frozen=True, eq=False)
class _Studies:
    """A batch to write from, and the records of its samples."""

    batch: ReportBatch
    records: list[Record]


class _Batches(Dataset[_Studies]):
    """Batches of studies by place; holds no model, so that workers need none."""

    def __init__(self, config: GenerateConfig, writer: Writer, targets: Targets, rows: Sequence[range]) -> None:
        data = DatasetConfig(view=writer.view, skip_corrupt=config.skip_corrupt).still()
        self.dataset = ShardDataset(config.shards, targets.table, writer.model.patch_grid, data)
        self.shards, self.rows, self.collate = config.shards, rows, writer.reading(targets)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> _Studies:
        rows = np.array(self.rows[place])
        examples = [self.dataset[PlanItem(row, True, False, 0)] for row in rows.tolist()]
        return _Studies(self.collate.begun(examples), list(records(self.shards, chosen(self.dataset.table, rows))))


def _write_parts(config: GenerateConfig, writer: Writer, targets: Targets, own: Mapping[int, range]) -> None:
    """Write a file for each of this process's batches."""
    loader = DataLoader(
        _Batches(config, writer, targets, list(own.values())),
        batch_size=None,
        num_workers=config.workers,
        collate_fn=_as_it_is,
    )
    options = config.search.options(writer.target.max_tokens)
    looker = writer.looker if config.looker is None else load_looker(config.looker, writer)
    for number, studies in zip(own, _as_told(loader), strict=True):
        batch = studies.batch.to(writer.device)
        with _precision(config, writer.device):
            texts, patches = writer.write(batch, options)
            texts = ["" if fault else text for text, fault in zip(texts, batch.faults, strict=True)]
            looked: list[Looked] = []
            if config.attention:
                seen = patches if config.looker is None else looker.patches(batch)
                looked = looker.looked(texts, seen, batch)
        rows = [
            _row(key, targets.text[key], text, record)
            for key, text, record in zip(batch.keys, texts, studies.records, strict=True)
        ]
        for image, row in enumerate(rows):
            own_sentences = [one for one in looked if one.image == image]
            row["attention"] = _on_grid(own_sentences, studies.records[image], writer)
        for fault in filter(None, batch.faults):
            say(f"{fault}; its text is empty")
        write_whole(_part(config.out, number), "".join(json.dumps(row) + "\n" for row in rows).encode())


def _row(key: str, reference: str, text: str, record: Record) -> dict[str, Any]:
    ids = ids_of(record)
    named = (key, ids.study_id, ids.image_id, ids.subject_id, reference, text)
    return dict(zip(COLUMNS, named, strict=True))


def _on_grid(looked: Sequence[Looked], record: Record, writer: Writer) -> list[dict[str, Any]]:
    """Return each sentence's attention on the grid of the shard's maps, over the whole picture."""
    if not looked:
        return []
    maps = np.stack([one.attention.double().numpy() for one in looked]).reshape(-1, *writer.model.patch_grid)
    view = view_of(writer.view.still(), record, np.zeros(DRAWS))
    shown = on_picture(maps, view, (record["map_rows"], record["map_cols"]))
    return [
        {"sentence": one.sentence, "mass": np.round(mass, 6).tolist()} for one, mass in zip(looked, shown, strict=True)
    ]


def _precision(config: GenerateConfig, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if config.precision == "no" else torch.autocast(device.type, dtype=torch.bfloat16)


def _as_told(loader: Iterable[_Studies]) -> Iterator[_Studies]:
    """Deliver what a loader does; a sample that cannot be read ends it with one line."""
    try:
        yield from loader
    except CorruptSampleError as error:
        error.__traceback__ = None  # as in cogaze.data.loader
        raise as_first_told(error) from None


def _as_it_is(studies: Any) -> Any:
    return studies


# --- after


def _join(out: Path, parts: int, settings: dict[str, Any]) -> None:
    """Put all batches together, in the main process; the table comes last, and says that all is there."""
    if not Process.current().is_main:
        return
    rows = [json.loads(line) for number in range(parts) for line in _part(out, number).read_text("utf-8").splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == settings["studies"]
    looked = [(row["key"], one) for row in rows for one in row.pop("attention")]
    if looked:
        with appearing_whole(out / ATTENTION) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(
                file,
                key=np.array([key for key, _ in looked]),
                sentence=np.array([one["sentence"] for _, one in looked]),
                mass=np.array([one["mass"] for _, one in looked], dtype=np.float32),
            )
    write_whole(out / LINES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    write_whole(out / REPORTS, pd.DataFrame(rows, columns=list(COLUMNS), dtype=str).to_parquet(index=False))
    _clear(out)


def _part(out: Path, number: int) -> Path:
    return out / PARTS / f"{number:06d}.jsonl"

"""One export: choose samples, write them into a folder that appears only when it is whole."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from gazeprep.exports.coco_folder import CocoFolder
from gazeprep.exports.cogaze_folder import CogazeFolder
from gazeprep.exports.egma_folder import EgmaFolder
from gazeprep.exports.fiftyone_folder import FiftyoneFolder
from gazeprep.exports.map_files import MapGrid, NpzFolder, Png16Folder
from gazeprep.query import matches
from gazeprep.schema import SPLITS
from gazeprep.shards import LoadedSample, ShardFolder, write_json
from gazeprep.stores import folder_appearing_whole

LEFT_OUT = "samples left out: "  # so a writer begins the count of those that it has no place for
Format = Literal["npz", "png16", "fiftyone", "coco", "cogaze", "egma"]
FORMATS: tuple[str, ...] = get_args(Format)
MAP_GRIDS: tuple[str, ...] = get_args(MapGrid)


@dataclass(frozen=True)
class ExportConfig:
    """What to export, how and where to.

    format: npz, png16: maps; fiftyone, coco: for those tools; cogaze, egma: what the published code reads, with
    report text. out: a new or empty folder. maps (npz, png16): as stored, or rendered with one cell per pixel of the
    stored picture or of the full-resolution image.
    query: of the index, as in "has_gaze and dataset == 'reflacx'". split: train, validate, test
    or "" for all. keys: a text file with one key a line. source_ids: write the sources' image, study and subject
    ids in place of pseudonyms. image_root: what stands before each path in EGMA's csv, "" for relative ones.
    """

    shards: Path | str
    out: Path
    format: Format
    query: str = ""
    split: str = ""
    keys: Path | None = None
    source_ids: bool = False
    image_root: str = ""
    maps: MapGrid = "stored"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}, must be one of {', '.join(FORMATS)}")
        if self.maps not in MAP_GRIDS:
            raise ValueError(f"maps is {self.maps!r}, must be one of {', '.join(MAP_GRIDS)}")
        if self.split and self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}, must be one of {', '.join(SPLITS)}, or empty for all")


@dataclass(frozen=True)
class ExportReport:
    """What an export did: how many samples it was given, and what else there is to say, with counts."""

    samples: int
    counts: dict[str, int]

    @property
    def written(self) -> int:
        """Count the samples that this format has a place for."""
        return self.samples - sum(count for what, count in self.counts.items() if what.startswith(LEFT_OUT))


class Writer(Protocol):
    """Writes samples in one format."""

    counts: Counter[str]

    def add(self, sample: LoadedSample) -> None:
        """Take one sample."""

    def finish(self) -> None:
        """Write what comes after the last."""


def export(config: ExportConfig) -> ExportReport:
    """Export samples of a finished build; raises ValueError where the folder is taken or nothing is chosen."""
    folder = ShardFolder(config.shards)
    keys = chosen_keys(folder, config)
    with folder_appearing_whole(config.out) as partial:
        writer = _writer(partial, config)
        for key in keys:
            writer.add(folder.sample(key))
        writer.finish()
        report = ExportReport(len(keys), dict(sorted(writer.counts.items())))
        write_json(
            partial / "export.json",
            {
                "format": config.format,
                "source_ids": config.source_ids,
                "synthetic": bool(folder.index.loc[keys, "synthetic"].any()),
                "samples": report.samples,
                "counts": report.counts,
            },
        )
    return report


def _writer(root: Path, config: ExportConfig) -> Writer:
    ids = config.source_ids
    match config.format:
        case "npz":
            return NpzFolder(root, source_ids=ids, grid=config.maps)
        case "png16":
            return Png16Folder(root, source_ids=ids, grid=config.maps)
        case "fiftyone":
            return FiftyoneFolder(root, source_ids=ids)
        case "coco":
            return CocoFolder(root, source_ids=ids)
        case "cogaze":
            return CogazeFolder(root, source_ids=ids)
        case "egma":
            return EgmaFolder(root, source_ids=ids, image_root=config.image_root)


def chosen_keys(folder: ShardFolder, config: ExportConfig) -> list[str]:
    """Return the keys that query, split and key list all choose, in the order of the shards."""
    rows = [row for row in folder.index.to_dict("records") if config.split in ("", row["split"])]
    if config.query and rows:
        rows = [row for row, taken in zip(rows, matches(config.query, rows), strict=True) if taken]
    if config.keys is not None:
        listed = config.keys.read_text(encoding="utf-8").split()
        for key in listed:
            folder.row(key)  # an unknown one is an error
        rows = [row for row in rows if row["key"] in set(listed)]
    if not rows:
        raise ValueError("no sample is chosen; widen --query, --split or --keys (gazeprep info tells what there is)")
    return [row["key"] for row in rows]

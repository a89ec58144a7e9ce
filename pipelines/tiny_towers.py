"""Write small untrained towers for a demo: python pipelines/tiny_towers.py --shards out/shards --out out/towers."""

import sys
from pathlib import Path

from jsonargparse import auto_cli

from cogaze.models.tiny import TinyTowers, write_tiny_towers
from gazeprep.shards import ShardFolder

SECTIONS = ("indication", "history", "findings", "impression", "last_paragraph", "transcript")


def tiny_towers(shards: Path, out: Path, sizes: TinyTowers = TinyTowers()) -> None:  # noqa: B008
    """Train a tokenizer on the texts of the training samples and write both towers.

    Args:
        shards: a finished build.
        out: folder for vision and text.
        sizes: of the towers.
    """
    folder = ShardFolder(shards)
    keys = folder.index[folder.index["split"] == "train"]["key"]
    records = (folder.sample(key).record for key in keys)
    write_tiny_towers(out, (record[name] for record in records for name in SECTIONS), sizes)


def main() -> int:
    """Parse, write: 0 done, 1 a problem, 2 wrong usage."""
    try:
        auto_cli(tiny_towers, as_positional=False, allow_abbrev=False)
    except ValueError as error:
        print(f"tiny_towers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Texts to train on from SRRG: python pipelines/srrg_targets.py --srrg FOLDER --part findings --out targets.parquet.

FOLDER: a downloaded StanfordAIMI/srrg_findings (or srrg_impression). The table has study_id, split and text, the
structured report of each MIMIC-CXR study; training reads it by --target.table.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from cogaze.data.srrg import SPLITS, SrrgTargets, read_srrg, write_targets
from cogaze.evaluate.reports.structured import Part, Rules
from cogaze.stopped import STOPS, one_line


def main() -> int:
    """Parse, read, write, say what became of the rows: 0 done, 1 a problem, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--srrg", type=Path, required=True, help="folder of the data set, with data/ below it")
    parser.add_argument("--part", choices=get_args(Part), required=True, help="which of its sections is to be written")
    parser.add_argument("--rules", choices=get_args(Rules), default="official", help="how its texts are read")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="its parts, by default all")
    parser.add_argument("--out", type=Path, required=True, help="the table, a parquet file")
    options = parser.parse_args()
    try:
        targets = read_srrg(options.srrg, options.part, options.rules, options.splits)
        write_targets(targets, options.out)
    except STOPS as error:
        print(f"srrg_targets: {one_line(error)}", file=sys.stderr)
        return 1
    print("\n".join(told(targets)))
    return 0


def told(targets: SrrgTargets) -> list[str]:
    """Say in lines what became of all rows, and what the texts have lost."""
    parts = ", ".join(f"{split} {count}" for split, count in targets.of_split.items())
    lines = [f"{targets.rows} rows: {len(targets.texts)} texts of as many MIMIC-CXR studies ({parts})"]
    lines += [f"  {count} left out, {reason}" for reason, count in sorted(targets.left_out.items())]
    lines += [f"  {count} pieces of texts lost, {reason}" for reason, count in sorted(targets.lost.items())]
    return lines


if __name__ == "__main__":
    sys.exit(main())

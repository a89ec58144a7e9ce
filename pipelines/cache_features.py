"""Store a frozen tower's tokens once: python pipelines/cache_features.py --config configs/x.yaml --shards SHARDS.

A run with the same options and --data.features auto then reads them in place of the images. With several processes:
torchrun --nproc_per_node 8 pipelines/cache_features.py ... (ACCELERATE_USE_CPU=true on CPU). Killed, it goes on.
"""

import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from cogaze.config import from_options, run_parser
from cogaze.frozen import CacheReport, cache_features
from cogaze.run import quiet
from gazeprep.schema import SPLITS


def main() -> int:
    """Parse, store, say what is stored: 0 done, 1 a problem, 2 wrong usage."""
    parser = run_parser(__doc__)
    parser.add_argument(
        "--splits", nargs="*", choices=SPLITS, default=[], help="which, by default those that the run reads"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="pictures that the tower sees at once")
    parser.set_defaults({"out": Path()})  # nothing is written there
    options = parser.parse_args()
    main_process = os.environ.get("RANK", "0") == "0"
    console = Console(stderr=True, quiet=not main_process)
    quiet()
    try:
        config = from_options(parser, options)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("samples", total=None)
            report = cache_features(
                config,
                options.splits,
                options.batch_size,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
    except (ValueError, torch.OutOfMemoryError) as error:
        print(f"cache_features: {error}", file=sys.stderr)
        return 1
    console.print(told(report), markup=False, highlight=False, soft_wrap=True)
    return 0


def told(report: CacheReport) -> str:
    """Say in words what is stored."""
    unreadable = f", {report.unreadable} of them unreadable" if report.unreadable else ""
    speed = f", {report.written / report.seconds:.1f} a second" if report.written else ""
    return (
        f"{' and '.join(map(str, report.folders))}: {report.samples} samples, {report.size_bytes / 1e6:.1f} MB; "
        f"{report.written} written now{unreadable}{speed}"
    )


if __name__ == "__main__":
    sys.exit(main())

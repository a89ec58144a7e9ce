"""Supervised tasks of a dataset: python pipelines/finetune.py --model OUT/model --data rsna --root RSNA --out RESULTS.

Linear probe, fine-tuning and segmentation at 1, 10 and 100 % of the labels; results.json and results.md in RESULTS.
With several processes: torchrun --nproc_per_node 8 pipelines/finetune.py ... (ACCELERATE_USE_CPU=true on CPU).
"""

import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import ArgumentParser

from cogaze.evaluate.classify import ProbeConfig
from cogaze.evaluate.datasets import READERS, read_dataset
from cogaze.evaluate.encoder import load_encoder
from cogaze.evaluate.finetune import FinetuneConfig
from cogaze.evaluate.results import Results
from cogaze.evaluate.segment import SegmentConfig
from cogaze.evaluate.supervised import TASKS, SupervisedConfig, settings_of, supervised
from cogaze.run import quiet


def finetune_parser() -> ArgumentParser:
    """Return what reads the options; one that is unknown is an error."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of the options")
    parser.add_argument("--model", type=Path, required=True, help="the folder that a run exported, model or best")
    parser.add_argument("--data", choices=list(READERS), required=True)
    parser.add_argument("--root", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--lists", type=Path | None, default=None, help="a folder of split lists, such as BenchX's")
    parser.add_argument("--options", type=dict[str, Any], default={}, help="the dataset reader's own")
    parser.add_argument("--out", type=Path, required=True, help="where results, and features meanwhile, are written")
    parser.add_argument("--tasks", type=list[str], default=list(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images ahead, for each process")
    parser.add_class_arguments(SupervisedConfig, "shared", fail_untyped=True)
    parser.add_class_arguments(ProbeConfig, "probe", fail_untyped=True)
    parser.add_class_arguments(FinetuneConfig, "finetune", fail_untyped=True)
    parser.add_class_arguments(SegmentConfig, "segment", fail_untyped=True)
    return parser


def main() -> int:
    """Parse, run each task, say where the figures are: 0 done, 1 a problem, 2 wrong usage."""
    parser = finetune_parser()
    options = parser.parse_args()
    quiet()
    try:
        read = parser.instantiate(options)
        process = PartialState()
        encoder = load_encoder(read.model, process.device, workers=read.workers)
        data = read_dataset(read.data, read.root, read.lists, **read.options)
        configs = {name: read[name] for name in ("shared", "probe", "finetune", "segment")}
        results = Results(read.out, settings_of(read.model, data, configs))
        supervised(results, encoder, data, read.tasks, configs)
    except (ValueError, OSError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    if process.is_main_process:
        print(results.markdown())
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Train on a dataset's labels: python pipelines/finetune.py --model OUT/model --dataset rsna --root RSNA --out RESULTS.

Linear probe, fine-tuning and segmentation at 1, 10 and 100 % of the labels, judged as pipelines/evaluate.py does, which
keeps no weights; here they stay in RESULTS/weights. Several processes: torchrun --nproc_per_node 8
pipelines/finetune.py ... (ACCELERATE_USE_CPU=true on CPU). docs/evaluation.md says what the figures are.
"""

import os
import sys

import torch
from jsonargparse import ArgumentParser

from cogaze.evaluate.labelled_run import LabelledRun, run_labelled


def main() -> int:
    """Parse, train, print the figures: 0 done, 1 a problem or a failed task, 2 wrong usage."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(LabelledRun, None, fail_untyped=False)
    options = parser.parse_args()
    try:
        values = parser.instantiate(options)
        del values["config"]
        results = run_labelled(LabelledRun(**vars(values)))
    except (ValueError, torch.OutOfMemoryError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    if os.environ.get("RANK", "0") == "0":
        print(results.markdown())
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

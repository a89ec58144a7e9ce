"""Judge a saved model: python pipelines/evaluate.py --model OUT/model --shards SHARDS --out RESULTS.

Or on a benchmark: --dataset nih --root FOLDER [--lists FOLDER] [--options.frontal_only true]. Several processes, with
the same numbers: torchrun --nproc_per_node 2 pipelines/evaluate.py ... (ACCELERATE_USE_CPU=true on CPU). Writes
RESULTS/results.json and results.md after each evaluator; docs/evaluation.md says what the figures are.
"""

import os
import sys

import torch
from jsonargparse import ArgumentParser

from cogaze.evaluate.evaluation import EvaluateConfig, evaluate


def main() -> int:
    """Parse, evaluate, say where the results are: 0 done, 1 a problem or a failed evaluator, 2 wrong usage."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(EvaluateConfig, None, fail_untyped=False)
    options = parser.parse_args()
    try:
        values = parser.instantiate(options)
        del values["config"]
        results = evaluate(EvaluateConfig(**vars(values)))
    except (ValueError, torch.OutOfMemoryError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    if os.environ.get("RANK", "0") == "0":
        print(results.markdown())
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

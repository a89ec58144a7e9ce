"""Pretrain CoGaze or EGMA: accelerate launch pipelines/pretrain.py --config configs/demo.yaml --shards S --out OUT.

On CPU, and with several processes: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 pipelines/pretrain.py ...
"""

import sys

import torch

from cogaze.config import from_options, run_parser
from cogaze.fit import fit
from cogaze.step import NonFiniteLossError


def main() -> int:
    """Parse, train, say how it ended: 0 done, 1 a problem, 2 wrong usage; a signal that stops it exits with 128 + n."""
    parser = run_parser(__doc__)
    options = parser.parse_args()
    try:
        report = fit(from_options(parser, options))
    except (ValueError, NonFiniteLossError, torch.OutOfMemoryError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 1
    print(f"finished at step {report.position.steps_done}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Pretrain CoGaze: accelerate launch pipelines/pretrain.py --config configs/demo.yaml --shards SHARDS --out OUT.

On CPU, and with several processes: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 pipelines/pretrain.py ...
"""

import sys
from dataclasses import fields

from jsonargparse import ArgumentParser

from cogaze.config import RunConfig
from cogaze.fit import fit


def main() -> int:
    """Parse, train, say how it ended: 0 done, 1 a problem, 2 wrong usage; a signal that stops it exits with 128 + n."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)  # a mistyped option is an error
    parser.add_argument("--config", action="config", help="a YAML file of the options below")
    parser.add_class_arguments(RunConfig, None, fail_untyped=True)
    options = parser.parse_args()
    try:
        values = parser.instantiate(options)
        report = fit(RunConfig(**{field.name: values[field.name] for field in fields(RunConfig)}))
    except (ValueError, RuntimeError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 1
    print(f"finished at step {report.position.steps_done}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

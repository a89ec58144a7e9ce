"""Pretrain CoGaze: accelerate launch pipelines/pretrain.py --config configs/demo.yaml --shards SHARDS --out OUT.

On CPU, and with several processes: ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 pipelines/pretrain.py ...
"""

import sys
from dataclasses import fields

from jsonargparse import ArgumentParser

from cogaze.config import RunConfig
from cogaze.fit import fit


def main() -> int:
    """Parse, train, say how it ended."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML file of the options below")
    parser.add_class_arguments(RunConfig, None, fail_untyped=True)
    values = parser.instantiate(parser.parse_args())
    try:
        report = fit(RunConfig(**{field.name: values[field.name] for field in fields(RunConfig)}))
    except (ValueError, RuntimeError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 1
    print(f"{'finished' if report.finished else 'stopped'} at step {report.position.steps_done}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

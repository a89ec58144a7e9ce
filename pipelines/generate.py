"""Write reports: torchrun --nproc_per_node 8 pipelines/generate.py --model RUN/best --shards SHARDS --out OUT.

RUN is what pipelines/finetune.py trained. Writes OUT/generated.parquet and generated.jsonl, a report of each study of
the split beside its reference, and attention.npz; a call that was killed goes on where it was, on any number of
processes (ACCELERATE_USE_CPU=true on CPU). pipelines/score.py judges them.
"""

import sys

from jsonargparse import ArgumentParser

from cogaze.evaluate.processes import Process
from cogaze.generate import GenerateConfig, generate
from cogaze.stopped import STOPS, one_line


def main() -> int:
    """Parse, write, say how many: 0 done, 1 a problem, 2 wrong usage, 130 Ctrl-C."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(GenerateConfig, None, fail_untyped=True)
    options = parser.parse_args()
    try:
        values = parser.instantiate(options)
        del values["config"]
        written = generate(GenerateConfig(**vars(values)))
    except STOPS as error:
        print(f"generate: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("generate: stopped; the same command goes on", file=sys.stderr)
        return 130
    if Process.current().is_main:
        print(f"{written.studies} studies have a report", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

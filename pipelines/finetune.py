"""Train a saved model further: on a dataset's labels, or on the reports of shards to write such itself.

python pipelines/finetune.py --model OUT/model --dataset rsna --root RSNA --out RESULTS: linear probe, fine-tuning and
segmentation at 1, 10 and 100 % of the labels, judged as pipelines/evaluate.py does, which keeps no weights; here they
stay in RESULTS/weights. docs/evaluation.md says what the figures are.

accelerate launch pipelines/finetune.py --config configs/report_mimic.yaml --model OUT/model --shards SHARDS --out RUN:
report writing, which pipelines/generate.py then does with RUN/best. docs/reports.md tells more.

Several processes: torchrun --nproc_per_node 8 pipelines/finetune.py ... (ACCELERATE_USE_CPU=true on CPU).
"""

import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from cogaze.config import option_of
from cogaze.evaluate.labelled_run import LabelledRun, run_labelled
from cogaze.fit import fit
from cogaze.report_run import ReportFinetune
from cogaze.stopped import STOPS, one_line

OF_REPORTS = ("shards", "decoder", "target")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, say how it ended: 0 done, 1 a problem or a failed task, 2 wrong usage, 128 + n a signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    kind = ReportFinetune if any(option_of(arguments, name) for name in OF_REPORTS) else LabelledRun
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(kind, None, fail_untyped=False)
    options = parser.parse_args(arguments)
    try:
        values = parser.instantiate(options)
        del values["config"]
        return _trained(kind(**vars(values)))
    except STOPS as error:
        print(f"finetune: {one_line(error)}", file=sys.stderr)
        return 1


def _trained(config: ReportFinetune | LabelledRun) -> int:
    if isinstance(config, ReportFinetune):
        print(f"finished at step {fit(config.run()).position.steps_done}", file=sys.stderr)
        return 0
    results = run_labelled(config)
    if os.environ.get("RANK", "0") == "0":
        print(results.markdown())
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

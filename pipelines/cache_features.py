"""Store a frozen tower's tokens once: python pipelines/cache_features.py --config configs/x.yaml --shards SHARDS.

Of a pretrained model, for a run that writes reports: --model RUN/best --shards SHARDS, or all of that run's options.
A run with the same options and --data.features auto then reads them in place of the images. With several processes:
torchrun --nproc_per_node 8 pipelines/cache_features.py ... (ACCELERATE_USE_CPU=true on CPU). Killed, it goes on.
"""

import os
import sys
from dataclasses import fields, replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import Progress

from cogaze.config import RunConfig, from_options, option_of, run_parser
from cogaze.data.chat import PromptConfig
from cogaze.frozen import CacheReport, cache_features
from cogaze.report_config import DecoderConfig
from cogaze.report_run import ReportFinetune
from cogaze.run import quiet
from cogaze.stopped import STOPS, one_line
from gazeprep.schema import SPLITS


def main() -> int:
    """Parse, store, say what is stored: 0 done, 1 a problem, 2 wrong usage."""
    parser = _parser()
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
        config = _config(parser, options)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("samples", total=None)
            report = cache_features(
                config,
                options.splits,
                options.batch_size,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
    except STOPS as error:
        print(f"cache_features: {one_line(error)}", file=sys.stderr)
        return 1
    console.print(told(report), markup=False, highlight=False, soft_wrap=True)
    return 0


def _parser() -> ArgumentParser:
    """Return what reads the options of a run of pretraining, whose model has parts, or of one that names a model."""
    model = option_of(sys.argv[1:], "model")
    if not isinstance(model, str) or model.startswith(("--model.", "{")):
        return run_parser(__doc__)
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of the run's options")
    parser.add_class_arguments(ReportFinetune, None, fail_untyped=False)
    return parser


def _config(parser: ArgumentParser, options: Namespace) -> RunConfig:
    if isinstance(options.model, Namespace):
        return from_options(parser, options)
    values = vars(parser.instantiate(options))
    run = ReportFinetune(**{one.name: values[one.name] for one in fields(ReportFinetune)})
    # Whatever writes, the tokens are the same: a language model need not be there.
    return replace(run, decoder=DecoderConfig(), frozen="tower", prompt=PromptConfig()).run()


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

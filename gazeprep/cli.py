"""The command line: a verb of COMMANDS and its options."""

import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gazeprep.build import BuildConfig, BuildReport, build
from gazeprep.exports import FORMATS, MAP_GRIDS, ExportConfig, export
from gazeprep.jobs import BuildError, JobReport
from gazeprep.lint import lint
from gazeprep.merge import merge
from gazeprep.selection import chosen_keys, select
from gazeprep.shards import ShardFolder
from gazeprep.stores import local_path, unusable
from gazeprep.tasks import Task, build_task, finalize
from gazeprep.workers import LostWorkerError

STOPPED = 130  # exit code after Ctrl-C
GO_ON = "finished shards stay, run the same command to go on"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 stopped by a problem, 2 wrong usage, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    named, command = options[options.command], COMMANDS[options.command]
    try:
        if isinstance(named.get("out"), Path) and options.command != "build":  # which alone writes to URLs
            local_path(named.out)
        command(named)
    except (ValueError, BuildError, LostWorkerError) as error:
        return _stopped(options.command, str(error), 1)
    except OSError as error:
        return _stopped(options.command, unusable(error), 1)
    except KeyboardInterrupt:
        return _stopped(options.command, f"stopped{'; ' + GO_ON if options.command == 'build' else ''}", STOPPED)
    return 0


def _stopped(command: str, text: str, code: int) -> int:
    console = Console(stderr=True)
    console.print(f"gazeprep {command}: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    return code


def _parser() -> ArgumentParser:
    parser = _new_parser(
        prog="gazeprep",
        description="Eye-tracking recordings, radiographs and reports to shards.",
        version=version("gazeprep-cogaze"),
    )
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("synth", _synth_parser(), help="write recordings with a known answer")
    commands.add_subcommand("build", _build_parser(), help="build shards from source folders")
    commands.add_subcommand("finalize", _finalize_parser(), help="make one build of what several tasks wrote")
    commands.add_subcommand("export", _export_parser(), help="write samples for other tools and the published code")
    commands.add_subcommand("info", _info_parser(), help="what a build holds; a key's source ids")
    commands.add_subcommand("agreement", _agreement_parser(), help="how far readers of one image agree")
    commands.add_subcommand("lint", _lint_parser(), help="read every byte of a build and say what is wrong")
    commands.add_subcommand("merge", _merge_parser(), help="make one folder of several builds")
    commands.add_subcommand("preview", _preview_parser(), help="draw a sample, or a sheet of samples, as PNG")
    commands.add_subcommand("report", _report_parser(), help="write one page: counts, distributions, cases")
    commands.add_subcommand("select", _select_parser(), help="samples of a query: new shards or a list of keys")
    return parser


def _new_parser(**texts: Any) -> ArgumentParser:
    return ArgumentParser(allow_abbrev=False, **texts)  # a mistyped option is an error, not another option


def _build_parser() -> ArgumentParser:
    parser = _new_parser(
        description="Build shards from source folders, or finish an interrupted build.",
        usage="gazeprep build [--config FILE] --out FOLDER --sources.SOURCE FOLDER ... [options]",
    )
    parser.add_argument("--config", action="config", help="a YAML file of the options below")
    parser.add_class_arguments(BuildConfig, None, fail_untyped=True)
    task = "of a build in several tasks, such as a Slurm array (docs/scale.md); gazeprep finalize comes last"
    parser.add_argument("--task-index", "--task_index", type=int, help=f"which task this is, from 0, {task}")
    parser.add_argument("--task-count", "--task_count", type=int, help="how many tasks there are")
    return parser


def _finalize_parser() -> ArgumentParser:
    parser = _new_parser(description="Write index and manifest of a build that ran as several tasks.")
    parser.add_argument("shards", type=str, help="the folder or URL that the tasks wrote into")
    return parser


def _synth_parser() -> ArgumentParser:
    parser = _new_parser(description="Write synthetic recordings in the sources' own layout, with the truth beside.")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full_size", "--full-size", type=bool, default=False, nargs="?", const=True)
    parser.add_argument("--raw_gaze", "--raw-gaze", type=bool, default=False, nargs="?", const=True)
    earlier = "share of subjects with a study before the others, to which the first one's report refers"
    parser.add_argument("--earlier", type=float, default=0.0, help=earlier)
    parser.add_argument("--workers", type=int, default=0, help="processes, 0 for one per core")
    return parser


def _export_parser() -> ArgumentParser:
    parser = _new_parser(
        description="Write samples as other people's tools and the published code read them. What is written holds "
        "images or gaze, for cogaze and egma report text too: the sources' licence binds it as it binds the shards. "
        "Names are pseudonyms unless --source-ids."
    )
    parser.add_argument("shards", type=str, help="the folder or URL that a build wrote")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--query", type=str, default="", help='of the index, as in "has_gaze and sentences > 2"')
    parser.add_argument("--split", type=str, default="", help="train, validate or test; all without it")
    parser.add_argument("--keys", type=Path, help="a text file, one key a line")
    source_ids = "image, study and subject ids of the sources in place of pseudonyms"
    parser.add_argument(
        "--source-ids", "--source_ids", type=bool, default=False, nargs="?", const=True, help=source_ids
    )
    maps = "npz, png16: as stored, or a cell per pixel of the stored picture or the full-resolution image"
    parser.add_argument("--maps", choices=MAP_GRIDS, default="stored", help=maps)
    parser.add_argument("--image-root", "--image_root", type=str, default="", help="before each path in egma's csv")
    return parser


def _info_parser() -> ArgumentParser:
    parser = _new_parser(description="Print what a finished build holds.")
    parser.add_argument("shards", type=str, help="the folder or URL that a build wrote")
    parser.add_argument("--key", type=str, default="", help="print the source ids behind a sample's key")
    return parser


def _agreement_parser() -> ArgumentParser:
    parser = _new_parser(description="Score each reading of an image by its other readings, and by other images.")
    parser.add_argument("shards", type=str, help="the folder or URL that a build wrote")
    return parser


def _lint_parser() -> ArgumentParser:
    parser = _new_parser(
        description="Read every byte of a folder of shards: checksums, members, schema, maps against a fresh render, "
        "index, splits, counts. Prints what is wrong by shard and key; exit code 0 where nothing is, else 1."
    )
    parser.add_argument("shards", type=str, help="the folder or URL that a build wrote")
    parser.add_argument("--workers", type=int, default=0, help="processes, 0 for one per core")
    return parser


def _merge_parser() -> ArgumentParser:
    parser = _new_parser(description="Make one folder of several builds of different inputs by one recipe.")
    parser.add_argument("shards", type=str, nargs="+", help="the folders or URLs that builds wrote, two or more")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    copied = "copy the tars; else they are hard-linked where the file system can"
    parser.add_argument("--copy", type=bool, default=False, nargs="?", const=True, help=copied)
    return parser


def _select_parser() -> ArgumentParser:
    parser = _new_parser(
        description="Choose samples by a query on the index, a list of keys, or both; write them into new shards, "
        "their bytes unchanged, or without --out print their keys, one a line."
    )
    parser.add_argument("shards", type=str, help="the folder or URL that a build wrote")
    columns = 'comparisons of columns of the index and labels, as in "has_gaze and Pleural_Effusion == 1"'
    parser.add_argument("--query", type=str, default="", help=columns)
    parser.add_argument("--keys", type=Path, help="a text file, one key a line")
    parser.add_argument("--out", type=Path, help="a new or empty folder")
    samples = "samples per shard, 0 as the build had"
    parser.add_argument("--shard-samples", "--shard_samples", type=int, default=0, help=samples)
    return parser


def _preview_parser() -> ArgumentParser:
    parser = _new_parser(description="Draw a sample: image, whole-reading map, each sentence's map.")
    parser.add_argument("shards", type=str, help="the folder or URL that a build wrote")
    parser.add_argument("key", type=str, nargs="?", default="", help="a sample's key; without it, a sheet of samples")
    parser.add_argument("--out", type=Path, default=Path("preview.png"))
    parser.add_argument("--samples", type=int, default=12, help="how many samples on a sheet")
    return parser


def _report_parser() -> ArgumentParser:
    parser = _new_parser(description="Write one self-contained page: counts, distributions, a few cases as pictures.")
    parser.add_argument("shards", type=str, help="the folder or URL that a build wrote")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--cases", type=int, default=12, help="how many samples are drawn")
    parser.add_argument("--redact", type=bool, default=False, nargs="?", const=True, help="no text, no source ids")
    parser.add_argument("--truth", type=Path | None, help="the synthetic corpus that the shards were built from")
    parser.add_argument("--results", type=Path | None, help="results.json of a model that was evaluated on the shards")
    parser.add_argument("--generated", type=Path | None, help="a folder of reports that pipelines/generate.py wrote")
    parser.add_argument("--scores", type=Path | None, help="what pipelines/score.py wrote about them")
    parser.add_argument("--by", type=str, default="", help="the score that studies are chosen by, such as bleu_4")
    parser.add_argument("--studies", type=int, default=3, help="how many of the best and of the worst")
    return parser


def _run_build(options: Namespace) -> None:
    instantiated = _build_parser().instantiate(options)
    config = BuildConfig(**{field.name: instantiated[field.name] for field in fields(BuildConfig)})
    index, count = options.task_index, options.task_count
    if (index is None) != (count is None):
        raise ValueError("--task-index and --task-count go together; give both, or neither for the whole build")
    with _Watch() as watch:
        report = build(config, watch) if index is None else build_task(config, Task(index, count), watch)
    if isinstance(report, BuildReport):
        _print_report(report)
    else:
        done = f"{report.shards} of {report.shards_of_all_tasks} shards, {report.rebuilt} of them built now"
        _printer()(f"task {index} of {count}: {done}; run gazeprep finalize when every task is done")


def _run_finalize(options: Namespace) -> None:
    _print_report(finalize(options.shards))


class _Watch:
    """A progress bar over shards on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("shards", total=None)
        self._done = 0

    def __enter__(self) -> "_Watch":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, report: JobReport, jobs: int) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done, total=jobs)
        if not self._console.is_terminal:
            what = f"{report.samples} samples, {report.rejected} rejected" + ("" if report.rebuilt else ", kept")
            self._console.print(f"shard {self._done}/{jobs} {report.name}: {what}", markup=False, highlight=False)


def _print_report(report: BuildReport) -> None:
    show = _printer()
    for what, count in report.noted.items():
        show(f"noted: {count} x {what}")
    show("empty: " + _listed(report.empty))
    for reason, count in report.reasons.items():
        show(f"rejected: {count} x {reason}")
    show(f"{report.shards} shards" + ("" if report.rebuilt is None else f", {report.rebuilt} of them built now"))
    show(f"inputs {report.inputs} = samples {report.samples} + rejected {report.rejected}")


def _run_synth(options: Namespace) -> None:
    from gazeprep.synthetic import write_corpus

    write_corpus(
        options.out,
        options.subjects,
        seed=options.seed,
        full_size=options.full_size,
        raw_gaze=options.raw_gaze,
        workers=options.workers,
        earlier=options.earlier,
    )


def _run_export(options: Namespace) -> None:
    config = ExportConfig(**{field.name: options[field.name] for field in fields(ExportConfig)})
    report, show = export(config), _printer()
    for what, count in report.counts.items():
        show(f"noted: {count} x {what}")
    show(f"{report.written} of {report.samples} chosen samples, {options.format}")


def _run_info(options: Namespace) -> None:
    folder, show = ShardFolder(options.shards), _printer()
    if options.key:
        row = folder.row(options.key)
        for name in ("key", "dataset", "reading", "dicom", "study", "subject", "split", "shard"):
            show(f"{name:8} {row[name]}")
        return
    counts: dict[str, Any] = folder.manifest["counts"]
    if folder.manifest["synthetic"]:
        show("SYNTHETIC recordings: for trying things out, not for findings about people")
    show(f"inputs {counts['inputs']} = samples {counts['samples']} + rejected {counts['rejected']}")
    for name in ("samples_by_split", "samples_by_dataset", "rejected_by_reason", "noted", "empty"):
        show(f"{name}: " + _listed(counts[name]))
    show(f"with gaze {counts['samples_with_gaze']}, sentences {counts['sentences']}, subjects {counts['subjects']}")
    show(f"shards {len(folder.manifest['shards'])}, {sum(s['size'] for s in folder.manifest['shards'])} bytes")
    show("keys: " + ", ".join(folder.keys()[:3]) + (", ..." if len(folder) > 3 else ""))


def _run_agreement(options: Namespace) -> None:
    from gazeprep import agreement, scanpath_agreement

    folder, show = ShardFolder(options.shards), _printer()
    for line in agreement.lines(agreement.reader_agreement(folder)):
        show(line)
    for line in scanpath_agreement.lines(scanpath_agreement.scanpath_agreement(folder)):
        show(line)


def _run_lint(options: Namespace) -> None:
    report, show = lint(options.shards, workers=options.workers), _printer()
    for problem in report.problems:
        show(str(problem))
    if report.problems:
        count = f"{len(report.problems)} problems in {report.read}"
        raise ValueError(f"{count}; docs/data.md says what each means and its cure")
    show(f"nothing wrong: {report.read}")


def _run_merge(options: Namespace) -> None:
    report, show = merge(options.shards, options.out, copy=options.copy), _printer()
    if report.not_rejected:
        show(f"noted: {report.not_rejected} x rejected in one folder, a sample or rejected in another")
    show(f"{report.shards} shards, {report.linked} of them linked")
    show(f"samples {report.samples}, rejected {report.rejected}")


def _run_select(options: Namespace) -> None:
    show = _printer()
    if options.out is None:
        for key in chosen_keys(options.shards, options.query, options["keys"]):  # .keys is a method
            show(key)
        return
    report = select(options.shards, options.out, options.query, options["keys"], shard_samples=options.shard_samples)
    show(f"{report.samples} of {report.of} samples in {report.shards} shards")


def _run_preview(options: Namespace) -> None:
    try:
        from gazeprep import plots
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; run pip install 'gazeprep-cogaze[plots]'") from None
    if options.samples < 1:
        raise ValueError(f"--samples is {options.samples}, must be at least 1")
    folder = ShardFolder(options.shards)
    if options.key:
        figure = plots.sample_figure(folder.sample(options.key))
    else:
        with_gaze = folder.index[folder.index["has_gaze"]]["key"]
        keys = list(with_gaze)[: options.samples] or folder.keys()[: options.samples]
        figure = plots.contact_sheet([folder.sample(key) for key in keys])
    plots.save(figure, options.out)
    _printer()(f"wrote {options.out.name}")


def _run_report(options: Namespace) -> None:
    try:
        from gazeprep.report import ReportConfig, write_report
        from gazeprep.written_page import WrittenConfig
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; run pip install 'gazeprep-cogaze[report]'") from None
    if options.generated is None and (options.scores is not None or options.by):
        raise ValueError("--scores and --by are about generated reports: give their folder too (--generated)")
    written = options.generated and WrittenConfig(options.generated, options.scores, options.by, options.studies)
    config = ReportConfig(options.cases, options.redact, options.truth, options.results, written)
    size = write_report(options.shards, options.out, config)
    _printer()(f"wrote {options.out.name}, {size / 1e6:.1f} MB")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items()) or "none"


def _printer() -> Callable[[str], None]:
    console = Console()
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "agreement": _run_agreement,
    "build": _run_build,
    "finalize": _run_finalize,
    "export": _run_export,
    "info": _run_info,
    "lint": _run_lint,
    "merge": _run_merge,
    "preview": _run_preview,
    "report": _run_report,
    "select": _run_select,
    "synth": _run_synth,
}

if __name__ == "__main__":
    sys.exit(main())

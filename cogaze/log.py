"""What a run tells: on the terminal, to its tracker, and by step in log.jsonl."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cogaze.checkpoint import Position
from cogaze.data.loader import Stream
from cogaze.run import Run

CONSOLE = Console(stderr=True)


def say(text: str) -> None:
    """Print a line to stderr, above the progress bar if there is one."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


def note(run: Run, step: int, values: dict[str, float]) -> None:
    """Log named numbers after a step, to the tracker and to log.jsonl."""
    run.accelerator.log(values, step=step)
    if run.accelerator.is_main_process:
        with (run.config.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def tell_skipped(run: Run, stream: Stream) -> int:
    """Count the corrupt samples that all processes skipped since this was last asked; say each one once a run."""
    own = stream.take_faults()
    skipped = int(run.accelerator.reduce(torch.tensor(len(own), device=run.accelerator.device), "sum"))
    if skipped:
        for fault in dict.fromkeys(gather_object(own)):
            if run.accelerator.is_main_process and fault not in stream.told:
                say(f"skipped: {fault}")
            stream.told.add(fault)
    return skipped


def shorten_log(path: Path, steps_done: int) -> None:
    """Drop what a run logged after the checkpoint from which it now goes on."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > steps_done:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


@contextmanager
def progress(run: Run, position: Position) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Show steps, loss and throughput on the main process's terminal, if it has one."""
    columns = (
        TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[loss]:.4f} loss, {task.fields[speed]:.1f} samples/s"),
    )  # fmt: skip
    shown = run.accelerator.is_main_process and CONSOLE.is_terminal
    with Progress(*columns, console=CONSOLE, disable=not shown, transient=True) as bar:
        done = position.steps_done
        task = bar.add_task("", total=run.total_steps, completed=done, loss=math.nan, speed=math.nan)
        yield lambda values: bar.update(task, advance=1, loss=values["train/loss"], speed=values["samples_per_s"])

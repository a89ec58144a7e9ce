"""The training loop on Accelerate: one loop for any number of processes, resumable at any step."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from accelerate import Accelerator

from cogaze.checkpoint import Position, latest_checkpoint, load_checkpoint, save_checkpoint
from cogaze.config import RunConfig
from cogaze.data.collate import Batch
from cogaze.data.plan import Position as DataPosition
from cogaze.export import export
from cogaze.log import note, progress, say, shorten_log, tell_skipped
from cogaze.run import Run, prepare
from cogaze.step import step, windows
from cogaze.validation import Validation, keep_best, validate


class StopRequested(SystemExit):
    """The run saved and stopped because a signal asked it to; the exit code is 128 + the signal's number."""


@dataclass(frozen=True)
class FitReport:
    """Where a run ended, of how many steps, and its last validation."""

    position: Position
    total_steps: int
    validation: Validation

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.position.steps_done >= self.total_steps


def fit(config: RunConfig) -> FitReport:
    """Train from a config, going on from its latest checkpoint if it has one; returns where it ended.

    Raises ValueError before the first step where data, towers, config or checkpoint do not fit together,
    NonFiniteLossError where too many losses are not finite, StopRequested after SIGTERM or SIGINT.
    """
    run = prepare(config)
    position = _start(run)
    with _stop_requested() as asked:
        report = _train(run, position, asked)
    export(run, config.out / "model", report.position, report.validation.values())
    run.accelerator.end_training()
    return report


def _start(run: Run) -> Position:
    """Load the latest checkpoint, if any; write the resolved config beside the checkpoints."""
    accelerator, out = run.accelerator, run.config.out
    latest = latest_checkpoint(out)
    position = Position()
    if latest is not None:
        position = load_checkpoint(accelerator, latest, run.trained, run.identity())
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(run.config.resolved(), indent=2, sort_keys=True) + "\n")
        shorten_log(out / "log.jsonl", position.steps_done)
        processes = accelerator.num_processes
        say(
            f"{processes} process{'es' if processes > 1 else ''} on {accelerator.device.type}, precision "
            f"{accelerator.mixed_precision}, {len(run.train.dataset)} samples, {run.total_steps} steps of "
            f"{run.config.plan.global_batch}, from step {position.steps_done}"
        )
        for remark in (*run.remarks, *run.objective.remarks()):
            say(remark)
    if run.config.fit.tracker != "none":
        accelerator.init_trackers("runs")
    return position


def _train(run: Run, position: Position, asked: list[int]) -> FitReport:
    """Run the remaining steps; validate, save and leave between two of them."""
    config, accelerator = run.config.fit, run.accelerator
    save_every = config.save_every or run.train.steps
    stop = partial(_asked, accelerator, asked)
    report = _validated(run, FitReport(position, run.total_steps, Validation({}, {})), stop)
    if number := stop():
        _leave(accelerator, position, number)
    following = _windows(run, position)
    with progress(run, position) as show:
        while not report.finished:
            started = time.perf_counter()
            position, values = step(run, next(following), report.position)
            if run.config.data.skip_corrupt:
                position = replace(position, corrupt=position.corrupt + tell_skipped(run, run.train))
                values["corrupt_samples"] = position.corrupt
            values["samples_per_s"] = run.config.plan.global_batch / (time.perf_counter() - started)
            note(run, position.steps_done, values)
            show(values)
            last = position.steps_done == run.total_steps
            report = replace(report, position=replace(position, to_validate=last or _due(run, position)))
            report = _validated(run, report, stop)
            number = stop()
            if number or last or position.steps_done % save_every == 0:
                save_checkpoint(accelerator, run.config.out, run.trained, report.position, run.identity(), config.keep)
            if number:
                _leave(accelerator, position, number)
    return report if report.validation.losses else _reported(run, report, stop)


def _due(run: Run, position: Position) -> bool:
    return position.steps_done % (run.config.fit.validate_every or run.train.steps) == 0


def _validated(run: Run, report: FitReport, stop: Callable[[], int]) -> FitReport:
    """Validate where the position asks for it and no signal comes before the end; keep the best."""
    position = report.position
    if run.validation is None or not position.to_validate:
        return replace(report, position=replace(position, to_validate=False))
    validation = None if stop() else validate(run, run.validation, stop)
    if validation is None:
        return report
    position = keep_best(run, position, validation, _due(run, position))
    return replace(report, position=replace(position, to_validate=False), validation=validation)


def _reported(run: Run, report: FitReport, stop: Callable[[], int]) -> FitReport:
    """Validate for the report alone, where the checkpoint was the last step's."""
    if run.validation is None:
        return report
    validation = validate(run, run.validation, stop)
    if validation is None:
        _leave(run.accelerator, report.position, stop())
    return replace(report, validation=validation)


def _windows(run: Run, position: Position) -> Iterator[list[Batch]]:
    """Deliver the micro-batches of each step from a position on, epoch after epoch."""
    following = DataPosition(position.epoch, position.step)
    while True:
        yield from windows(run.train.epoch(following), run.config.fit.accumulation)
        following = DataPosition(following.epoch + 1)


def _leave(accelerator: Accelerator, position: Position, number: int) -> NoReturn:
    if accelerator.is_main_process:
        say(f"{signal.Signals(number).name}: saved at step {position.steps_done} and stopped; the same command goes on")
    accelerator.end_training()
    raise StopRequested(128 + number)


def _asked(accelerator: Accelerator, asked: Sequence[int]) -> int:
    """The number of a signal that any process received, the same in all; 0 for none."""
    number = torch.tensor([asked[0] if asked else 0], device=accelerator.device)
    return int(accelerator.gather(number).max())


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying: the loop saves and leaves at the end of a step."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

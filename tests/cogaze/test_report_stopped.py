"""Report training as users start it, stopped by a signal, killed and gone on with: as if it had never been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import assert_same, log, weights
from writing import write_parts, write_shards

from cogaze.checkpoint import FOLDER

PIPELINE = Path(__file__).parents[2] / "pipelines" / "finetune.py"


@pytest.fixture
def start(tmp_path):
    """Return start(out, option, ...): the command, which ends with the test."""
    write_parts(tmp_path)
    shards = write_shards(tmp_path / "reports")
    options = [
        *(f"--model={tmp_path / 'model'}", f"--decoder.name={tmp_path / 'decoder'}", f"--shards={shards}"),
        *("--target.max_tokens=40", "--plan.global_batch=8", "--optim.schedule=constant", "--optim.lr=1e-3"),
        *("--fit.epochs=4000", "--fit.validate_every=-1", "--fit.precision=no", "--fit.tracker=none"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = []

    def call(out, *more):
        said = tmp_path / f"said-{len(started)}"
        command = [sys.executable, PIPELINE, *options, f"--out={out}", *more]
        with said.open("wb") as file:
            started.append(subprocess.Popen(list(map(str, command)), env=environment, stdout=file, stderr=file))
        return started[-1], said

    yield call
    for one in started:
        one.kill()
        one.wait(60)


def reach(process, said, out, step):
    """Wait until a step is logged."""
    until = time.monotonic() + 120
    while f'"step": {step},' not in (out / "log.jsonl").read_text() if (out / "log.jsonl").exists() else True:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until, said.read_text()
        time.sleep(0.01)


def latest(out):
    return max((int(path.name.split("-")[1]) for path in (out / FOLDER).glob("step-*")), default=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_by_sigterm_and_ctrl_c_and_killed_it_goes_on_bit_for_bit(start, tmp_path):
    out = tmp_path / "run"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        before = latest(out)
        process, said = start(out, f"--fit.save_every={2 if number == signal.SIGKILL else 100000}")
        reach(process, said, out, before + 3)
        process.send_signal(number)
        assert process.wait(60) == code, said.read_text()
        assert f"from step {before}" in said.read_text()
        assert "Traceback" not in said.read_text()
        assert latest(out) >= before + 2
        if number != signal.SIGKILL:
            stopped = f"{number.name}: saved at step {latest(out)} and stopped; the same command goes on"
            assert stopped in said.read_text()
    end = latest(out) + 2
    for folder in (out, tmp_path / "unbroken"):
        process, said = start(folder, f"--fit.max_steps={end}", "--fit.save_every=2")
        assert process.wait(240) == 0, said.read_text()
        assert f"finished at step {end}" in said.read_text()
    whole, broken = (SimpleNamespace(out=folder) for folder in (tmp_path / "unbroken", out))
    assert_same(weights(whole), weights(broken))
    assert log(whole) == log(broken)

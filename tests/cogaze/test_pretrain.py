"""The command: strict options, exit codes, and real processes that are started, stopped and killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from cogaze.checkpoint import FOLDER

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipelines" / "pretrain.py"


@pytest.fixture
def main(monkeypatch):
    """The pipeline's main as main(*arguments)."""
    spec = importlib.util.spec_from_file_location("pretrain", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        AcceleratorState._reset_state(True)
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, arguments)])
        return module.main()

    yield call
    AcceleratorState._reset_state(True)


@pytest.fixture
def options(run_config, tmp_path):
    """Write a small run's config as YAML; its options."""
    config = run_config("run")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.resolved()))
    return ["--config", file, "--shards", config.shards, "--out", config.out]


def test_a_run_from_its_resolved_config(main, options, tmp_path, capsys):
    assert main(*options, "--fit.max_steps", 1, "--fit.tracker", "tensorboard") == 0
    said = capsys.readouterr().err
    assert "finished at step 1" in said
    assert "Writing model" not in said
    assert "Loading" not in said
    assert list((tmp_path / "run" / "runs").iterdir()), "tensorboard wrote nothing"
    # The config beside the checkpoints is one to go on with.
    options[1] = tmp_path / "run" / "config.json"
    assert main(*options, "--fit.max_steps", 2) == 0
    assert json.loads(options[1].read_text())["fit"]["max_steps"] == 2


def test_unknown_keys_are_refused(main, options, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(*options, "--fit.rate", 1)
    assert stop.value.code == 2
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("optim:\n  learning_rate: 1.0\n")
    with pytest.raises(SystemExit) as stop:
        main("--config", wrong, "--shards", "x", "--out", "y")
    assert stop.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


def test_the_config_can_be_printed(main, options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(*options, "--print_config")
    assert not stop.value.code
    assert yaml.safe_load(capsys.readouterr().out)["plan"]["global_batch"] == 8


def test_a_problem_is_one_line_and_exit_code_1(main, options, capsys):
    options[3] = "no/shards"
    assert main(*options) == 1
    said = capsys.readouterr().err
    assert said.startswith("pretrain: ")
    assert "no/shards" in said


ONE = [sys.executable, PIPELINE]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", PIPELINE]


@dataclass(frozen=True)
class Started:
    """A real run of 4000 epochs at most, what it says and where it writes."""

    process: subprocess.Popen[bytes]
    said: Path
    out: Path

    def ended(self):
        """Wait for the end; returns what it said."""
        self.process.wait(60)
        return self.said.read_text()

    def reach(self, step):
        """Wait until a step is logged."""
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            file = self.out / "log.jsonl"
            if file.exists() and f'"step": {step},' in file.read_text():
                return
            time.sleep(0.05)
        pytest.fail(f"no step {step}: {self.said.read_text()}")

    def latest(self):
        return max(int(path.name.split("-")[1]) for path in (self.out / FOLDER).glob("step-*"))


@pytest.fixture
def start(options, tmp_path):
    """Return start(command, option, ...); what it started ends with the test, with all its processes."""
    runs = []
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",  # a host's own name may lead nowhere
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }

    def start(command, *more):
        said = tmp_path / f"said-{len(runs)}"
        call = [str(one) for one in (*command, *options, "--fit.epochs", 4000, "--fit.validate_every", -1, *more)]
        with said.open("wb") as file:
            process = subprocess.Popen(call, env=environment, stderr=file, stdout=file, start_new_session=True)
        runs.append(Started(process, said, options[5]))
        return runs[-1]

    yield start
    for run in runs:
        with suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "code"), [(ONE, 143), (TWO, 1)], ids=["one", "two"])
@pytest.mark.parametrize("to", [os.kill, os.killpg], ids=["the command", "all its processes"])  # as Slurm does
def test_sigterm_saves_and_leaves(start, command, code, to):
    run = start(command, "--fit.save_every", 100000, "--workers.workers", 2)
    run.reach(3)
    to(run.process.pid, signal.SIGTERM)
    said = run.ended()
    assert run.process.returncode == code
    assert f"SIGTERM: saved at step {run.latest()} and stopped" in said
    assert run.latest() >= 3


@pytest.mark.slow
def test_killed_it_goes_on_from_the_last_checkpoint(start):
    run = start(ONE, "--fit.save_every", 2)
    run.reach(9)
    run.process.kill()
    run.ended()
    steps = [json.loads(line)["step"] for line in (run.out / "log.jsonl").read_text().splitlines()]
    saved = run.latest()
    assert saved >= steps[-1] - 2
    again = start(ONE, "--fit.save_every", 2, "--fit.max_steps", saved + 3)
    assert f"from step {saved}" in again.ended()
    assert again.process.returncode == 0
    steps = [json.loads(line)["step"] for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, saved + 4))


@pytest.mark.slow
def test_accelerate_launch_on_cpu_is_refused_for_two_processes(start):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", PIPELINE]
    run = start(launch)
    assert "several processes were asked for, but accelerate launch starts only one" in run.ended()
    assert run.process.returncode != 0

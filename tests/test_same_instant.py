"""Two real processes that begin with one folder at the same instant: one does the work, and nothing is mixed."""

import json
import re
import subprocess
import sys
import time

import pytest
from attacks import finals, halves

from gazeprep.cli import main

PLAYER = """
import contextlib, io, json, sys, time
from gazeprep.cli import main
print("ready", flush=True)
for line in sys.stdin:
    options, at = json.loads(line)
    said = io.StringIO()
    time.sleep(max(at - time.monotonic(), 0))
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(options)
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
ROUNDS = 10
REFUSALS = {
    "build": "another build is writing into this folder; wait for it",
    "finalize": "another build is writing into this folder; wait for it|the build in this folder is finished already",
    "select": r"the output folder is not empty|cannot be used \(Directory not empty\)",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def players():
    """Two processes that run commands at the instant they are told."""
    command = [sys.executable, "-c", PLAYER]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for one in started:
            assert one.stdout.readline() == "ready\n"
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate(timeout=60)


@pytest.fixture
def options(tables, inline):
    for image in ("a", "b", "c", "d"):
        tables.image(image)
        tables.reading(f"of {image}", image)
    tables.source()
    names = ("images", "fixations", "words")
    sources = [f"--sources.table.{name}={tables.root / name}.csv" for name in names]
    return ["build", "--executor=inline", "--shard_samples=1", "--sample.picture.resize.size_px=64", *sources]


def at_once(players, *commands):
    """Run a command in each player; returns the refusals of those that did not go through."""
    instant = time.monotonic() + 0.02
    for player, command in zip(players, commands, strict=True):
        player.stdin.write(json.dumps([command, instant]) + "\n")
        player.stdin.flush()
    answers = [json.loads(player.stdout.readline()) for player in players]
    assert {code for code, _ in answers} <= {0, 1}
    refusals = [said for code, said in answers if code == 1]
    assert len(refusals) < len(players), refusals
    assert not [said for said in refusals if not re.search(REFUSALS[commands[0][0]], said)]
    return refusals


def assert_whole(out, whole):
    assert finals(out) == whole
    assert not halves(out)


def test_two_builds(players, options, tmp_path):
    assert main([*options, f"--out={tmp_path / 'whole'}"]) == 0
    whole, refused = finals(tmp_path / "whole"), []
    for number in range(ROUNDS):
        out = tmp_path / str(number)
        refused += at_once(players, *[[*options, f"--out={out}"]] * 2)
        assert_whole(out, whole)
    assert refused


def test_two_tasks_and_two_that_finalize_them(players, options, tmp_path):
    assert main([*options, f"--out={tmp_path / 'whole'}"]) == 0
    whole, refused = finals(tmp_path / "whole"), []
    for number in range(ROUNDS):
        out = tmp_path / str(number)
        tasks = [[*options, f"--out={out}", "--task-count=2", f"--task-index={index}"] for index in range(2)]
        assert not at_once(players, *tasks)  # two tasks of one build go together
        refused += at_once(players, tasks[0], tasks[0])
        refused += at_once(players, *[["finalize", str(out)]] * 2)
        assert_whole(out, whole)
    assert refused


def test_two_selections(players, options, tmp_path):
    shards = tmp_path / "shards"
    assert main([*options, f"--out={shards}"]) == 0
    command = ["select", str(shards), "--query=has_gaze"]
    assert main([*command, f"--out={tmp_path / 'whole'}"]) == 0
    whole, refused = finals(tmp_path / "whole"), []
    for number in range(ROUNDS):
        refused += at_once(players, *[[*command, f"--out={tmp_path / str(number)}"]] * 2)
        assert_whole(tmp_path / str(number), whole)
    assert len(refused) == ROUNDS

"""Worker processes of lint and synth, killed or left alone: none stays, and a message says what to do."""

import multiprocessing
import os
import signal
import time
from multiprocessing.context import SpawnProcess

import pytest
from attacks import HAVE_PROC, adopting, running, wait_until

from gazeprep import workers

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAVE_PROC, reason="finds processes through /proc")]


@pytest.fixture(params=["lint", "synth"])
def started(request, shards, tmp_path):
    """A command with two workers, which have begun to start."""
    commands = {"lint": ["lint", str(shards)], "synth": ["synth", f"--out={tmp_path / 'corpus'}", "--subjects=60"]}
    with adopting(), running([*commands[request.param], "--workers=2"]) as started:
        wait_until(lambda: len(started.workers()) == 2)
        yield started


def test_workers_leave_with_a_killed_command(started, tmp_path):
    started.process.kill()
    assert started.process.wait(timeout=60) == -signal.SIGKILL
    started.gone_after_s()
    assert not (tmp_path / "corpus").exists()


def test_a_killed_worker_stops_the_command_with_a_message(started, tmp_path):
    started.kill(started.workers()[0])
    ended = started.ended()
    assert ended.code == 1
    assert "a worker process died, often for lack of memory; run the same command again, with fewer" in ended.messages
    assert "Traceback" not in ended.messages
    started.gone_after_s()
    assert not [*tmp_path.iterdir()]


class KilledMeanwhile(SpawnProcess):
    """The first worker is killed, and the pool breaks, while the second is being started."""

    first = None

    def start(self):
        if KilledMeanwhile.first is not None:
            os.kill(KilledMeanwhile.first, signal.SIGKILL)
            time.sleep(1)
        super().start()
        KilledMeanwhile.first = KilledMeanwhile.first or self.pid


def test_a_worker_that_starts_while_another_dies_does_not_stay(monkeypatch):
    monkeypatch.setattr(workers, "SpawnProcess", KilledMeanwhile)
    before = set(multiprocessing.active_children())

    def work():
        with workers.worker_pool(2) as pool:
            for call in [pool.submit(time.sleep, 0.1) for _ in range(4)]:
                call.result()

    with pytest.raises(workers.LostWorkerError):
        work()
    assert set(multiprocessing.active_children()) == before

"""METEOR: its figures from recorded counts, a program that misbehaves, and the real one where Java is."""

import shutil
import sys
import time

import numpy as np
import psutil
import pytest
from test_reports_overlap import pairs, reports_of

from cogaze.evaluate.reports import meteor as module
from cogaze.evaluate.reports.meteor import Meteor, counts_of, meteor, summable
from cogaze.evaluate.results import NotRunError
from cogaze.evaluate.scores import Intervals

# What meteor-1.5.jar counted in five pairs, and its scores of each and of all.
COUNTED = """
4 6 1 3 3 3 1 1 0 0 0 0 0 0 0 0 0 0 0 0 3 4 4
6 7 2 4 1 1 2 2 1 1 0 0 0 0 0 0 0 0 0 0 3 4 4
4 4 2 2 2 2 2 2 0 0 0 0 0 0 0 0 0 0 0 0 1 4 4
0 4 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
2 3 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
"""
SCORED = [0.37055341301116146, 0.22419185961344493, 1.0, 0.0, 0.0]
SCORED_TOGETHER = 0.2547571530785736


def test_scores_are_the_program_s_own_of_each_report_and_of_all():
    counts = summable(np.array([[float(one) for one in line.split()] for line in COUNTED.strip().splitlines()]))
    assert meteor(counts) == pytest.approx(SCORED)
    assert meteor(counts.sum(axis=0)) == pytest.approx(SCORED_TOGETHER)


@pytest.fixture
def program(tmp_path):
    """Return program(lines): a command that runs these lines of Python instead of Java, and an empty jar."""

    def write(*lines: str) -> Meteor:
        command, jar = tmp_path / "java", tmp_path / "meteor-1.5.jar"
        command.write_text("\n".join([f"#!{sys.executable}", "import os, sys, time", *lines]))
        command.chmod(0o755)
        jar.touch()
        return Meteor(str(command), jar, timeout_s=20)

    return write


def ended(process: int) -> bool:
    """Wait until a process is gone, or is nobody's that runs."""
    for _ in range(100):
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_one_program_answers_for_texts_and_baselines_and_is_gone(program, tmp_path):
    started = tmp_path / "started"
    scorer = program(
        f"open({str(started)!r}, 'a').write(f'{{os.getpid()}} ')",
        "for line in sys.stdin: print(*[len(line.split('|||')[2].split())] + [0] * 22, flush=True)",
    )
    reports = reports_of(*pairs())
    assert set(scorer.score(reports, Intervals(0)).figures[0].baselines) == {"shuffled", "commonest"}
    [process] = started.read_text().split()
    assert ended(int(process))


def test_counts_come_in_the_order_of_the_reports(program):
    scorer = program("for line in sys.stdin: print(*[len(line.split('|||')[2].split())] + [0] * 22, flush=True)")
    references, texts = pairs()
    with scorer.program() as running:
        assert list(counts_of(running, reports_of(references, texts))[:, 0]) == [len(one) for one in texts]


def test_a_separator_inside_a_text_is_taken_out(program):
    scorer = program("for line in sys.stdin: print(*[line.count('|||')] + [0] * 22, flush=True)")
    with scorer.program() as running:
        assert counts_of(running, reports_of([("a", "|||")], [("|||b",)]))[0, 0] == 2


WRONG = {
    "ended": (["sys.stdin.readline()", "print('secret', file=sys.stderr)"], "ended at report 1"),
    "ends later": (["print(*[0] * 23, flush=True)"], r"ended at report 2"),
    "no numbers": (
        ["for line in sys.stdin: print(line, end='', flush=True)"],
        "did not answer report 1 with 23 numbers",
    ),
    "too few": (["for line in sys.stdin: print(1, 2, flush=True)"], "did not answer report 1 with 23 numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_program_that_misbehaves_is_told_without_text(case, program, capfd):
    lines, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as raised:
        program(*lines).score(reports_of([("secret",)] * 2, [("secret",)] * 2), Intervals(0))
    assert "secret" not in str(raised.value) + "".join(capfd.readouterr())


def test_a_program_that_hangs_is_killed_with_what_it_started(program, tmp_path):
    started = tmp_path / "started"
    scorer = program(
        "import subprocess",
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])",
        f"open({str(started)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')",
        "print('first', flush=True)",
        "time.sleep(60)",
    )
    with scorer.program() as running:
        assert running.ask("one") == "first\n"
        running.timeout_s = 0.1
        with pytest.raises(ValueError, match=r"said nothing for 0\.1 s at report 2"):
            running.ask("two")
    assert all(ended(int(process)) for process in started.read_text().split())


def test_what_is_missing_is_named_with_its_cure(monkeypatch, tmp_path):
    one = reports_of([("a",)], [("a",)])
    with pytest.raises(NotRunError, match=r"^no java: the command 'no-java' is not found; install"):
        Meteor(java="/nowhere/no-java").score(one, Intervals(0))
    with pytest.raises(NotRunError, match=r"^absent\.jar is not there"):
        Meteor(java=sys.executable, jar=tmp_path / "absent.jar").score(one, Intervals(0))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(NotRunError, match=r"pip install 'gazeprep-cogaze\[java\]'"):
        Meteor(java=sys.executable).score(one, Intervals(0))


@pytest.mark.slow  # two Java programs, which read a table of 60 MB
def test_scores_are_pycocoevalcap_s():
    theirs = pytest.importorskip("pycocoevalcap.meteor.meteor")
    if shutil.which("java") is None:
        pytest.skip("no java")
    references, texts = pairs()
    reports = reports_of(references, texts)
    there, said = ({i: [one] for i, one in enumerate(each)} for each in (reports.references, reports.texts))
    their = theirs.Meteor()
    of_all, of_each = their.compute_score(there, said)
    their.meteor_p.stdout.close()
    their.meteor_p.stderr.close()
    scored = Meteor().score(reports, Intervals(20))
    assert scored.columns["METEOR"] == pytest.approx(of_each, abs=1e-9)
    assert scored.figures[0].value == pytest.approx(of_all, abs=1e-9)
    assert scored.figures[0].low < of_all < scored.figures[0].high

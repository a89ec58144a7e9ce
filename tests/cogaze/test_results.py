"""Results: intervals, what is told of a failure, files after each evaluator."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from processes import in_processes
from scipy.stats import norm

from cogaze.evaluate.processes import batches_of, rows_in_order
from cogaze.evaluate.results import Figure, Found, Interval, NotRunError, Results, bootstrap, mean_interval
from gazeprep.schema import InputError


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap(np.mean, [values], seed=1)
    half = norm.ppf(0.975) * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)
    assert interval == bootstrap(np.mean, [values], seed=1)
    assert interval != bootstrap(np.mean, [values], seed=2)


def test_a_subject_s_images_stay_together():
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 50)
    subject = np.repeat([3, 1, 2, 0], 50)
    by_image, by_subject = bootstrap(np.mean, [values]), bootstrap(np.mean, [values], subject)
    assert by_image.high < 0.6
    assert (by_subject.low, by_subject.high) == (0, 1)
    assert mean_interval(values, subject) == by_subject


def test_the_short_way_for_means_is_the_same_interval():
    rng = np.random.default_rng(0)
    values, groups = rng.random(40), rng.integers(0, 12, 40)
    long, short = bootstrap(np.mean, [values], groups, repeats=50), mean_interval(values, groups, repeats=50)
    assert (short.low, short.high) == pytest.approx((long.low, long.high))


def test_there_is_no_interval_where_the_figure_mostly_does_not_exist():
    rare = np.array([1.0] + [0.0] * 9)
    interval = bootstrap(lambda one: np.nan if one.sum() == 0 else 1.0, [rare], repeats=100)
    assert interval.low is None
    assert interval.why.startswith("exists in")
    assert bootstrap(np.mean, [rare], np.zeros(10)).why == "one group alone"


def test_a_group_for_each_row_or_none():
    with pytest.raises(ValueError, match="2 groups for 3 rows"):
        bootstrap(np.mean, [np.zeros(3)], [1, 2])


def quoting():
    raise ValueError("/home/someone/data/p10/report.txt says: effusion")


def broken():
    return int("a report's text")


def refused():
    raise InputError("image_corrupt", "the image file is damaged")


def test_a_failing_evaluator_loses_no_other_and_tells_nothing(tmp_path):
    results = Results(tmp_path / "out", {"model": "tiny", "nan": float("nan")})
    figure = Figure.of("AUROC", 0.75, Interval(0.5, None, "half"), 12, {"chance": 0.5})
    results.attempt("first", lambda: [figure])
    for name, function in (("quoting", quoting), ("broken", broken), ("refused", refused)):
        results.attempt(name, function)
    results.attempt("last", lambda: Found([Figure.of("P@1", 0.25, Interval(0.125, 0.5), 8)], {"ties": "shared"}))
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert results.failed == ["quoting", "broken", "refused"]
    assert written["settings"] == {"model": "tiny", "nan": None}
    assert written["results"]["first"]["figures"][0]["baselines"] == {"chance": 0.5}
    assert written["results"]["quoting"]["error"] == "ValueError in an evaluator"
    assert written["results"]["broken"]["error"] == "ValueError in an evaluator"
    assert written["results"]["refused"]["error"] == "the image file is damaged"
    table = (tmp_path / "out/results.md").read_text()
    assert "| P@1 | 0.250 | 0.125 to 0.500 | 8 |" in table
    assert "Not made: the image file is damaged" in table
    assert "effusion" not in table + str(written)


def test_what_lacks_something_optional_is_not_run_and_says_its_cure(tmp_path):
    def without_weights():
        raise NotRunError("no weights at /data/secret/chexbert.pth; pass --chexbert.weights")

    results = Results(tmp_path, {})
    assert results.attempt("CheXbert", without_weights).error.startswith("not run: no weights at chexbert.pth")
    assert "\nnot run: no weights" in (tmp_path / "results.md").read_text()


def test_what_our_own_code_says_is_told_without_folders(tmp_path):
    results = Results(tmp_path, {})
    results.attempt("empty", lambda: [Figure.of("mean", bootstrap(np.mean, [np.zeros(2)], [0]).low, None, 0)])
    assert results.outcomes["empty"].error == "1 groups for 2 rows; give one for each row"
    assert not list(tmp_path.glob(".*"))


def fails_in_one(out):
    rank = torch.distributed.get_rank()
    results = Results(out, {})

    def evaluator(broken=-1):
        if rank == broken:
            raise LookupError("before its rows")
        rows = rows_in_order(batches_of(6, 2), lambda own: ({"row": torch.tensor(list(one))} for one in own))
        return [Figure.of("sum", rows["row"].sum(), Interval(None, None), 6)]

    results.attempt("first", evaluator)
    for broken in (0, 1):
        results.attempt(f"broken in {broken}", partial(evaluator, broken))
    results.attempt("last", evaluator)
    told = {name: outcome.error for name, outcome in results.outcomes.items()}
    other, own = "another process could not do its part", "LookupError in an evaluator"
    assert told == {
        "first": "",
        "broken in 0": own if rank == 0 else other,
        "broken in 1": own if rank == 1 else other,
        "last": "",
    }
    assert results.outcomes["last"].figures[0].value == 15


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_all_and_the_next_goes_on(tmp_path):
    in_processes(fails_in_one, tmp_path)
    assert set(json.loads((tmp_path / "results.json").read_text())["results"]["last"]) == {"figures", "notes"}

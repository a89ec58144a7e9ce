"""Three seeds of the soak; `make soak` runs more, docs/reliability.md has their figures."""

import pytest
from attacks import HAVE_PROC, adopting
from recorded import sources_of
from soak import Ground, run_seed, summary


@pytest.fixture(scope="module")
def ground(corpus, tmp_path_factory):
    with adopting():
        yield Ground(tmp_path_factory.mktemp("soak"), sources_of(corpus))


@pytest.mark.skipif(not HAVE_PROC, reason="finds processes through /proc")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_commands_end_as_if_never_broken(ground, seed):
    outcome = run_seed(seed, ground)
    assert outcome.hits
    assert f"1 seeds, {len(outcome.hits)} kills" in summary([outcome])

"""Fixtures that several tests share."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in a build's workers, and so before numpy comes

import pytest
from recorded import SMALL, Tables, sources_of

from gazeprep import executors
from gazeprep.build import BuildConfig, build
from gazeprep.cases import Sources
from gazeprep.synthetic import Corpus, write_corpus

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_sessionfinish() -> None:
    """A process that a failed test left behind must not keep Python from ending."""
    for process in multiprocessing.active_children():
        process.kill()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity numbers and openly licensed files, which is not part of the repository."""
    if not SHARED.exists():
        pytest.skip("the shared folder with parity numbers and real files is not beside the project")
    return SHARED


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Twelve synthetic subjects with every special case: 14 REFLACX readings, 4 EGD-CXR images. Read only."""
    return write_corpus(tmp_path_factory.mktemp("recordings") / "corpus", 12)


@pytest.fixture(scope="session")
def config_of(corpus: Corpus) -> Callable[..., BuildConfig]:
    """Return config_of(out, sources=None, **changes): a build of the corpus with small pictures, 4 inputs a shard."""

    def config(out: Path, sources: Sources | None = None, **changes: Any) -> BuildConfig:
        return BuildConfig(out, sources or sources_of(corpus), **{"sample": SMALL, "shard_samples": 4, **changes})

    return config


@pytest.fixture(scope="session")
def shards(config_of: Callable[..., BuildConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the corpus, built by two workers. Read only."""
    out = tmp_path_factory.mktemp("shards") / "two workers"
    build(config_of(out, workers=2))
    return out


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let builds run their jobs in this process, which spares half a second for each worker."""

    monkeypatch.setitem(executors.EXECUTORS, "local", executors.inline)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """An empty folder for one's own tables."""
    (tmp_path / "tables").mkdir()
    return Tables(tmp_path / "tables")

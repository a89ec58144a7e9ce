"""Fixtures that several tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity numbers and openly licensed files, which is not part of the repository."""
    if not SHARED.exists():
        pytest.skip("the shared folder with parity numbers and real files is not beside the project")
    return SHARED

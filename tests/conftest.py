"""What every test without a mount gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The machines that run these tests are busy and slow: how long an example takes says nothing there.
settings.register_profile("cowfs", deadline=None)
settings.load_profile("cowfs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m quick` takes all of them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Modes come out the same whoever runs the tests."""
    old = os.umask(0o022)
    yield
    os.umask(old)

"""`cowfs` of these tests looks into the store of their own volume alone: names are unique there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from integration.command import Result
from integration.command import cowfs as run_cowfs
from integration.volumes import Volume


@pytest.fixture
def cowfs(volume: Volume) -> Callable[..., Result]:
    """`cowfs(command, *args)` runs `cowfs COMMAND --store ... ARGS...`."""

    def run(command: str, *args: str | os.PathLike[str], **how: Any) -> Result:
        return run_cowfs(command, "--store", volume.mountpoint / ".cowfs", *args, **how)

    return run

"""A node with the driver running, and a model that pods may have."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import kernel
from integration.csi.kubelet import Kubelet
from integration.trees import make_model
from integration.volumes import remove_tree


@pytest.fixture
def stopped(xfs: Path) -> Iterator[Kubelet]:
    """A node whose driver does not run yet; `model` is a source."""
    models = xfs / "models"
    models.mkdir()
    make_model(models / "model")
    # A short path: a socket's has no more than 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="k", dir=kernel.session_dir()))
    node = Kubelet(directory, [models], xfs / "store")
    yield node
    node.clean_up()
    remove_tree(directory)


@pytest.fixture
def node(stopped: Kubelet) -> Kubelet:
    """The same with a driver that has registered."""
    stopped.start()
    return stopped

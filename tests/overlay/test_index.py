"""Under which names an inode number shows."""

from __future__ import annotations

import pytest

from cowfs.overlay import index
from cowfs.overlay.index import InodeIndex


@pytest.mark.parametrize("run", [1, 1 << 13])
def test_the_name_that_was_found_first_is_the_first(
    run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a walk from the directory 9 finds where a damaged mark shows 7 below itself: who goes up
    # from 7 is not to come back to it.
    monkeypatch.setattr(index, "READ", 1)
    monkeypatch.setattr(index, "RUN", run)
    names = InodeIndex([(7, 9, b"directory"), (7, 7, b"damaged")])
    assert list(names.names_of(7)) == [(9, b"directory"), (7, b"damaged")]

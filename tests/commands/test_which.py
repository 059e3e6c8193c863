"""Which copy is meant, and what stays open for it."""

from __future__ import annotations

from typing import Any

from cowfs.commands import which


class FakeStore:
    """Has one copy, and knows whether it was closed."""

    def __init__(self, copy: str) -> None:
        self._copy = copy
        self.is_open = True

    def has(self, name: str) -> bool:
        return name == self._copy

    def close(self) -> None:
        self.is_open = False


def test_other_stores_are_closed_so_that_their_volumes_can_be_unmounted() -> None:
    stores: list[Any] = [FakeStore("one"), FakeStore("two"), FakeStore("three")]
    found = which.alone("two", stores)
    assert found.store is stores[1]
    assert [store.is_open for store in stores] == [False, True, False]

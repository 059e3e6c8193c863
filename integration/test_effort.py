"""Which tests `./test.sh` runs in which mode: integration/effort.py."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from integration.effort import is_its_turn

MODES = ["passthrough", "relayed"]


def item(mode: str | None, *places: int, **more: object) -> pytest.Item:
    """A test with parameters that have these places in their lists, some of them two at a time."""
    names = [f"first{n}, second{n}" if n % 2 else [f"first{n}"] for n in range(len(places))]
    indices = {f"first{n}": place for n, place in enumerate(places)}
    params = dict.fromkeys(indices) | more | ({"mode": mode} if mode else {})
    callspec = SimpleNamespace(params=params, indices={**indices, "mode": 0})
    marks = [SimpleNamespace(args=(name, None)) for name in names]
    found: Any = SimpleNamespace(callspec=callspec, iter_markers=lambda _: marks)
    return cast(pytest.Item, found)


@pytest.mark.quick
def test_half_of_them_and_each_two_parameters_in_one_mode_or_the_other() -> None:
    lists = [range(3), range(2), range(4)]
    run = [
        (mode, *places)
        for mode, *places in itertools.product(MODES, *lists)
        if is_its_turn(item(mode, *places), MODES)
    ]
    assert len(run) == 3 * 2 * 4
    for one, other in itertools.combinations(range(4), 2):
        pairs = {(test[one], test[other]) for test in run}
        assert len(pairs) == len({test[one] for test in run}) * len({test[other] for test in run})


def test_what_has_no_parameters_or_no_mode_is_run() -> None:
    assert all(is_its_turn(item(mode), MODES) for mode in MODES)
    assert is_its_turn(item(None, 1), MODES)
    assert is_its_turn(cast(pytest.Item, SimpleNamespace()), MODES)
    assert all(is_its_turn(item(mode, 1, volume="xfs"), MODES) for mode in MODES)


def test_with_one_mode_alone_it_has_them_all() -> None:
    assert all(is_its_turn(item("relayed", place), ["relayed"]) for place in range(3))

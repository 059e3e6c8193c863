"""Random operations in a copy, and what diff, commit, layers and reset make of their net effect."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from integration.changes.manifest import apply_layer, complaints
from integration.command import Result, run
from integration.effort import EFFORT, SEED
from integration.hand import Hand
from integration.mounts import MountCopy
from integration.randomops import LARGE, Operation, Plan, make_source
from integration.trees import Entry, differences, tree_state

Cowfs = Callable[..., Result]
OPERATIONS = 120
EXAMPLES = 2 * EFFORT


def shown(root: Path, *, times: bool = True) -> dict[str, Entry]:
    """A tree, but for the number of links, which overlayfs counts for no directory, and for a file
    of the template as the template has it."""
    return {
        path: entry._replace(nlink=0, links=entry.links if len(entry.links) > 1 else ())
        for path, entry in tree_state(root, times=times).items()
    }


@pytest.mark.parametrize("way", ["passthrough=on", "engine=overlay"])
@pytest.mark.timeout(300 * EFFORT)
def test_the_net_effect_is_told_committed_and_taken_back(
    cowfs: Cowfs, mount_plain: MountCopy, xfs: Path, way: str
) -> None:
    source = make_source(xfs / "source")
    before = shown(source)
    numbers = itertools.count()

    @seed(f"{SEED} {way}")
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # the seed repeats it; to shrink it would take minutes
    )
    @given(st.integers(0, 1 << 32))
    def example(number: int) -> None:
        name = f"job{next(numbers)}"
        root = mount_plain(source, None, way, f"copy={name}", f"share_min={LARGE}")
        hand = Hand(root)
        plan = Plan(random.Random(number), root, lambda: list(hand.fds))
        history = []
        try:
            for _ in range(OPERATIONS):
                operation = plan.draw()
                history.append(f"{operation}"[:150])
                _do(hand, operation)
            _diff(cowfs, root)  # while files are open, and some of them have no name
        finally:
            hand.close_all()
        told = _unweighed(_diff(cowfs, root))
        after = shown(root)
        try:
            assert not complaints(before, after, told)
            cowfs("commit", root, xfs / f"{name}-mounted")
            assert differences(after, shown(xfs / f"{name}-mounted")) == ""
            mount_plain.unmount(root)
            _at_rest(cowfs, xfs, source, name, after, told)
            _reset(cowfs, xfs, name, source, random.Random(number))
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *history])) from error
        for path in xfs.glob(f"{name}-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    example()


def _do(hand: Hand, operation: Operation) -> None:
    if operation.name in ("map_read", "map_store"):
        slot, offset, *_ = operation.args
        if offset + 100 >= hand.mapped_bytes(slot):
            return  # SIGBUS
    hand.do(operation)


def _unweighed(result: Result) -> list[dict[str, Any]]:
    """The changes, but for private bytes, which a commit shares."""
    return [{**one, "private": 0} for one in json.loads(result.stdout)["changes"]]


def _diff(cowfs: Cowfs, *words: str | Path) -> Result:
    result = cowfs("diff", "--json", "--content", *words, check=False)
    assert result.returncode == int(json.loads(result.stdout)["different"]), result
    return result


def _at_rest(
    cowfs: Cowfs,
    xfs: Path,
    source: Path,
    name: str,
    after: dict[str, Entry],
    told: list[dict[str, Any]],
) -> None:
    """The same of the copy that is not mounted."""
    assert _unweighed(_diff(cowfs, name)) == told
    # Nobody has touched the source.
    live = json.loads(_diff(cowfs, "--source", name).stdout)["changes"]
    assert not complaints(shown(source), after, live)
    cowfs("commit", name, xfs / f"{name}-plain")
    assert differences(after, shown(xfs / f"{name}-plain")) == ""
    cowfs("commit", "--oci", xfs / f"{name}-layer", name)
    run("cp", "-a", source, xfs / f"{name}-applied")
    apply_layer(xfs / f"{name}-layer", xfs / f"{name}-applied")
    assert differences(after, shown(xfs / f"{name}-applied")) == ""
    assert _unweighed(_diff(cowfs, name)) == told


def _reset(cowfs: Cowfs, xfs: Path, name: str, source: Path, chance: random.Random) -> None:
    """Some paths, as far as they can be reset alone, and at last all."""
    changes = json.loads(_diff(cowfs, name).stdout)["changes"]
    paths = sorted({one["old_path"] or one["path"] for one in changes} - {"."})
    for path in chance.sample(paths, min(3, len(paths))):
        result = cowfs("reset", name, path, check=False)
        left = {one["path"] for one in json.loads(_diff(cowfs, name).stdout)["changes"]}
        if result.returncode == 0:
            assert path not in left, f"{path} was reset"
        else:
            assert result.returncode == 1
            assert "reset" in result.stderr or "there is no" in result.stderr, result.stderr
        cowfs("check", name)
    cowfs("reset", name)
    assert cowfs("diff", "--times", name).stdout == ""
    cowfs("check", name)

"""What `cowfs gc` is to remove: a plan, made without changing anything.

A template that no copy is based on costs inodes, and the blocks that its source no longer has. It
spares the next mount of that source the sealing. So it stays while its source is as it was, or as
long after its last use as was asked for; and goes before that, the least recently used one first,
when templates hold too much or the volume has too little left. One that is in use is never in a
plan, and if it comes into use afterwards garbage.py leaves it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from cowfs.store import copies, seal, sources, space, templates
from cowfs.store.space import Weight
from cowfs.system import mountinfo
from cowfs.system.errors import CowfsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowfs.store.directory import StoreDirectory
    from cowfs.store.templates import Template
    from cowfs.trees.links import Policy


class Limits(NamedTuple):
    """What is asked of a collection. keep: seconds after its last use for which a template stays,
    whatever became of its source. max_bytes: what templates without a copy may hold together.
    low_space: percent of the volume that are to be free."""

    keep: float = 0.0
    max_bytes: int | None = None
    low_space: float = 0.0


class Doomed(NamedTuple):
    """A template that is to go. last_used: seconds since the epoch."""

    template: Template
    last_used: float
    weight: Weight


class Plan(NamedTuple):
    """templates: those that go, the least recently used first. ephemeral: names of copies that a
    crash has left. kept: templates without a copy that stay. freed: by all of it, with what is in
    the trash. missing: bytes that the volume lacks still, after that, of what was asked for."""

    templates: list[Doomed]
    ephemeral: list[str]
    kept: int
    freed: Weight
    missing: int


def plan(store: StoreDirectory, ephemeral: list[str], leftovers: list[str], limits: Limits) -> Plan:
    """*ephemeral*: copies that nobody serves; *leftovers*: names in `partial` that nobody makes
    anything of. OSError."""
    scales = space.Scales(store, space.AT_LEISURE)
    unused = sorted(
        (templates.last_used(store, template), template.id, template)
        for template in scales.needed_by_nobody(ephemeral)
    )
    found = [Doomed(template, used, scales.templates([template])) for used, _, template in unused]
    before = time.time() - limits.keep if limits.keep else math.inf  # whatever the clock was
    stale = {one.template.id for one in _stale(store, found, before)}
    going = [one for one in found if one.template.id in stale]
    staying = [one for one in found if one.template.id not in stale]

    def weigh() -> Weight:
        return scales.rubbish([one.template for one in going], ephemeral, leftovers)

    freed = weigh()
    held = sum(one.weight.bytes for one in staying)
    too_much = 0 if limits.max_bytes is None else held - limits.max_bytes
    missing = _missing(store, limits.low_space) - freed.bytes
    for one in list(staying):
        if max(too_much, missing) <= 0:
            break
        if one.weight.exact and not one.weight.bytes:
            continue  # it shares all it has with its source: nothing would be won
        staying.remove(one)
        going.append(one)
        too_much -= one.weight.bytes
        missing -= one.weight.bytes
    if len(going) > len(stale):
        freed = weigh()
    going.sort(key=lambda one: one.last_used)
    return Plan(going, ephemeral, len(staying), freed, max(missing, 0))


def _stale(store: StoreDirectory, found: Iterable[Doomed], before: float) -> list[Doomed]:
    """Those that were not used since, and whose source has another state by now, or is gone."""
    old = [one for one in found if one.last_used <= before]
    present: dict[tuple[str, Policy], str] = {}
    mounts = mountinfo.read()
    for source, links in {(one.template.source, one.template.links) for one in old}:
        with contextlib.suppress(CowfsError, OSError, sources.Hidden):
            os.close(sources.opened(store, source, mounts))
            present[source, links] = seal.fingerprint(store, source, links)
    return [
        one
        for one in old
        if present.get((one.template.source, one.template.links)) != one.template.id
    ]


def _missing(store: StoreDirectory, percent: float) -> int:
    """The bytes that the volume lacks to have so much of it free."""
    volume = os.fstatvfs(store.fd)
    return int(volume.f_blocks * percent / 100 - volume.f_bavail) * volume.f_frsize


def ephemeral(store: StoreDirectory) -> list[str]:
    """The names of ephemeral copies that nobody serves: their daemons were killed. OSError."""
    found = []
    for name in copies.names(store):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, CowfsError):
            if not copies.read(store, name).persistent and not copies.is_locked(store, name):
                found.append(name)
    return found

"""`cowfs list`: the copies, what state they are in, and what removing one would free.

Who may not look into the stores sees what everybody may see: what is mounted, from the mount table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cowfs.commands import columns, report
from cowfs.commands.columns import Column
from cowfs.store import glance, remedies, runtime, space
from cowfs.system import mountinfo

if TYPE_CHECKING:
    from cowfs.store.runtime import Record
    from cowfs.store.space import Scales, Weight
    from cowfs.store.store import CopyInfo, Store
    from cowfs.system.mountinfo import Mount

Row = dict[str, Any]

_ID = 8  # digits of a template's id that people are shown

_COLUMNS = (
    Column("NAME", columns.in_the_middle),
    Column("STATE"),
    Column("USED"),
    Column("FREES"),
    Column("TEMPLATE"),
    Column("SOURCE", columns.at_the_left),
    Column("MOUNTED AT", columns.at_the_left),
)


def rows(stores: Sequence[Store], *, walk: bool, everywhere: bool) -> list[Row]:
    """Every copy as `cowfs list --json` shows it, by name.

    walk: walk sources and templates of any size. everywhere: with what is mounted and in none of
    the stores.
    """
    mounts = mountinfo.read()
    records = runtime.all()
    found = []
    for store in stores:
        scales = space.Scales(store, None if walk else space.AT_A_GLANCE)
        mine = {record.copy: record for record in records if store.is_at(record.store)}
        found += [
            _row(store, copy, mine.get(copy.name), mounts, scales, walk=walk)
            for copy in store.copies()
        ]
    if everywhere:
        found += _others(mounts, {record.device for record in records})
    return sorted(found, key=lambda row: (row["name"] or "", row["store"] or "", row["source"]))


def show(found: Sequence[Row]) -> None:
    """Print them for people."""
    now = time.time()
    columns.table(_COLUMNS, [_cells(row, now) for row in found])


def show_templates(stores: Iterable[Store], *, walk: bool) -> None:
    """On a terminal, below the copies: what templates without a copy hold."""
    if not sys.stdout.isatty():
        return
    for store in stores:
        scales = space.Scales(store, None if walk else space.AT_A_GLANCE)
        if unneeded := scales.needed_by_nobody():
            weight = scales.templates(unneeded)
            noun = report.count(len(unneeded), "template")
            report.tell(
                f"{store.path}: {noun} that no copy needs, {said(weight)} of its own: "
                f"{remedies.of_store('cowfs gc', store.path)} removes those whose source has "
                "changed"
            )


def said(weight: Weight) -> str:
    """Bytes for people, in a sentence."""
    return ("" if weight.exact else "at least ") + report.human_size(weight.bytes)


def _row(
    store: Store,
    copy: CopyInfo,
    record: Record | None,
    mounts: list[Mount],
    scales: Scales,
    *,
    walk: bool,
) -> Row:
    weight = scales.copy(copy.name, scales.template_of(copy.name))
    mount = _mount_of(record, mounts)
    source = glance.state(store, copy.source, copy.template, mounts, walk=walk)
    read_only = None
    if record is not None:
        read_only = mount.read_only if mount else "ro" in record.options.split(",")
    return {
        "name": copy.name,
        "state": _state(copy, read_only, source),
        "source": copy.source,
        "source_state": source or None,
        "copied_from": copy.copied_from,
        "template": copy.template,
        "mountpoint": (mount or record).mountpoint if record is not None else None,
        "read_only": read_only,
        "engine": None if record is None else record.engine,
        "version": None if record is None else record.version,
        "persistent": copy.persistent,
        "private_bytes": weight.private,
        "frees": weight.bytes,
        "frees_exact": weight.exact,
        "created": copy.created,
        "last_mounted": copy.last_mounted,
        "daemon_pid": None if record is None else runtime.living(record.daemon_pid),
        "keeper_pid": None if record is None else runtime.living(record.keeper_pid),
        "options": None if record is None else record.options,
        "store": store.path,
    }


def _others(mounts: Iterable[Mount], known: set[str]) -> list[Row]:
    """What is mounted, and of which there is no record that we may read.

    For an ordinary user that is everything, else what lost its keeper and its daemon.
    """
    found: dict[str, Row] = {}
    for mount in mounts:
        if mount.is_cowfs and mount.device not in known and mount.device not in found:
            found[mount.device] = {
                **dict.fromkeys(_UNKNOWN),
                "state": "ro" if mount.read_only else "rw",
                "source": mount.source,
                "template": mount.template or None,
                "mountpoint": mount.mountpoint,
                "read_only": mount.read_only,
                "engine": "overlay" if mount.template else "fuse",
            }
    return list(found.values())


# What only the store or the record of a mount tells.
_UNKNOWN = (
    *(
        "name",
        "source_state",
        "copied_from",
        "version",
        "persistent",
        "private_bytes",
        "frees",
        "frees_exact",
    ),
    *("created", "last_mounted", "daemon_pid", "keeper_pid", "options", "store"),
)


def _mount_of(record: Record | None, mounts: Iterable[Mount]) -> Mount | None:
    """Its line in our mount table, the one at its mountpoint if there are several."""
    found = None
    for mount in mounts:
        if record is not None and mount.is_cowfs and mount.device == record.device:
            if mount.mountpoint == record.mountpoint:
                return mount
            found = found or mount
    return found


def _state(copy: CopyInfo, read_only: bool | None, source: glance.State) -> str:
    words = []
    if read_only is not None:
        words.append("ro" if read_only else "rw")
    elif copy.mounted:
        words.append("in use")
    if not copy.persistent:
        words.append("ephemeral")
    if source:
        words.append(f"source {source}")
    return ", ".join(words) or "not mounted"


def _cells(row: Row, now: float) -> tuple[str, ...]:
    used = "now" if row["mountpoint"] else _ago(row["last_mounted"], now)
    return (
        row["name"] or "-",
        row["state"],
        used,
        _frees(row),
        row["template"][:_ID] if row["template"] else "-",
        row["source"] + (f" (copy:{row['copied_from']})" if row["copied_from"] else ""),
        row["mountpoint"] or "-",
    )


def _ago(when: float | None, now: float) -> str:
    return "-" if when is None else report.age(now - when)


def _frees(row: Row) -> str:
    if row["frees"] is None:
        return "-"
    return ("" if row["frees_exact"] else ">") + report.compact_size(row["frees"])

"""Prints results: tables by rich on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BUSY = 0.3  # load of a core from which on a run says that it was disturbed
BUSY_MEANS = (
    "FUSE daemons profit from a busy machine, where a request wakes no sleeping core, and all "
    "others suffer; do not compare these numbers with those of another run."
)


def show(result: Mapping[str, Any]) -> None:
    """Print everything that was measured, then the targets."""
    print(_head(result))
    for workload in result["workloads"]:
        _show_workload(workload)
    if result["targets"]:
        title = "Targets" + (" (of the full sizes: these are not)" if result["quick"] else "")
        table(title, TARGET_HEAD, [target_row(target) for target in result["targets"]])
    errors = [
        (workload["name"], peer or "-", text)
        for workload in result["workloads"]
        for peer, text in workload["errors"].items()
    ]
    if errors:
        table("Could not be measured", ("workload", "peer", "why"), errors)


def _head(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    busy = machine["load_at_start"] > BUSY * machine["cores"]
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores, {size(machine['memory_bytes'])} memory, "
            f"Linux {machine['kernel']}, {machine['distribution']}",
            f"{result['date']}, {result['rounds']} rounds; medians, (lowest .. highest), "
            "and how many times as fast (or small) as the first line"
            + (" [quick run: the numbers mean nothing]" if result["quick"] else ""),
        ]
        + (
            [f"The machine was busy (load {machine['load_at_start']:.1f}): {BUSY_MEANS}"]
            if busy
            else []
        )
    )


def _show_workload(workload: Mapping[str, Any]) -> None:
    header = ["peer"]
    for metric in workload["metrics"]:
        header += [metric["title"], "", "x"]
    rows = []
    for name, metrics in workload["peers"].items():
        row = [name]
        for metric in workload["metrics"]:
            found = metrics.get(metric["key"])
            if found is None:
                row += ["-", "", ""]
                continue
            ratio = "" if found["ratio"] is None else f"{found['ratio']:.3g}"
            low, high = (quantity(found[end], metric["unit"]) for end in ("min", "max"))
            row += [quantity(found["median"], metric["unit"]), f"({low} .. {high})", ratio]
        rows.append(row)
    rows += [[name, f"missing: {reason}"] for name, reason in workload["missing"].items()]
    sizes = ", ".join(
        f"{key} {size(value) if 'bytes' in key else value}"
        for key, value in workload["parameters"].items()
    )
    table(f"{workload['name']}: {workload['title']}  [{sizes}]", header, rows)
    drops = workload["foreign_cache_drops"]
    if drops:
        print(f"  disturbed: somebody dropped the machine's caches {drops} times meanwhile")


TARGET_HEAD = (
    *("what", "against", "target", "measured", "single rounds"),
    *("later passes", "measured", "single rounds", ""),
)


def target_row(target: Mapping[str, Any]) -> tuple[str, ...]:
    """One target as the cells of a table."""
    unit = target["unit"]

    def shown(value: float | None) -> str:
        if value is None:
            return "not measured"
        return quantity(value, unit) if unit else f"{value:.3f}"

    limits = []
    if target["at_least"] is not None:
        limits.append(f">= {shown(target['at_least'])}")
    if target["at_most"] is not None:
        limits.append(f"<= {shown(target['at_most'])}")
    later = target["later"]
    met = {True: "met", False: "MISSED", None: "-"}[target["met"]]
    return (
        target["what"],
        target["against"],
        " and ".join(limits),
        shown(target["value"]),
        _spread(target["spread"], shown),
        f">= {shown(later['at_least'])}" if later else "",
        shown(later["value"]) if later else "",
        _spread(later["spread"], shown) if later else "",
        met,
    )


def _spread(found: Sequence[float] | None, shown: Callable[[float], str]) -> str:
    return f"({shown(found[0])} .. {shown(found[1])})" if found else ""


def quantity(value: float, unit: str) -> str:
    """A number with its unit, short enough for a table."""
    if unit == "s":
        if value < 1e-3:
            return f"{value * 1e6:.0f} us"
        return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "B":
        return f"{value / 1e6:.1f} MB"
    if unit == "requests":
        return f"{value:.3g}"
    return f"{value:,.0f} {unit}"


def size(value: float) -> str:
    """Bytes in binary units, for the sizes of data."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table."""
    if sys.stdout.isatty():
        _rich_table(title, header, rows)
    else:
        _plain_table(title, header, rows)


def _plain_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    full = [row for row in (header, *rows) if len(row) == len(header)]
    widths = [max(len(row[index]) for row in full) for index in range(len(header))]
    print(f"\n{title}")
    for row in (header, ["-" * width for width in widths], *rows):
        if len(row) == len(header):
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        else:
            cells = [row[0].ljust(widths[0]), *row[1:]]
        print(("  " + "  ".join(cells)).rstrip())


def _rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=escape(title), title_justify="left")
    for name in header:
        drawn.add_column(escape(name))
    for row in rows:
        cells = [escape(cell) for cell in row]
        if cells[-1] in ("met", "MISSED"):
            cells[-1] = f"[{'green' if cells[-1] == 'met' else 'red'}]{cells[-1]}[/]"
        drawn.add_row(*cells)
    Console().print(drawn)

"""The verdicts on several kernels side by side, a line for each group: as in docs/kernels.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from integration.kernels.differences import Verdict

#: A group that was not run.
_NOTHING = "**-**"


def table(verdicts: Mapping[str, Iterable[Verdict]], seconds: Mapping[str, float]) -> str:
    """Markdown. *verdicts* and *seconds*, those of the whole machine, by the kernel's name."""
    cells: dict[str, dict[str, str]] = {}
    for kernel, found in verdicts.items():
        groups: dict[str, list[Verdict]] = {}
        for verdict in found:
            groups.setdefault(group_of(verdict.check), []).append(verdict)
        for group, members in groups.items():
            cells.setdefault(group, {})[kernel] = _cell(members)
    cells["the machine"] = {kernel: f"{took:.0f}" for kernel, took in seconds.items()}
    lines = [("", *verdicts), ("---",) * (1 + len(verdicts))]
    for group, row in cells.items():
        lines.append((group, *(row.get(kernel, _NOTHING) for kernel in verdicts)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def group_of(check: str) -> str:
    """The group of a check, with the way of serving: "keep, overlay"; "compare, overlay"."""
    group, _, rest = check.partition(": ")
    way, colon, _ = rest.partition(": ")
    return f"{group}, {way}" if group == "compare" and colon else group


def _cell(verdicts: list[Verdict]) -> str:
    """How it went, and the seconds."""
    faults = sum(verdict.is_fault for verdict in verdicts)
    known = sum(verdict.known is not None for verdict in verdicts)
    words = [f"{faults} of {len(verdicts)} fail" if faults else "ok"]
    if known:
        words.append(f"{known} differ as known")
    return ", ".join((*words, f"{sum(verdict.seconds for verdict in verdicts):.0f}"))

"""The C files of the channel are in an order: each one calls only what stands below it.

Read from the sources. A file with its header is one room; what it calls of another room it knows by
that room's header, because each header declares what its own file defines.
"""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

import pytest

CHANNEL = Path(__file__).parent.parent.parent / "cowfs" / "channel"
SOURCES = sorted(CHANNEL.glob("*.c"))

INCLUDE = re.compile(r'^#include "(\w+)\.h"', re.MULTILINE)
#: The name of a function that is defined, and not static.
DEFINITION = re.compile(r"^(?!static\b)\w[\w \t\n*]*?[ *](\w+)\([^;{]*\)\n\{", re.MULTILINE)


def test_the_files_call_each_other_in_one_direction() -> None:
    uses: dict[str, set[str]] = {}
    for path in CHANNEL.glob("*.[ch]"):
        uses.setdefault(path.stem, set()).update(INCLUDE.findall(path.read_text()))
    for stem, used in uses.items():
        used.discard(stem)
    graphlib.TopologicalSorter(uses).prepare()  # CycleError names the files


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_file_defines_only_what_its_own_header_declares(source: Path) -> None:
    defined = [
        name for name in DEFINITION.findall(source.read_text()) if not name.startswith("PyInit_")
    ]
    header = source.with_suffix(".h")
    declared = header.read_text() if header.exists() else ""
    assert [name for name in defined if f"{name}(" not in declared] == []

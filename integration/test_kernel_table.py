"""What is made of the verdicts of `python -m integration.kernels`."""

from __future__ import annotations

from integration.kernels.differences import Difference, Verdict
from integration.kernels.table import table

_KNOWN = Difference("*", "Operation not supported", "no O_TMPFILE")


def test_a_table_has_a_line_for_each_group_and_a_column_for_each_kernel() -> None:
    told = table(
        {
            "6.1": [
                Verdict("doctor", 9.0, None),
                Verdict("keep, overlay", 20.0, None),
                Verdict("compare: preparation", 3.0, None),
                Verdict("compare: overlay: mount", 10.0, None),
                Verdict("compare: overlay: opening-o_tmpfile", 1.5, "no", _KNOWN),
                Verdict("update, relayed", 30.0, None),
                Verdict("update, relayed: nothing is left", 0.0, "/copies/update-relayed"),
            ],
            "6.12": [Verdict("doctor", 13.2, "no reflink")],
        },
        {"6.1": 100.0, "6.12": 50.4},
    )
    assert told.splitlines() == [
        "|  | 6.1 | 6.12 |",
        "| --- | --- | --- |",
        "| doctor | ok, 9 | 1 of 1 fail, 13 |",
        "| keep, overlay | ok, 20 | **-** |",
        "| compare | ok, 3 | **-** |",
        "| compare, overlay | ok, 1 differ as known, 12 | **-** |",
        "| update, relayed | 1 of 2 fail, 30 | **-** |",
        "| the machine | 100 | 50 |",
    ]

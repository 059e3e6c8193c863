"""What keeper and daemon write into their log, and into the journal."""

from __future__ import annotations

import logging
import os
import re
import sys

import pytest

from cowfs.mount import daemon, logline


def test_a_journal_gets_the_level_of_every_line_and_no_time() -> None:
    formatter = daemon._JournalFormatter("%(message)s")
    try:
        raise ValueError("bad")
    except ValueError:
        failed = logging.LogRecord("cowfs", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    lines = formatter.format(failed).splitlines()
    assert (lines[0], lines[-1]) == ("<3>it failed", "<3>ValueError: bad")
    assert all(line.startswith("<3>") for line in lines)
    for level, prefix in ((logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4)):
        record = logging.LogRecord("cowfs", level, "", 0, "%s ends", ("it",), None)
        assert formatter.format(record) == f"<{prefix}>it ends"


def test_the_keeper_tells_a_journal_neither_time_nor_name(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    st = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{st.st_dev}:{st.st_ino}")
    logline.log("it ends")
    assert capfd.readouterr().err == "<5>it ends\n"


def test_the_keeper_tells_a_file_both(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    logline.log("it ends")
    line = capfd.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d cowfs-keeper\[\d+\] it ends\n", line)

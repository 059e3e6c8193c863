"""What `cowfs upgrade` makes of a keeper's answer, which may be of an older version."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from cowfs.mount import upgrade
from cowfs.store.runtime import Record
from cowfs.system.errors import MountFailure

RECORD = Record(
    device="0:99",
    mountpoint="/mnt/a",
    source="/data/a",
    store="/data/.cowfs",
    copy="mnt-a",
    template="f00",
    daemon_pid=4_000_000,
    keeper_pid=4_000_001,
    version="1.2.3",
    started=1.5,
    options="ro",
    persistent=True,
)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("ok SELF", "/mnt/a is not upgraded: another daemon than the new one serves it"),
        ("ok 4000000", "/mnt/a is not upgraded: another daemon than the new one serves it"),
        (
            "refused /opt/\udcff",
            "/mnt/a is not upgraded: /opt/\udcff; cowfs 1.2.3 serves it as before",
        ),
        ("ended", "the mount /mnt/a ended, or its keeper did"),
        ("", "the mount /mnt/a ended, or its keeper did"),
    ],
    ids=["ok of us", "ok of nobody", "refused", "ended", "no answer"],
)
def test_nothing_but_the_new_daemon_is_a_success(
    monkeypatch: pytest.MonkeyPatch, answer: str, says: str
) -> None:
    answer = answer.replace("SELF", str(os.getpid()))
    monkeypatch.setattr(upgrade, "_ask", lambda _record: answer)
    with pytest.raises(MountFailure, match=says):
        upgrade.upgrade(replace(RECORD))

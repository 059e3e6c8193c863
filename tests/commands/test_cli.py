"""The command line without a mount: calls, exit codes, and what is printed where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cowfs import __version__
from cowfs.commands import cli
from cowfs.mount import launch
from cowfs.mount.options import parse
from cowfs.store import copies, glance, runtime, space
from cowfs.store.names import default_names
from cowfs.store.space import Weight
from cowfs.store.store import Removed
from cowfs.system import mountinfo
from cowfs.system.errors import InternalError, Interrupted, MountFailure, SystemFailure, UsageError


class FakeStore:
    """A store that is only a list of copies."""

    def __init__(self, path: str, *names: str) -> None:
        self.path = path
        self.names = list(names)
        self.collected = False

    def has(self, name: str) -> bool:
        return name in self.names

    def copy_of(self, mountpoint: str) -> str | None:
        name = default_names(mountpoint)[0]
        return name if name in self.names else None

    def copies(self) -> list[Any]:
        return [
            SimpleNamespace(
                name=name,
                source="/data/model",
                template="abcdef0123456789",
                persistent=name != "job",
                created=time.time() - 7200,
                copied_from=None,
                mounted=False,
                last_mounted=time.time() - 3700,
            )
            for name in self.names
        ]

    def remove(self, name: str) -> Removed:
        self.names.remove(name)
        return Removed((2, 0), Weight(4096), template=False, others=1)

    def is_at(self, path: str) -> bool:
        return path == self.path


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[FakeStore]:
    """What the commands find on the machine."""
    found: list[FakeStore] = []

    def choose(path: str | None) -> list[FakeStore]:
        return [store for store in found if path in (None, store.path)]

    monkeypatch.setattr(cli, "_stores", choose)
    monkeypatch.setattr(runtime, "all", list)
    monkeypatch.setattr(mountinfo, "read", list)
    weighed = Weight(1258291, private=1258291)
    scales = SimpleNamespace(template_of=lambda _: None, copy=lambda *_: weighed)
    monkeypatch.setattr(space, "Scales", lambda *_: scales)
    monkeypatch.setattr(glance, "state", lambda *_, **__: "")
    monkeypatch.setattr(copies, "names", lambda store: store.names)
    return found


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cowfs {__version__}\n"


def test_the_bare_command_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    bare = capsys.readouterr()
    assert cli.main(["--help"]) == 0
    assert bare == capsys.readouterr()
    assert "umount" in bare.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["umuont"], "no such command 'umuont': did you mean mount or umount? See cowfs --help"),
        (["zzz"], "no such command 'zzz': see cowfs --help"),
        (
            ["rm", "--stroe=/x", "a"],
            "no such option '--stroe': did you mean --store? See cowfs rm --help",
        ),
        (
            ["mount", "-o", "copi=a", "/a", "/b"],
            "unknown option 'copi=a': did you mean copy=NAME? See cowfs(5), or cowfs mount --help",
        ),
        (
            ["mount", "-o", "ro,zzz", "/a", "/b"],
            "unknown option 'zzz': see cowfs(5), or cowfs mount --help",
        ),
    ],
)
def test_a_wrong_word_suggests_the_right_one(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"cowfs: {line}\n"


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for line in ("0  success", "1  incorrect invocation", "32  the mount, unmount"):
        assert line in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["moun"], "moun"),
        (["mount"], "SOURCE"),
        (["mount", "/a"], "MOUNTPOINT"),
        (["mount", "-o"], "-o"),
        (["mount", "--bogus", "/a", "/b"], "--bogus"),
        (["mount", "/a", "/b", "/c"], "/c"),
        (["umount"], "MOUNTPOINT"),
        (["rm"], "NAME"),
    ],
)
def test_a_wrong_call_is_one_line_with_a_hint_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("cowfs: ")
    assert says in line
    assert "--help" in line


def test_mount_hands_on_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def mount(*args: Any, **kwargs: Any) -> int:
        calls.append((args, kwargs))
        return 0

    monkeypatch.setattr(launch, "mount", mount)
    assert cli.main(["mount", "-o", "ro,copy=x", "-o", "noexec", "/a\udcff", "/b"]) == 0
    [(args, kwargs)] = calls
    assert args == ("/a\udcff", "/b", parse(["ro,copy=x", "noexec"]))
    assert kwargs["foreground"] is False


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 1),
        (SystemFailure("wrong"), 2),
        (InternalError("wrong"), 4),
        (Interrupted("wrong"), 8),
        (MountFailure("wrong"), 32),
        (KeyboardInterrupt(), 8),
        (MemoryError(), 2),
        (ZeroDivisionError("what"), 4),
        (OSError(5, "Input/output error", "/x"), 4),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code_of_mount(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(launch, "mount", fail)
    assert cli.main(["mount", "/a", "/b"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    # click ends the line that a terminal's ^C has begun
    assert len(captured.err.strip().splitlines()) == 1


def test_an_error_about_an_evil_name_does_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: str, *_: object, **__: object) -> int:
        raise MountFailure(f"source {source} does not exist")

    monkeypatch.setattr(launch, "mount", fail)
    assert cli.main(["mount", "/\x1b[2J\n\udcff", "/b"]) == 32
    assert capsys.readouterr().err == "cowfs: source /\\x1b[2J\\x0a\\xff does not exist\n"


def test_list_shows_copies_and_where_they_are_mounted(
    stores: list[FakeStore], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stores += [FakeStore("/b/.cowfs", "two"), FakeStore("/a/.cowfs", "job", "one")]
    record = SimpleNamespace(
        device="0:99",
        store="/a/.cowfs",
        copy="one",
        mountpoint="/mnt/\x1b[1m",
        daemon_pid=12,
        keeper_pid=None,
        options="ro",
        engine="overlay",
        version="1.2.3",
    )
    monkeypatch.setattr(runtime, "all", lambda: [record])
    monkeypatch.setattr(runtime, "place", lambda _: SimpleNamespace(mount=record))
    monkeypatch.setattr(runtime, "living", lambda pid: pid)
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "STATE", "USED", "FREES", "TEMPLATE", "SOURCE", "MOUNTED", "AT"],
        ["job", "ephemeral", "1h", "1.2M", "abcdef01", "/data/model", "-"],
        ["one", "ro", "now", "1.2M", "abcdef01", "/data/model", "/mnt/\\x1b[1m"],
        ["two", "not", "mounted", "1h", "1.2M", "abcdef01", "/data/model", "-"],
    ]
    assert cli.main(["list", "--json", "--store", "/a/.cowfs"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["job", "one"]
    assert rows[1]["mountpoint"] == "/mnt/\x1b[1m"
    assert (rows[1]["daemon_pid"], rows[1]["keeper_pid"]) == (12, None)
    assert (rows[1]["options"], rows[0]["options"]) == ("ro", None)
    assert (rows[1]["version"], rows[0]["version"]) == ("1.2.3", None)
    assert rows[0]["mountpoint"] is None
    assert rows[0]["daemon_pid"] is None
    assert rows[0]["template"] == "abcdef0123456789"
    wanted = {"source", "persistent", "private_bytes", "created", "last_mounted", "frees", "state"}
    assert wanted <= set(rows[0])
    assert cli.main(["list", "--mounted"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["NAME", "one"]


def test_list_of_nothing_is_an_empty_list(
    stores: list[FakeStore], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["list"]) == 0


def test_rm_removes_each_name_once(
    stores: list[FakeStore], capsys: pytest.CaptureFixture[str]
) -> None:
    stores.append(FakeStore("/a/.cowfs", "one", "two", "three"))
    assert cli.main(["rm", "one", "three", "one"]) == 0
    assert stores[0].names == ["two"]
    assert capsys.readouterr().out == "".join(
        f"discarded copy {name} (2 files): frees 4.0 KiB; its template stays, 1 other copy needs "
        "it\n"
        for name in ("one", "three")
    )


def test_rm_of_an_unknown_name_goes_on_with_the_others(
    stores: list[FakeStore], capsys: pytest.CaptureFixture[str]
) -> None:
    stores.append(FakeStore("/a/.cowfs", "one"))
    assert cli.main(["rm", "none", "one"]) == 1
    assert "no copy none: cowfs list shows" in capsys.readouterr().err
    assert stores[0].names == []


def test_rm_of_a_name_that_two_stores_have_asks_which(
    stores: list[FakeStore], capsys: pytest.CaptureFixture[str]
) -> None:
    stores += [FakeStore("/a/.cowfs", "one"), FakeStore("/b/.cowfs", "one")]
    assert cli.main(["rm", "one"]) == 1
    err = capsys.readouterr().err
    assert "say which with --store /a/.cowfs or --store /b/.cowfs" in err
    assert cli.main(["rm", "--store", "/b/.cowfs", "one"]) == 0
    assert [store.names for store in stores] == [["one"], []]


def test_rm_takes_the_mountpoint_that_a_copy_is_named_after(stores: list[FakeStore]) -> None:
    stores.append(FakeStore("/a/.cowfs", "none-of-these", "two"))
    assert cli.main(["rm", "/none/of/../of/these/"]) == 0
    assert stores[0].names == ["two"]


@pytest.mark.parametrize("word", ["/none/such", "./such", ".", ".."])
def test_rm_of_another_mountpoint_says_so(
    stores: list[FakeStore],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    stores.append(FakeStore("/a/.cowfs", "such"))
    assert cli.main(["rm", word]) == 1
    assert f"no copy for the mountpoint {word}:" in capsys.readouterr().err
    assert stores[0].names == ["such"]


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    code = "import sys; from cowfs.commands.cli import main; sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    process.wait()


def test_names_are_printed_in_any_locale() -> None:
    code = (
        "import sys; from cowfs.commands import cli\n"
        "sys.exit(cli.main(['mount', '/none/\\u6a21', '/']))"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2, 32)


def test_a_mount_imports_nothing_that_it_does_not_need() -> None:
    """Start-up is most of the time that a mount takes."""
    code = (
        "import sys; from cowfs.commands import cli; from cowfs.mount import launch, options\n"
        "heavy = {'rich', 'trio', 'pyfuse3', 'subprocess', 'asyncio', 'logging'}\n"
        "heavy |= {'cowfs.commands.doctor', 'cowfs.mount.unmount'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr

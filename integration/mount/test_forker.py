"""Mounts are forked of one process that has imported everything; who cannot be served by it is
served as before.

Each test has an installation of its own, and with it a forker that no other test asks or ends.
COWFS_FORKER=on in the environment of the whole suite has all other tests drive forked mounts, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration import kernel
from integration.command import run
from integration.conftest import MODES
from integration.mount.test_inherited import CALLER, VARIABLES, inherited
from integration.mounts import RECORDS, MountCopy
from integration.otherversion import OtherVersion


class Installation(OtherVersion):
    """A copy of the package with the forkers of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "99.3")
        # What its forkers are called in /run/cowfs.
        self.names: set[str] = set()
        # What has changed within the last second is not forked.
        time.sleep(1.1)

    def forkers(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_text().split("\0")
                if words[0] == str(self.python) and "cowfs.forker" in words:
                    found.append(int(entry.name))
                    self.names.add(words[words.index("cowfs.forker") + 1])
        return found

    def forker(self) -> int:
        [pid] = self.forkers()
        return pid

    def mount(self, source: Path, mountpoint: Path, **variables: str) -> None:
        """As a user does, from /, where no package of the tests' is imported."""
        run(*self.command("mount", source, mountpoint), cwd="/", env=variables)

    def end(self) -> None:
        for pid in self.forkers():
            os.kill(pid, signal.SIGKILL)
            assert kernel.wait_for_end(pid, 10)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    monkeypatch.setenv("COWFS_FORKER", "on")
    installation = Installation(tmp_path / "installation")
    yield installation
    installation.end()
    for name in installation.names:
        for suffix in ("sock", "lock"):
            (RECORDS / f"forker-{name}.{suffix}").unlink(missing_ok=True)


def layout(pid: int) -> bytes:
    """Where the kernel has put a program when it was started, which no other one shares:
    getauxval(3)."""
    return Path(f"/proc/{pid}/auxv").read_bytes()


def are_forked(mounts: MountCopy, root: Path, forker: int) -> list[bool]:
    """Whether keeper and daemon are what was once started as this forker."""
    record = mounts.record(root)
    return [layout(record[name]) == layout(forker) for name in ("keeper_pid", "daemon_pid")]


def words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until_asked(launcher: int) -> None:
    """Until a launcher has the copy's lock, and two sockets: to a forker, and to its keeper."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            fds = [os.readlink(fd) for fd in Path(f"/proc/{launcher}/fd").iterdir()]
            sockets = [fd for fd in fds if fd.startswith("socket:")]
            if len(sockets) == 2 and any(fd.endswith("/lock") for fd in fds):
                return
        time.sleep(0.01)
    raise AssertionError(f"the launcher {launcher} has not asked")


@pytest.mark.quick
def test_keeper_and_daemon_are_forked_and_look_like_started_ones(
    mount_plain: MountCopy, model: Path, installed: Installation
) -> None:
    started, forked = mount_plain.mountpoint(), mount_plain.mountpoint()
    installed.mount(model, started, COWFS_FORKER="off")
    assert installed.forkers() == []
    installed.mount(model, forked)
    forker = installed.forker()
    assert are_forked(mount_plain, forked, forker) == [True, True]
    assert are_forked(mount_plain, started, forker) == [False, False]
    for name in ("keeper_pid", "daemon_pid"):
        one, other = (mount_plain.record(root)[name] for root in (started, forked))
        # The number of a socket is the last word, and nothing comes behind it.
        assert words(one)[:4] == words(other)[:4]
        assert len(words(one)) == len(words(other))
        assert words(other)[-2].isdecimal()
        for file in ("comm", "oom_score_adj", "timerslack_ns", "cgroup", "limits", "loginuid"):
            theirs, ours = (Path(f"/proc/{pid}/{file}").read_text() for pid in (one, other))
            assert theirs == ours, file
        for link in ("cwd", "exe", "root", *(f"fd/{number}" for number in range(3))):
            ours, theirs = (os.readlink(f"/proc/{pid}/{link}") for pid in (other, one))
            # Each has a log of its own.
            assert ours == theirs or ours.startswith("/run/cowfs/"), link
        kinds = [
            sorted(
                os.readlink(entry).partition(":")[0] for entry in Path(f"/proc/{pid}/fd").iterdir()
            )
            for pid in (one, other)
        ]
        assert len(kinds[0]) == len(kinds[1]), kinds
    keeper = mount_plain.record(forked)["keeper_pid"]
    assert os.getsid(keeper) == keeper
    daemon = mount_plain.daemon_pid(forked)
    assert (parent(daemon), os.getpgid(daemon)) == (keeper, daemon)


def test_a_forked_mount_has_nothing_of_its_caller(
    mount_plain: MountCopy, model: Path, installed: Installation, tmp_path: Path
) -> None:
    """Neither the first, whose caller starts the forker, nor the next.

    One that has switched off the random layout of what it starts may not start a forker.
    """
    caller = CALLER.replace("libc.personality(0x0040000)", "libc.personality(0)")
    for number, twist in enumerate((CALLER, caller, CALLER)):
        root = mount_plain.mountpoint()
        command = installed.command("mount", model, root)
        hostile = {**VARIABLES, "LD_PRELOAD": "/nowhere/lib.so", "PYTHONSTARTUP": "/nowhere.py"}
        subprocess.run(
            [sys.executable, "-c", twist, "/", *command],
            check=True,
            env={**os.environ, **hostile, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if number == 0:
            assert installed.forkers() == []
        else:
            assert are_forked(mount_plain, root, installed.forker()) == [True, True], number
        record = mount_plain.record(root)
        for pid in (record["keeper_pid"], record["daemon_pid"]):
            found = {name: was for name, was in inherited(pid, tmp_path).items() if was}
            assert found == {}
    forker = installed.forker()
    assert Path(f"/proc/{forker}/environ").read_bytes() == b""
    found = {name: was for name, was in inherited(forker, tmp_path).items() if was}
    assert found == {"ignored signals": {signal.SIGCHLD}}


def test_what_the_caller_says_of_the_mount_reaches_it(
    mount_plain: MountCopy, model: Path, installed: Installation
) -> None:
    roots = [mount_plain.mountpoint() for _ in range(2)]
    installed.mount(model, roots[0], COWFS_RESEND="off", LC_ALL="de_DE.ISO-8859-1", TZ="UTC-7")
    installed.mount(model, roots[1])
    assert [mount_plain.record(root)["replaceable"] for root in roots] == [
        False,
        "passthrough" in MODES,
    ]
    for root in roots:
        pid = mount_plain.daemon_pid(root)
        said = set(Path(f"/proc/{pid}/environ").read_text().split("\0"))
        assert ({"COWFS_RESEND=off", "TZ=UTC-7", "LC_ALL=de_DE.ISO-8859-1"} <= said) == (
            root == roots[0]
        )
        assert f"{kernel.TOKEN}={os.environ[kernel.TOKEN]}" in said


def test_a_caller_without_standard_streams_is_served(
    mount_plain: MountCopy, model: Path, installed: Installation
) -> None:
    for _ in range(2):
        root = mount_plain.mountpoint()
        script = 'cd /; exec "$@" <&- >&- 2>&-'
        run("sh", "-c", script, "sh", *installed.command("mount", model, root))
        assert are_forked(mount_plain, root, installed.forker()) == [True, True]
        assert sorted(os.listdir(root)) == sorted(os.listdir(model))


@pytest.mark.skipif("passthrough" not in MODES, reason="no other daemon can go on on this kernel")
def test_the_end_of_the_forker_disturbs_no_mount(
    mount_plain: MountCopy, model: Path, installed: Installation
) -> None:
    root = mount_plain.mountpoint()
    installed.mount(model, root)
    first, forker = mount_plain.daemon_pid(root), installed.forker()
    started_as = layout(forker)
    with (root / "open").open("w") as file:
        file.write("before")
        file.flush()
        installed.end()
        os.kill(first, signal.SIGKILL)
        file.write(" and after")
    second = mount_plain.wait_until_served(root, other_than=first)
    assert (root / "open").read_text() == "before and after"
    # The keeper has what a daemon needs, and forks the next one by itself.
    assert layout(second) == started_as
    other = mount_plain.mountpoint()
    installed.mount(model, other)
    assert installed.forker() != forker
    assert are_forked(mount_plain, other, installed.forker()) == [True, True]
    cowfs_umount = installed.command("umount", root)
    run(*cowfs_umount, cwd="/")
    assert not os.path.ismount(root)


def test_a_forker_that_ends_or_hangs_while_it_is_asked(
    mount_plain: MountCopy, model: Path, installed: Installation
) -> None:
    installed.mount(model, mount_plain.mountpoint())
    forker = installed.forker()
    os.kill(forker, signal.SIGSTOP)
    root = mount_plain.mountpoint()
    # It is asked, waited for, and ends: or it hangs, and is waited for no longer.
    with subprocess.Popen(installed.command("mount", model, root), cwd="/") as asking:
        wait_until_asked(asking.pid)
        os.kill(forker, signal.SIGKILL)
        assert asking.wait(30) == 0
    assert installed.forkers() == []
    root = mount_plain.mountpoint()
    installed.mount(model, root)
    forker = installed.forker()
    started_as = layout(forker)
    os.kill(forker, signal.SIGSTOP)
    before = set(kernel.session_processes())
    for number in range(2):
        root = mount_plain.mountpoint()
        begin = time.monotonic()
        installed.mount(model, root)
        took = time.monotonic() - begin
        assert layout(mount_plain.daemon_pid(root)) != started_as
        print(f"mount {number} beside a forker that hangs: {took:.2f} s")
    assert set(installed.forkers()) == {forker}
    os.kill(forker, signal.SIGCONT)
    # What it was asked meanwhile leads to nothing, and it ends, since nobody finds it any more.
    assert kernel.wait_for_end(forker, 10)
    assert len(set(kernel.session_processes()) - before) == 4
    root = mount_plain.mountpoint()
    installed.mount(model, root)
    assert are_forked(mount_plain, root, installed.forker()) == [True, True]


@pytest.mark.skipif("passthrough" not in MODES, reason="no other daemon can go on on this kernel")
def test_an_installation_that_was_replaced_is_not_forked(
    mount_plain: MountCopy, model: Path, installed: Installation
) -> None:
    root = mount_plain.mountpoint()
    installed.mount(model, root)
    old, first = installed.forker(), mount_plain.daemon_pid(root)
    started_as = layout(old)
    installed.patch("mount/logline.py", r"A line in the log of", "One line in the log of")
    # A daemon that follows is of the new files, too.
    os.kill(first, signal.SIGKILL)
    second = mount_plain.wait_until_served(root, other_than=first)
    assert layout(second) != started_as
    time.sleep(1.1)
    for expected in ([False, False], [True, True]):  # the first one finds the old forker
        root = mount_plain.mountpoint()
        installed.mount(model, root)
        assert kernel.wait_for_end(old, 10)
        keeper = mount_plain.record(root)["keeper_pid"]
        assert layout(keeper) != started_as
        if installed.forkers():
            assert are_forked(mount_plain, root, installed.forker()) == expected
    assert installed.forker() != old


def test_a_caller_from_elsewhere_is_not_served_from_here(
    mount_plain: MountCopy, model: Path, installed: Installation
) -> None:
    """Another mount namespace, other capabilities, another root directory."""
    here = mount_plain.mountpoint()
    installed.mount(model, here)
    forker = installed.forker()
    root = mount_plain.mountpoint()
    command = installed.command("mount", model, root)
    # What is mounted in that namespace ends with it.
    script = (
        'mounted=$1; shift; cd /; "$@" || exit 1; ns=$(readlink /proc/self/ns/mnt)\n'
        "for p in /proc/[0-9]*; do if grep -qs cowfs.daemon $p/cmdline && "
        '[ "$(readlink $p/ns/mnt)" = "$ns" ]; then echo daemon; fi; done\n'
        'test -e "$mounted/config.json" && echo shown; umount -i "$mounted"'
    )
    said = run(*kernel.in_own_mounts(script), "sh", root, *command).stdout.split()
    assert "daemon" in said
    bound = ["setpriv", "--bounding-set=-sys_time"]
    root = mount_plain.mountpoint()
    run(*bound, *installed.command("mount", model, root), cwd="/")
    assert are_forked(mount_plain, root, forker) == [False, False]
    assert installed.forker() == forker


def test_many_mounts_at_once(mount_plain: MountCopy, model: Path, installed: Installation) -> None:
    roots = [mount_plain.mountpoint() for _ in range(30)]
    installed.mount(model, roots[0])
    forker = installed.forker()
    with ThreadPoolExecutor(8) as eight:
        list(eight.map(lambda root: installed.mount(model, root), roots[1:]))
    for root in roots:
        assert are_forked(mount_plain, root, forker) == [True, True]
        (root / "own").write_text(root.name)
    assert [(root / "own").read_text() for root in roots] == [root.name for root in roots]


def test_an_idle_forker_ends(mount_plain: MountCopy, model: Path, installed: Installation) -> None:
    root = mount_plain.mountpoint()
    installed.mount(model, root, COWFS_FORKER="2")
    assert kernel.wait_for_end(installed.forker(), 20)
    assert sorted(os.listdir(root)) == sorted(os.listdir(model))
    assert installed.forkers() == []

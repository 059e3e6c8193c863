"""What people see of the commands on a terminal of 80 columns, kept in screens/*.txt.

What varies is replaced by a word in capitals. COWFS_WRITE_SCREENS=1 writes the files anew: look at
the difference before you commit it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import pytest
import rich.console

from cowfs.commands import doctor, report
from cowfs.commands.doctor import Finding
from cowfs.mount import preflight, privileges, probes
from cowfs.system import descriptors, mountinfo, syscalls
from integration import kernel, terminal
from integration.command import COWFS, run
from integration.volumes import Volume

SCREENS = Path(__file__).parent / "screens"


class Desk:
    """A mount namespace in which /mnt has the same names on each machine and in each run.

    `data` is a directory on XFS, and `plain` one on ext4.
    """

    def __init__(self, data: Path, plain: Path) -> None:
        script = """
            mount -t tmpfs desk /mnt && cd /mnt && mkdir data plain copy other &&
            mount --bind "$0" data && mount --bind "$1" plain && echo && exec cat"""
        self._holder = subprocess.Popen(
            [*kernel.in_own_mounts(script, "slave"), data, plain],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n", "the namespace could not be made"
        pid = self._holder.pid
        self._enter = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--wdns=/mnt"]
        self._said: list[str] = []
        self.mnt = Path(f"/proc/{pid}/root/mnt")

    def sh(self, script: str) -> str:
        """What the person does besides; not shown."""
        return run(*self._enter, "sh", "-ec", script).stdout

    def cowfs(self, *arguments: str, user: int = 0, again: bool = False) -> None:
        """Call the command and note what is seen. again: it changes nothing, so that what is seen
        can be compared with what it says where there is no terminal."""
        who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        command = [*self._enter, *who, str(COWFS), *arguments]
        text = terminal.seen(command)
        if again:
            result = run(*command, check=False)
            assert text.split() == (result.stdout + result.stderr).split(), "broken words"
        shown = " ".join(arguments)
        self._said.append(f"{'$' if user else '#'} cowfs {shown}\n{_without_what_varies(text)}")

    def compare(self, name: str) -> None:
        """All that was seen, with the file."""
        terminal.compare(SCREENS / f"{name}.txt", "\n".join(self._said))

    def close(self) -> None:
        below = [m.mountpoint for m in kernel.mounts(self._holder.pid) if kernel.is_cowfs(m)]
        for mountpoint in reversed(below):
            if mountpoint.startswith("/mnt/"):
                run(*self._enter, "umount", "-i", "-l", mountpoint)
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait()


def _without_what_varies(text: str) -> str:
    for pattern, word in (
        (r"\b[0-9a-f]{32}\b", "TEMPLATE"),
        (r"\b(pid|daemon) \d+", r"\1 PID"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    ):
        text = re.sub(pattern, word, text)
    return text


@pytest.fixture
def desk(xfs: Path, ext4_volume: Volume) -> Iterator[Desk]:
    plain = ext4_volume.mountpoint / "plain"
    (plain / "model").mkdir(parents=True)
    model = xfs / "model"
    model.mkdir()
    (model / "config.json").write_text("{}\n")
    (model / "weights.bin").write_bytes(b"w" * 8192)
    desk = Desk(xfs, plain)
    yield desk
    desk.close()
    run("rm", "-r", plain)


def test_screen_of_umount(desk: Desk) -> None:
    desk.sh(f"{COWFS} mount data/model copy; echo x >copy/new; rm copy/config.json")
    with _sleeping(desk, "/mnt/copy"):
        desk.cowfs("umount", "/mnt/copy", again=True)
    desk.cowfs("umount", "/mnt/copy")
    desk.cowfs("umount", "/mnt/copy", again=True)
    desk.cowfs("umount", "/mnt/data", again=True)
    desk.sh(f"{COWFS} mount -o copy=same data/model copy")
    desk.cowfs("umount", "/mnt/copy")
    desk.sh(f"{COWFS} mount -o copy=job,ephemeral data/model copy; echo x >copy/new")
    desk.cowfs("umount", "/mnt/copy")
    desk.sh(f"{COWFS} mount -o copy=same data/model copy; mount --bind copy other; umount -i copy")
    desk.cowfs("umount", "/mnt/copy", again=True)
    desk.sh("mount --bind other copy")
    desk.cowfs("umount", "/mnt/other")
    desk.cowfs("umount", "--lazy", "/mnt/copy")
    desk.compare("umount")


@contextlib.contextmanager
def _sleeping(desk: Desk, directory: str) -> Iterator[None]:
    """Somebody works there. Lines break at the same word, however many digits the pid has."""
    root = desk.mnt.parent
    program = shutil.copy(str(shutil.which("sleep")), desk.mnt / "notebook")
    with subprocess.Popen([program, "60"], cwd=f"{root}{directory}") as process:
        try:
            yield
        finally:
            process.kill()


def test_screen_of_check(desk: Desk) -> None:
    store = "/mnt/data/.cowfs"
    desk.sh(f"{COWFS} mount -o copy=job data/model copy; echo x >copy/new; {COWFS} umount copy")
    check = ("check", "--store", store)
    desk.cowfs(*check, "job", again=True)
    upper = "data/.cowfs/copies/job/upper"
    desk.sh(
        f"mknod {upper}/gone c 0 0; touch {upper}/../work/left; mkdir {upper}/moved;"
        f"setfattr -n trusted.overlay.redirect -v /no/such {upper}/moved;"
        f"setfattr -n trusted.cowfs.ino -v 1 {upper}/new; chmod 755 data/.cowfs/copies/job"
    )
    desk.cowfs(*check, "job", again=True)
    desk.cowfs(*check, "--repair", "job")
    desk.cowfs(*check, "--all", again=True)
    desk.sh(f"rm -r {upper}; {COWFS} mount -o copy=two data/model copy")
    desk.cowfs(*check, "--all", again=True)
    desk.cowfs(*check, "two", again=True)
    desk.cowfs("check", again=True)
    desk.compare("check")


ERRORS: list[tuple[str, ...]] = [
    ("mount", "/mnt/data/modle", "/mnt/copy"),
    ("mount", "/mnt/data/model/config.json", "/mnt/copy"),
    ("mount", "/mnt/data/model", "/mnt/coyp"),
    ("mount", "/mnt/data/model", "/mnt/other"),
    ("mount", "-o", "ephmeral", "/mnt/data/model", "/mnt/copy"),
    ("mount", "-o", "share_min=many", "/mnt/data/model", "/mnt/copy"),
    ("mount", "-o", "copy=taken", "/mnt/data/model", "/mnt/copy"),
    ("mount", "-o", "copy=written,ephemeral", "/mnt/data/model", "/mnt/copy"),
    ("mount", "/mnt/data/model"),
    ("mout", "/mnt/data/model", "/mnt/copy"),
    ("clone", "/mnt/data/model", "/mnt/data/model/copy"),
    ("clone", "/mnt/data/model", "/mnt/plain/copy"),
    ("umount", "/mnt/plain"),
    ("rm", "--store", "/mnt/data/.cowfs", "nothing"),
    ("list", "--store", "/mnt/data"),
    ("list", "--store", "/mnt/nowhere"),
    ("warm", "/mnt/copy"),
    ("warm", "/mnt/coyp"),
    ("warm", "--limit", "lots", "/mnt/data/model"),
]


def test_screen_of_errors(desk: Desk) -> None:
    desk.sh(
        f"{COWFS} mount -o copy=taken data/model other;"
        f"{COWFS} mount -o copy=written data/model copy; echo x >copy/new; {COWFS} umount copy"
    )
    for arguments in ERRORS:
        desk.cowfs(*arguments, again=True)
    desk.cowfs("mount", "/mnt/data/model", "/mnt/copy", user=65534, again=True)
    desk.compare("errors")


# --- what the machine says is given by the test ---------------------------------------------------


def on_terminal(show: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a function shows that prints to stdout."""
    person, program = terminal.open_terminal()
    with os.fdopen(program, "w") as out, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", out)
        show()
    return terminal.read_all(person)


def a_good_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "uname", lambda: os.uname_result(("", "", "6.12.0-1-amd64", "", "")))
    patch.setattr(preflight, "require_privilege", lambda: None)
    patch.setattr(preflight, "require_fuse_device", lambda: None)
    patch.setattr(preflight, "has_capability", lambda _: True)
    patch.setattr(privileges, "missing", lambda _: [])
    patch.setattr(syscalls, "has_filesystem", lambda _: True)
    patch.setattr(probes, "passthrough", lambda _: None)
    patch.setattr(probes, "fuse", lambda: probes.Fuse(45, (1 << 64) - 1))
    patch.setattr(probes, "io_uring", lambda: None)
    patch.setattr(probes, "reflink", lambda _: None)
    patch.setattr(descriptors, "highest", lambda **_: 1 << 20)
    patch.setattr(mountinfo, "read", lambda: [mountinfo.Mount(1, "8:1", "/", "xfs", "/dev/sda1")])
    patch.setattr(doctor, "_library", lambda name, _: Finding(name, "ok", "VERSION"))
    patch.setattr(sys, "version", "VERSION")


def an_old_machine(patch: pytest.MonkeyPatch) -> None:
    a_good_machine(patch)
    patch.setattr(os, "uname", lambda: os.uname_result(("", "", "5.10.0-34-amd64", "", "")))
    patch.setattr(privileges, "missing", lambda _: ["LINUX_IMMUTABLE"])
    patch.setattr(syscalls, "has_filesystem", lambda _: False)
    patch.setattr(probes, "fuse", lambda: probes.Fuse(32, 0))
    patch.setattr(probes, "passthrough", lambda _: "FUSE 7.32 of this kernel does not have it")
    patch.setattr(probes, "io_uring", lambda: "io_uring_setup: Function not implemented")
    patch.setattr(descriptors, "highest", lambda **_: 4096)


def an_ordinary_user(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    a_good_machine(patch)
    patch.setattr(preflight, "require_privilege", _refuse_privilege)
    patch.setattr(preflight, "has_capability", lambda _: False)
    patch.setattr(os, "access", lambda *_: False)
    for module, name in (
        (syscalls, "has_filesystem"),
        (probes, "passthrough"),
        (probes, "fuse"),
        (probes, "reflink"),
    ):
        patch.setattr(module, name, refuse)


def _refuse_privilege() -> NoReturn:
    raise privileges.refusal(["SYS_ADMIN"])


@pytest.mark.parametrize("machine", [a_good_machine, an_old_machine, an_ordinary_user])
def test_screen_of_doctor(
    machine: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        machine(patch)
        findings = doctor.examine("/" if machine is an_old_machine else None)
    expected = " ".join(line for line, _ in doctor.as_lines(findings))

    def show() -> None:
        for line, before in doctor.as_lines(findings):
            report.tell(line, before)

    text = on_terminal(show, monkeypatch)
    assert text.split() == expected.split(), "broken words"
    terminal.compare(SCREENS / f"doctor-{machine.__name__.replace('_', '-')}.txt", text)


BARS: dict[str, Callable[[TextIO], Any]] = {
    "cowfs mount": lambda out: report.SealingBar(out),
    "cowfs check": lambda out: report.SealingBar(out, "checking"),
    "cowfs clone": lambda out: report.SealingBar(out, "cloning"),
    "cowfs warm": lambda out: report.WarmingBar(out, "reading"),
    "cowfs import": lambda out: report.ImportBar(out),
}


def test_screen_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first third is done, and another one 20 s later."""
    now = 1000.0
    monkeypatch.setattr(rich.console, "monotonic", lambda: now)
    monkeypatch.setenv("COLUMNS", str(terminal.COLUMNS))
    monkeypatch.setenv("TERM", "xterm-256color")
    said = []
    for command, make in BARS.items():
        out = _Screen()
        bar = make(out)
        bar.QUIET_SECONDS = 0
        begun, part = (1_200_000, 139 << 30), (400_000, 46 << 30)
        if command == "cowfs import":
            bar.begin("verifying", *begun)
        else:
            bar.begin(*begun)
        done = part[1:] if command == "cowfs warm" else part[:1]
        for _third in range(2):
            bar.advance(*(part if command == "cowfs import" else done))
            bar._bar.refresh()
            said.append(f"# {command}\n{terminal.last_line(out.getvalue())}\n")
            now += 20
        bar.close()
    terminal.compare(SCREENS / "progress.txt", "\n".join(said))


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True

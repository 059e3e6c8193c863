"""A small Debian that boots a real systemd, with the package installed: systemd-nspawn(1).

Its tree is made once and cached below COWFS_TEST_CACHE (/var/cache/cowfs-tests). A machine changes
nothing of it: its root is an overlay, its volume an image, and both are mounted in a namespace of
the machine's own, so that nothing of it is left when it has ended.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cowfs import __version__
from integration.command import Result, run
from integration.volumes import GIB

CACHE = "COWFS_TEST_CACHE"
_ROOT = Path(__file__).parent.parent
_RELEASE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
# Without a bus: systemctl(1) does not need one, and neither does cowfs.
_PACKAGES = ("systemd", "systemd-sysv", "mount", "python3", "libfuse3-3", "liburing2")
# What nspawn keeps from its machines, and a real one gives to services.
_CAPABILITIES = "--capability=CAP_SYS_RESOURCE,CAP_NET_ADMIN"
_SYSTEM_CALLS = "--system-call-filter=open_by_handle_at name_to_handle_at"
_DEVICES = ("--bind=/dev/fuse", "--bind=/dev/autofs")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# nspawn's way to say that the machine wants to be started again, with --keep-unit.
_REBOOTED = 133


def cache() -> Path:
    """The directory for what all test sessions of this machine share."""
    path = Path(os.environ.get(CACHE, "/var/cache/cowfs-tests"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def tree() -> Path:
    """The cached tree of a minimal Debian; made when it is not there, which takes a minute."""
    kind = hashlib.sha256(" ".join((_RELEASE, *_PACKAGES)).encode()).hexdigest()[:8]
    made = cache() / f"{_RELEASE}-{kind}"
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = made.with_name(f".{made.name}.new")
            subprocess.run(["rm", "-rf", str(new)], check=True)
            packages = f"--include={','.join(_PACKAGES)}"
            run(
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", packages),
                *("--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Retries "3"'),
                *(_RELEASE, new, _MIRROR),
                timeout=900,
            )
            new.rename(made)
    return made


def build_package(directory: Path, version: str | None = None) -> Path:
    """The Debian package of the tree under test, or of one that differs in the version alone."""
    tree = _ROOT
    directory.mkdir(parents=True, exist_ok=True)
    if version is not None:
        tree = directory / "tree"
        skip = shutil.ignore_patterns(".*", "__pycache__", "*.so", "bench", "integration")
        shutil.copytree(_ROOT, tree, ignore=skip)
        for name in ("pyproject.toml", "cowfs/__init__.py"):
            text = (tree / name).read_text()
            (tree / name).write_text(text.replace(f'"{__version__}"', f'"{version}"'))
    strict = ("bash", "-c", 'umask 077; exec "$@"', "build")  # as its builder may have it
    built = run(*strict, tree / "packaging/build-deb", directory, timeout=1800)
    return Path(built.stdout.strip())


class Machine:
    """One machine. `boot` and `close` it."""

    def __init__(self, directory: Path, *packages: Path) -> None:
        """*directory*: a new one, for all that is its own. The packages are installed."""
        self.directory = directory
        for name in ("upper", "work", "root", "volume"):
            (directory / name).mkdir(parents=True)
        self._below = tree()
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(2 * GIB)
        run("mkfs.xfs", "-q", "-m", "reflink=1", image)
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.write("etc/hostname", "machine\n")
        for package in packages:
            shutil.copy(package, directory / "upper")
        if packages:
            paths = [f"/{package.name}" for package in packages]
            self.run_unbooted("apt-get", "install", "-y", "-q", *paths)

    def write(self, path: str, text: str) -> None:
        """Put a file into its root, before it is booted. The text may be indented."""
        target = self.directory / "upper" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))

    def boot(self, patience: float = 60) -> None:
        """Boot, and wait until systemd has started everything."""
        self._nspawn = self._start("--boot", "--console=pipe", *_DEVICES)
        deadline = time.monotonic() + patience
        self.pid = self._wait_for_init(deadline)
        while True:
            state = self.run("systemctl", "is-system-running", check=False)
            if state.stdout.strip() in ("running", "degraded"):
                return
            assert time.monotonic() < deadline, f"it did not boot: {state}\n{self.console()}"
            time.sleep(0.1)

    def run_unbooted(self, *args: str) -> None:
        """A command in its tree, without systemd."""
        process = self._start("--pipe", "--", *args)
        assert process.wait(120) == 0, f"{args} failed:\n{self.console()}"

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        d = shlex.quote(str(self.directory))
        groups = " ".join(shlex.quote(str(group)) for group in self._control_groups())
        # Its processes lie in control groups of its own, or two machines would share theirs.
        script = f"""
            for group in {groups}; do
                mkdir -p "$group" && echo $$ >"$group/cgroup.procs" || exit
            done
            cd {d} || exit
            # What others have mounted would stay busy with its copies here.
            umount -i -l -a -t fuse.cowfs,xfs
            layers=lowerdir={self._below},upperdir=upper,workdir=work
            mount -t overlay -o "$layers" overlay root || exit
            mount -o loop image volume || exit
            exec systemd-nspawn -q --register=no --keep-unit --machine=cowfs-{os.getpid()} \
                -D root --bind={d}/volume:/data "$@"
        """
        options = (_CAPABILITIES, _SYSTEM_CALLS)
        with (self.directory / "console").open("ab") as console:
            return subprocess.Popen(
                [
                    *("unshare", "--mount", "--propagation", "slave"),
                    *("sh", "-c", script, "sh", *options, *args),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def _control_groups(self) -> list[Path]:
        """Its control groups that systemd cares about: version 2, and its own of version 1."""
        inside = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, path = line.split(":", 2)
            inside[kind] = path.strip("/")
        found = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            fstype, _, options = right.split(" ", 2)
            kinds = {"cgroup2": [""], "cgroup": ["name=systemd"]}.get(fstype, [])
            found += [
                Path(left.split(" ")[4]) / inside[kind] / self.directory.name
                for kind in kinds
                if kind in inside and kind in ("", *options.split(","))
            ]
        return found

    def _wait_for_init(self, deadline: float) -> int:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            for child in children.read_text().split():
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                        return int(child)
            time.sleep(0.05)
        raise AssertionError(f"it did not boot:\n{self.console()}")

    def console(self) -> str:
        """What it has shown on its console."""
        return (self.directory / "console").read_text(errors="replace")

    def _command(self, *args: str) -> list[str]:
        return ["nsenter", "--all", f"--target={self.pid}", "env", "-i", _PATH, *args]

    def run(self, *args: str, check: bool = True, timeout: float = 60) -> Result:
        """A command in it."""
        return run(*self._command(*args), check=check, timeout=timeout)

    def sh(self, script: str) -> str:
        """What a shell script has printed, without the last newline; it must succeed."""
        return self.run("sh", "-ec", script).stdout.rstrip("\n")

    def wait_until(self, condition: str, patience: float = 30) -> None:
        """Until a shell's condition holds."""
        deadline = time.monotonic() + patience
        while self.run("sh", "-c", condition, check=False).returncode != 0:
            assert time.monotonic() < deadline, f"it never came to: {condition}"
            time.sleep(0.05)

    def put(self, path: str, text: str) -> None:
        """Write a file while it runs. The text may be indented."""
        text = textwrap.dedent(text)
        self.sh(f"mkdir -p {shlex.quote(str(Path(path).parent))}")
        self.sh(f"printf %s {shlex.quote(text)} >{shlex.quote(path)}")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """What the journal has of a unit, without times."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    @contextmanager
    def background(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on meanwhile."""
        process = subprocess.Popen(
            self._command(*args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            with process:
                yield process
        finally:
            if process.poll() is None:
                process.kill()

    def go_down(self, how: str, patience: float = 60) -> None:
        """`poweroff` or `reboot`. Nothing that systemd waits ninety seconds for may be there."""
        assert self._nspawn is not None
        self.run("systemctl", how, "--no-block", check=False)
        code = self._nspawn.wait(patience)
        self._nspawn = None
        assert code == (_REBOOTED if how == "reboot" else 0), self.console()

    def close(self) -> None:
        """End it as if the power failed, if it still runs, and delete all of it."""
        groups = [
            Path(directory)
            for group in self._control_groups()
            for directory, _, _ in os.walk(group, topdown=False)
        ]
        if self._nspawn is not None:
            if not self.pid:  # it never came up: whatever runs in it by now
                for group in groups:
                    for pid in (group / "cgroup.procs").read_text().split():
                        with suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)  # with the first process all of it
            self._nspawn.wait(30)
        for group in groups:
            _remove_group(group)
        shutil.rmtree(self.directory)


def _remove_group(group: Path, patience: float = 5) -> None:
    """Of a control group whose processes have been killed: the last ones may still be ending."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)

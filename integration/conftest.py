"""Fixtures of the tests on real mounts, and the checks around each of them.

Several sessions may run at once on a machine: the workers of pytest-xdist, or two checkouts. Each
has its own directory, volumes and processes. A test that needs the machine for itself, because it
looks at the page cache or changes a setting of the kernel, is marked `alone`.

A test fails when it leaves a mount, a loop device or a process behind, and when a daemon logged an
error or a traceback meanwhile. What is missing on the machine ends the run with a line that says
so; nothing is skipped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from integration import kernel, machine
from integration.command import COWFS, Result
from integration.command import cowfs as run_cowfs
from integration.effort import CHANCE, EFFORT, SEED, is_its_turn
from integration.leaks import Leaks
from integration.mounts import MountCopy
from integration.oracle import Oracle
from integration.trees import make_model
from integration.volumes import MIB, Volume, remove_tree
from integration.watchdog import Watchdog

Mode = Literal["passthrough", "relayed"]

_release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
_kernel_has_passthrough = _release >= (6, 9)
MODES: list[Mode] = ["passthrough", "relayed"] if _kernel_has_passthrough else ["relayed"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """What does more may take longer."""
    if EFFORT > 1 and config.getoption("timeout") is None:
        config.option.timeout = float(config.getini("timeout")) * EFFORT


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is only run with more effort, unless it was asked for."""
    if EFFORT > 1 or config.option.keyword or any("::" in word for word in config.args):
        return
    kept = [item for item in items if is_its_turn(item, MODES)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def pytest_report_header() -> str:
    """What repeats this run."""
    return f"COWFS_EFFORT={EFFORT} COWFS_RANDOM_SEED={SEED} COWFS_CHANCE={CHANCE}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this kernel kept from being tested."""
    if not _kernel_has_passthrough:
        terminalreporter.write_line(
            f"NOT TESTED: passthrough. Linux {os.uname().release} has none (6.9 and later have);"
            " the integration tests ran with passthrough=off only.",
            yellow=True,
        )


# --- the session ----------------------------------------------------------------------------------


def _missing() -> str | None:
    """What this machine lacks for these tests, or None."""
    if os.geteuid() != 0:
        return "they mount filesystems: run them as root"
    for program in (
        *(
            "mkfs.xfs",
            "mkfs.btrfs",
            "mkfs.ext4",
            "losetup",
            "chattr",
            "setfattr",
            "setfacl",
            "stress-ng",
        ),
        *("git", "rsync", "make", "gcc", "patch", "cpio", "vim.tiny", "perl", "strace"),
        *("bash", "zsh", "fish", "man", "mandoc", "findmnt", "nsenter", "setpriv", "logrotate"),
        *("mmdebstrap", "systemd-nspawn", "dpkg-deb", "qemu-system-x86_64", "busybox", "depmod"),
        "umoci",
    ):
        if shutil.which(program) is None:
            return f"there is no {program}: ./test.sh installs what they need"
    if not Path("/usr/share/bash-completion/bash_completion").exists():
        return "there is no bash-completion: ./test.sh installs what they need"
    if not Path("/dev/loop-control").exists():
        return "there is no /dev/loop-control: load the loop module, or give it to the container"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return (
            f"/dev/fuse cannot be opened ({error.strerror}):"
            " load the fuse module, or give it to the container"
        )
    if not Path("/dev/autofs").exists():
        return "there is no /dev/autofs: load the autofs4 module, or give it to the container"
    if not COWFS.exists():
        return f"there is no {COWFS}: ./test.sh builds and installs it"
    return None


@pytest.fixture(scope="session", autouse=True)
def session() -> Iterator[Watchdog]:
    """The session's directory and guard. At its end nothing of the session may be left."""
    if missing := _missing():
        pytest.exit(f"The integration tests cannot run: {missing}.", returncode=1)
    os.environ.setdefault(kernel.TOKEN, uuid.uuid4().hex)
    made = []
    if kernel.DIRECTORY not in os.environ:
        # /var/tmp is not on a tmpfs: the images may grow to gigabytes.
        os.environ[kernel.DIRECTORY] = tempfile.mkdtemp(prefix="cowfs-test-", dir="/var/tmp")
        made.append(kernel.session_dir())
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # a session of its own: see test.sh
        os.environ[kernel.TOKEN] += f"-{worker}"
        os.environ[kernel.DIRECTORY] += f"/{worker}"  # short: sockets are bound below it
        kernel.session_dir().mkdir()
        made.append(kernel.session_dir())
    for directory in made:
        directory.chmod(0o755)  # tests look into it as other users, too
    leaks = Leaks()
    watchdog = Watchdog()
    yield watchdog
    watchdog.close()
    complaints = leaks.take_away()
    remove_tree(kernel.session_dir() / "tmp")
    for directory in reversed(made):
        directory.rmdir()
    assert not complaints, "this test run left things behind:\n" + "\n".join(complaints)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Modes come out the same whatever ran before: an overlay in this process leaves 0."""
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.fixture(scope="session")
def xfs_volume(session: Watchdog) -> Iterator[Volume]:
    """An XFS volume of 4 GiB with reflink, on a loop device. `mountpoint` is its path."""
    volume = Volume.xfs(kernel.session_dir() / "xfs")
    yield volume
    volume.remove()


@pytest.fixture(scope="session")
def btrfs_volume(session: Watchdog) -> Iterator[Volume]:
    """A btrfs volume of 4 GiB, for tests marked `filesystems`."""
    volume = Volume.btrfs(kernel.session_dir() / "btrfs")
    yield volume
    volume.remove()


@pytest.fixture(scope="session")
def ext4_volume(session: Watchdog) -> Iterator[Volume]:
    """An ext4 volume of 1 GiB: it has no reflink."""
    volume = Volume.ext4(kernel.session_dir() / "ext4")
    yield volume
    volume.remove()


@pytest.fixture(scope="session")
def package(session: Watchdog) -> Iterator[Path]:
    """The Debian package of the tree under test."""
    with _built("package") as package:
        yield package


@pytest.fixture(scope="session")
def newer_package(session: Watchdog) -> Iterator[Path]:
    """One that differs in its version alone, 99.0."""
    with _built("newer-package", "99.0") as package:
        yield package


@contextmanager
def _built(name: str, version: str | None = None) -> Iterator[Path]:
    """A package that one worker builds for all of a run, since it takes long."""
    own = kernel.session_dir()
    of_the_run = Path(os.environ.get(kernel.RUN, own))
    directory = of_the_run / name
    with (of_the_run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(directory.glob("*.deb")):
            remove_tree(directory)
            machine.build_package(directory, version)
        [package] = directory.glob("*.deb")
    yield package
    if of_the_run == own:
        remove_tree(directory)
        Path(lock.name).unlink()


# --- each test ------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Wait for the test's turn, before pytest-timeout begins to count."""
    if Path(__file__).parent not in item.path.parents:
        return (yield)
    with _turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _turn(*, alone: bool) -> Iterator[None]:
    """Run with the tests of other sessions on this machine, or *alone*."""
    locks = machine.cache()
    with (locks / "door").open("w") as door, (locks / "room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # who waits for an empty room lets nobody else in
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, session: Watchdog) -> Iterator[None]:
    """Set up before, and taken down after, everything else of the test."""
    session.arm(_timeout(request) + 5)
    leaks = Leaks()
    yield
    complaints = leaks.take_away()
    _empty_stores()
    session.disarm()
    assert not complaints, "this test left things behind:\n" + "\n".join(complaints)


def _timeout(request: pytest.FixtureRequest) -> float:
    """The seconds after which pytest-timeout ends this test."""
    marker = request.node.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    return float(request.config.getoption("timeout", None) or request.config.getini("timeout"))


def _empty_stores() -> None:
    """Delete every copy and template, so that the next test starts with an empty store, and what
    the machine remembers of stores elsewhere.

    Not with `cowfs rm`: that has tests of its own, and would cost every other test a second.
    """
    mounts = kernel.session_mounts()
    if any(kernel.is_cowfs(mount) for mount in mounts):
        return  # of a fixture that outlives the test
    for mount in mounts:
        store = Path(mount.mountpoint) / ".cowfs"
        if mount.source.startswith("/dev/loop") and store.is_dir():
            remove_tree(store)
    kernel.forget_stores()


@pytest.fixture
def tmp_path(session: Watchdog, request: pytest.FixtureRequest) -> Iterator[Path]:
    """As pytest's own, but where the session's mounts are looked for; removed after the test."""
    base = kernel.session_dir() / "tmp"
    base.mkdir(exist_ok=True)
    name = "".join(char if char.isalnum() else "-" for char in request.node.name)[:40]
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
    path.chmod(0o755)
    yield path
    remove_tree(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each of the volumes that its mark `filesystems` names, the nearest one.

    And in each mode if it has one; elsewhere than on XFS in the first one alone.
    """
    mark = metafunc.definition.get_closest_marker("filesystems")
    if mark is None or "volume" not in metafunc.fixturenames:
        if "mode" in metafunc.fixturenames:
            metafunc.parametrize("mode", MODES, indirect=True)
    elif "mode" in metafunc.fixturenames:
        both = [
            (kind, mode) for kind in mark.args for mode in MODES[: None if kind == "xfs" else 1]
        ]
        metafunc.parametrize(("volume", "mode"), both, indirect=True, scope="session")
    else:
        metafunc.parametrize("volume", mark.args, indirect=True, scope="session")


@pytest.fixture(scope="session")
def volume(request: pytest.FixtureRequest) -> Volume:
    """The volume that the directory `xfs` is on: XFS, or what the mark `filesystems` says."""
    found: Volume = request.getfixturevalue(f"{getattr(request, 'param', 'xfs')}_volume")
    return found


@pytest.fixture
def xfs(volume: Volume, tmp_path: Path) -> Iterator[Path]:
    """A new directory on the XFS volume, or on another one in tests marked `filesystems`."""
    path = volume.mountpoint / tmp_path.name
    path.mkdir()
    yield path
    remove_tree(path)


@pytest.fixture
def outside(ext4_volume: Volume, tmp_path: Path) -> Iterator[Path]:
    """A new directory on another volume, of another kind."""
    path = ext4_volume.mountpoint / tmp_path.name
    path.mkdir()
    yield path
    remove_tree(path)


@pytest.fixture
def model(xfs: Path) -> Path:
    """A small model directory on the XFS volume, with one of everything: see `make_model`."""
    return make_model(xfs / "model")


@pytest.fixture
def small_xfs(tmp_path: Path) -> Iterator[Callable[..., Volume]]:
    """`small_xfs(size_mib=64)` makes an XFS volume for this test alone, of at least 16 MiB."""
    volumes: list[Volume] = []

    def make(size_mib: int = 64, *, reflink: bool = True) -> Volume:
        volume = Volume.xfs(tmp_path / f"volume{len(volumes)}", size_mib * MIB, reflink=reflink)
        volumes.append(volume)
        return volume

    yield make
    for volume in volumes:
        volume.remove()


@pytest.fixture
def cowfs() -> Callable[..., Result]:
    """`cowfs(*args, check=True, timeout=60)` runs the installed command: `integration.command`."""
    return run_cowfs


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> Mode:
    """Every test that uses it, through `mount_copy` too, runs once in each mode."""
    mode: Mode = request.param
    return mode


@pytest.fixture
def mount_copy(
    mode: Mode, xfs: Path, tmp_path: Path, small_xfs: Callable[..., Volume]
) -> Iterator[MountCopy]:
    """`mount_copy(source, mountpoint=None, *options)` returns the mountpoint of a new copy.

    Every test with it runs twice: with passthrough, and with everything relayed by the channel.
    """
    mounts = MountCopy(tmp_path, [f"passthrough={'on' if mode == 'passthrough' else 'off'}"])
    yield mounts
    mounts.clean_up()


@pytest.fixture
def mount_plain(xfs: Path, tmp_path: Path, small_xfs: Callable[..., Volume]) -> Iterator[MountCopy]:
    """The same with no option but those of the test, and once: for what the mode cannot change."""
    mounts = MountCopy(tmp_path)
    yield mounts
    mounts.clean_up()


@pytest.fixture
def oracle(mount_copy: MountCopy, model: Path, xfs: Path) -> Oracle:
    """A mounted copy of `model` with a reflink copy beside it: see `Oracle.same`."""
    return Oracle.beside(mount_copy(model), model, xfs / "native")

"""What is checked in a machine, with the installed command. Knows what each kernel can do."""

from __future__ import annotations

import errno
import functools
import gzip
import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from integration import kernel
from integration.command import cowfs, run
from integration.conformance import calls, processes
from integration.conformance.cases import Case, equal, outcome
from integration.conformance.families import CASES
from integration.conformance.furniture import SHARE_MIN, furnish
from integration.conformance.processes import apart
from integration.conformance.readonly import allow_what_changes_nothing, refuse_every_change
from integration.conformance.runner import Stage, as_it_is, by_overlayfs
from integration.conformance.sizes import ZERO
from integration.kernels.guest import SECONDS, VOLUME, Step
from integration.trees import MIB, Entry, differences, make_model, tree_state

_MODEL = VOLUME / "model"
_COPIES = Path("/copies")
_WEIGHTS = 96 * MIB

_release = re.match(r"(\d+)\.(\d+)", os.uname().release)
assert _release
RELEASE = (int(_release[1]), int(_release[2]))
#: Passthrough, and requests that are sent again: both came with Linux 6.9.
SURVIVES = PASSES_THROUGH = RELEASE >= (6, 9)
#: What calls say of a mount that has lost its daemon.
DEAD = ("ENOTCONN", "ECONNABORTED")


class Way(NamedTuple):
    """A way of serving a copy, and the options that ask for it."""

    name: str
    options: tuple[str, ...]
    has_daemon: bool = True


def ways() -> list[Way]:
    """Those that this kernel and the installed version have."""
    knows_engines = b"engine=" in gzip.decompress(
        Path("/usr/share/man/man5/cowfs.5.gz").read_bytes()
    )
    fuse = ("engine=fuse",) if knows_engines else ()
    found = [Way("relayed", (*fuse, "passthrough=off"))]
    if PASSES_THROUGH:
        found.insert(0, Way("passthrough", (*fuse, "passthrough=on")))
    if knows_engines:
        found.append(Way("overlay", ("engine=overlay",), has_daemon=False))
    return found


def groups(
    update: Path, names_of_ways: Sequence[str] = (), patterns: Sequence[str] = ("*",)
) -> Iterator[tuple[str, Callable[[], Iterator[Step]]]]:
    """All groups of checks, in these ways of serving, or all, with the cases of these patterns.

    *update*: the package of a newer version, installed at the end.
    """
    chosen = [way for way in ways() if not names_of_ways or way.name in names_of_ways]

    def one(name: str, check: Callable[..., object], *args: Any) -> Any:
        return name, functools.partial(iter, [("", functools.partial(check, *args))])

    yield one("doctor", _doctor)
    yield one("model", make_model, _MODEL)
    yield one("clone", _clone)
    yield one("import", _import)
    yield one("default", _default)
    yield one("mount -t", _mount_t)
    yield one("calls", _calls, ways()[0])
    for way in chosen:
        yield one(f"keep, {way.name}", _keep, way)
        yield one(f"eight, {way.name}", _eight, way)
        yield one(f"warm, {way.name}", _warm, way)
        if way.has_daemon:
            yield one(f"killed daemon, {way.name}", _killed_daemon, way)
            yield one(f"killed keeper, {way.name}", _killed_keeper, way)
            yield one(f"upgrade, {way.name}", _upgrade, way)
    yield (
        "compare",
        functools.partial(
            _compare,
            chosen,
            [case for case in CASES if any(fnmatchcase(case.name, each) for each in patterns)],
        ),
    )
    yield one("update", _update, ways()[0], update)
    yield one("check", _check)


# --- words ----------------------------------------------------------------------------------------


def _cowfs(*args: str | Path, check: bool = True) -> Any:
    return cowfs(*args, check=check, timeout=SECONDS)


def _mount(name: str, way: Way | None, *options: str, source: Path = _MODEL) -> Path:
    """A copy at /copies/NAME. The directory below the mount holds `below`."""
    mountpoint = _COPIES / name
    if not mountpoint.exists():
        mountpoint.mkdir(parents=True)
        (mountpoint / "below").touch()
    words = [arg for option in (*(way.options if way else ()), *options) for arg in ("-o", option)]
    _cowfs("mount", *words, source, mountpoint)
    assert not (mountpoint / "below").exists(), "it is not mounted"
    return mountpoint


def _umount(mountpoint: Path) -> None:
    _cowfs("umount", mountpoint)
    equal(os.listdir(mountpoint), ["below"])


def _record(mountpoint: Path) -> dict[str, Any]:
    """What the running mount says about itself."""
    for path in (*Path("/run/cowfs").glob("*.json"), *Path("/run/cowfs").glob("*.overlay")):
        record: dict[str, Any] = json.loads(path.read_text())
        if record["mountpoint"] == str(mountpoint):
            return record
    raise AssertionError(f"there is no record of {mountpoint}")


def _put(path: Path, text: str) -> None:
    path.write_text(text)


def _wait(seconds: float, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


# --- checks ---------------------------------------------------------------------------------------


def _doctor() -> None:
    result = _cowfs("doctor", "--json", VOLUME)
    found = {line["name"]: line["status"] for line in json.loads(result.stdout)["checks"]}
    equal(found["reflink"], "ok")
    equal(found["/dev/fuse"], "ok")
    equal(found["passthrough"], "ok" if PASSES_THROUGH else "degraded")


def _calls(way: Way) -> None:
    """What the kernel's FUSE has not, and nothing else, `doctor` says."""
    copy = _mount("calls", way, "ephemeral")

    def make_without_a_name() -> None:
        os.close(os.open(copy, os.O_TMPFILE | os.O_RDWR))

    def zero() -> None:
        with (copy / "config.json").open("r+b") as file:
            calls.fallocate(file.fileno(), ZERO, 0, 10)

    def tell_birth() -> None:
        if int(run("stat", "--format=%W", copy / "config.json").stdout) <= 0:
            raise OSError(errno.ENOTSUP, "no birth time")

    tried = {
        "O_TMPFILE": make_without_a_name,
        "FALLOC_FL_ZERO_RANGE": zero,
        "birth times": tell_birth,
    }
    failed = {name for name, call in tried.items() if outcome(call) == "ENOTSUP"}
    lines = json.loads(_cowfs("doctor", "--json", VOLUME).stdout)["checks"]
    [said] = [line["detail"] for line in lines if line["name"] == "calls"]
    equal(failed, {name for name in tried if name in said})
    _umount(copy)


def _clone() -> None:
    _cowfs("clone", _MODEL, VOLUME / "clone")
    _same_trees(_MODEL, VOLUME / "clone")


def _import() -> None:
    source = Path("/usr/lib/python3.11/email")  # on ext4
    _cowfs("import", "--verify", source, VOLUME / "import")
    _same_trees(source, VOLUME / "import")


def _same_trees(expected: Path, got: Path) -> None:
    told = differences(tree_state(expected), tree_state(got))
    assert not told, told


def _same_as_model(copy: Path) -> None:
    """But for the link counts of directories, which overlayfs has in its own way."""
    [mount] = [mount for mount in kernel.mounts() if mount.mountpoint == str(copy)]

    def shown(root: Path) -> dict[str, Entry]:
        return {
            path: entry._replace(nlink=0)
            if mount.fstype == "overlay" and stat.S_ISDIR(entry.mode)
            else entry
            for path, entry in tree_state(root).items()
        }

    told = differences(shown(_MODEL), shown(copy))
    assert not told, told


def _default() -> None:
    """Without options the best way of serving is chosen."""
    copy = _mount("default", None)
    [mount] = [mount for mount in kernel.mounts() if mount.mountpoint == str(copy)]
    best = next(way for way in ways() if way.name != "relayed" or len(ways()) == 1)
    equal(mount.fstype, "overlay" if best.name == "overlay" else "fuse.cowfs")
    _same_as_model(copy)
    _umount(copy)


def _mount_t() -> None:
    copy = _COPIES / "mount-t"
    copy.mkdir(parents=True)
    run("mount", "-t", "cowfs", "-o", "copy=mount-t,noexec", _MODEL, copy, timeout=SECONDS)
    _same_as_model(copy)
    _put(copy / "new", "kept")
    record = _record(copy)
    run("umount", copy, timeout=SECONDS)
    equal(os.listdir(copy), [])
    # umount(8) does not wait for the attendant of an overlayfs.
    assert kernel.wait_for_end(record["keeper_pid"], SECONDS)
    equal((VOLUME / ".cowfs/copies/mount-t/upper/new").read_text(), "kept")


def _compare(ways: Sequence[Way], cases: Sequence[Case]) -> Iterator[Step]:
    """Cases of the conformance suite, in these ways of serving, and on XFS."""
    root = VOLUME / "compare"
    options = ("suid", "dev", f"share_min={SHARE_MIN}")
    stage: Stage

    def prepare() -> None:
        nonlocal stage
        processes.PATIENCE = int(SECONDS)
        root.mkdir()
        stage = Stage(root, cases)
        plain = root / "plain"
        plain.mkdir()
        apart(lambda: (os.chdir(plain), furnish()))

    def begin(way: Way) -> None:
        stage.settle(_mount(f"compare-{way.name}", way, *options, source=stage.source))

    def again(way: Way, copy: Path) -> None:
        _umount(copy)
        _mount(copy.name, way, *options, source=stage.source)
        show = as_it_is if way.has_daemon else by_overlayfs
        stage.check_trees(copy, ("moved", "new"), show=show)
        _umount(copy)

    def read_only(way: Way) -> None:
        copy = _mount(f"read-only-{way.name}", way, "ro", *options, source=root / "plain")
        for act in (refuse_every_change, allow_what_changes_nothing):
            apart(lambda act=act: (os.chdir(copy), act()))
        _umount(copy)

    yield "preparation", prepare
    for way in ways:
        copy = _COPIES / f"compare-{way.name}"
        yield f"{way.name}: mount", functools.partial(begin, way)
        if (copy / "below").exists():
            continue  # it is not mounted
        check = stage.check if way.has_daemon else stage.check_overlayfs
        for case in cases:
            yield f"{way.name}: {case.name}", functools.partial(check, case, copy)
        yield f"{way.name}: after a remount", functools.partial(again, way, copy)
        yield f"{way.name}: read-only", functools.partial(read_only, way)


def _keep(way: Way) -> None:
    copy = _mount(f"keep-{way.name}", way)
    _put(copy / "new", "new")
    _put(copy / "config.json", "changed")
    with (copy / "weights.bin").open("r+b") as file:
        file.seek(MIB)
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())
    (copy / "tokenizer").rename(copy / "words")
    (copy / "latest").unlink()
    (copy / "script.sh").chmod(0o700)
    before = tree_state(copy)
    _umount(copy)
    _mount(copy.name, way)
    told = differences(before, tree_state(copy))
    assert not told, told
    _umount(copy)
    equal((_MODEL / "config.json").read_text(), '{"hidden_size": 384}\n')


def _eight(way: Way) -> None:
    """Eight copies at once part where they are written, and share their pages where they may."""
    source = VOLUME / "weights"
    if not source.exists():
        source.mkdir()
        with (source / "weights").open("wb") as file:
            for number in range(_WEIGHTS // MIB):
                file.write(bytes([number]) * MIB)
    names = [f"eight-{way.name}-{number}" for number in range(8)]
    copies = [_mount(name, way, "ephemeral", source=source) for name in names]
    for copy in copies:
        _put(copy / "mine", copy.name)
    run("sync")
    _put(Path("/proc/sys/vm/drop_caches"), "3")
    before = _cached()
    for copy in copies:
        with (copy / "weights").open("rb") as file:
            for number in range(_WEIGHTS // MIB):
                assert file.read(MIB) == bytes([number]) * MIB, f"MiB {number} is wrong"
    sets = (_cached() - before) / _WEIGHTS
    for copy in copies:
        equal((copy / "mine").read_text(), copy.name)
        with (copy / "weights").open("r+b") as file:
            file.write(copy.name.encode())
    for copy in copies:
        with (copy / "weights").open("rb") as file:
            equal(file.read(len(copy.name)), copy.name.encode())
        _umount(copy)
    if way.name != "relayed":
        assert sets < 1.5, f"there were {sets:.1f} sets of pages"


def _cached() -> int:
    """Bytes of the page cache."""
    found = re.search(r"^Cached: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def _warm(way: Way) -> None:
    copy = _mount(f"warm-{way.name}", way, "ephemeral")
    report = json.loads(_cowfs("warm", "--json", copy).stdout)
    equal(report["errors"], [])
    assert report["resident_after"] >= report["bytes"] >= 4 * MIB, report
    _umount(copy)


def _killed_daemon(way: Way) -> None:
    """The next one goes on; where there can be none, the mount is dead and hides what is below."""
    copy = _mount(f"killed-{way.name}", way)
    _put(copy / "before", "kept")
    pid = _record(copy)["daemon_pid"]
    reader = os.open(copy / "weights.bin", os.O_RDONLY)
    equal(os.pread(reader, 4, 0), bytes(range(4)))
    os.kill(pid, signal.SIGKILL)
    if SURVIVES:
        _put(copy / "after", "kept, too")
        equal((copy / "before").read_text(), "kept")
        equal(os.pread(reader, 4, 4 * MIB - 4), bytes(range(252, 256)))
        _wait(SECONDS, lambda: _record(copy)["daemon_pid"] != pid, "the next daemon has a record")
    else:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for what, call in (
                ("a listing", lambda: os.listdir(copy)),
                ("a new file", lambda: _put(copy / "lost", "checkpoint")),
                ("a name below", lambda: os.stat(copy / "below")),
            ):
                got = outcome(call)
                # That the copy has no such name may be known to the kernel still.
                dead = (*DEAD, *(("ENOENT",) if "below" in what else ()))
                assert got in dead, f"{what} gives {got!r}"
            time.sleep(0.1)
    # Before FOPEN_NOFLUSH (Linux 5.16) a close asks the daemon, too.
    closed = outcome(os.close, reader)
    assert closed is None or (not SURVIVES and closed in DEAD), f"close(2) gives {closed!r}"
    _umount(copy)
    _mount(copy.name, way)
    equal((copy / "before").read_text(), "kept")
    equal((copy / "after").exists(), SURVIVES)
    _umount(copy)


def _killed_keeper(way: Way) -> None:
    """The daemon serves on, and the copy is put away at the end."""
    copy = _mount(f"keeper-{way.name}", way)
    record = _record(copy)
    os.kill(record["keeper_pid"], signal.SIGKILL)
    assert kernel.wait_for_end(record["keeper_pid"], SECONDS)
    _put(copy / "after", "kept")
    equal((copy / "config.json").read_text(), '{"hidden_size": 384}\n')
    _umount(copy)
    _mount(copy.name, way)
    equal((copy / "after").read_text(), "kept")
    _umount(copy)


def _upgrade(way: Way) -> None:
    copy = _mount(f"upgrade-{way.name}", way)
    _put(copy / "before", "kept")
    pid = _record(copy)["daemon_pid"]
    reader = os.open(copy / "weights.bin", os.O_RDONLY)
    result = _cowfs("upgrade", copy, check=False)
    equal(result.returncode, 0 if SURVIVES else 32)
    equal(_record(copy)["daemon_pid"] != pid, SURVIVES)
    equal(os.pread(reader, 4, 4 * MIB - 4), bytes(range(252, 256)))
    os.close(reader)
    _put(copy / "after", "kept, too")
    equal((copy / "before").read_text(), "kept")
    _umount(copy)


def _update(way: Way, package: Path) -> None:
    """The package of a newer version takes mounts over, or leaves them to the older one."""
    copy = _mount(f"update-{way.name}", way)
    _put(copy / "before", "kept")
    pid = _record(copy)["daemon_pid"]
    reader = os.open(copy / "weights.bin", os.O_RDONLY)
    subprocess.run(
        ["dpkg", "--install", "--force-unsafe-io", package],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=SECONDS,
    )
    record = _record(copy)
    equal(record["daemon_pid"] != pid, SURVIVES)
    equal(record["version"] in _cowfs("--version").stdout, SURVIVES)
    equal(os.pread(reader, 4, 4 * MIB - 4), bytes(range(252, 256)))
    os.close(reader)
    _put(copy / "after", "kept, too")
    equal((copy / "before").read_text(), "kept")
    _umount(copy)
    _mount(copy.name, way)
    equal((copy / "after").read_text(), "kept, too")
    assert _record(copy)["version"] in _cowfs("--version").stdout
    _umount(copy)


def _check() -> None:
    result = _cowfs("check", "--all", check=False)
    equal((result.returncode, result.stderr), (0, ""))

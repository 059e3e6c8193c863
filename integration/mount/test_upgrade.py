"""`cowfs upgrade`: another version takes a mount over, or says why not; the mount goes on."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from cowfs import __version__
from cowfs.overlay.vault import STATE_VERSION
from integration import kernel
from integration.command import Result, cowfs, one_error, run
from integration.mounts import RECORDS, MountCopy
from integration.otherversion import OtherVersion
from integration.takeoverload import Load, make_source

NEXT = "99.1"


@pytest.fixture
def other(tmp_path: Path) -> OtherVersion:
    return OtherVersion(tmp_path / "other", NEXT)


def upgrade(other: OtherVersion, *args: str | Path, check: bool = True) -> Result:
    return run(*other.command("upgrade", *args), check=check, cwd="/")


@pytest.mark.quick
def test_upgrade_and_the_way_back_are_not_noticed(
    mount_copy: MountCopy, xfs: Path, other: OtherVersion
) -> None:
    source = make_source(xfs / "source")
    root = mount_copy(source, None, "copy=upgraded")
    before = mount_copy.record(root)
    load = Load(root, source, 1)
    try:
        for _ in range(2):
            said = upgrade(other, root).stdout
            record = mount_copy.record(root)
            assert said == (
                f"{root} is served by cowfs {NEXT} (pid {record['daemon_pid']}), before it was "
                f"{before['version']}\n"
            )
            assert record["version"] == NEXT
            assert os.readlink(f"/proc/{record['daemon_pid']}/exe") == os.path.realpath(
                other.python
            )
            assert record["keeper_pid"] == before["keeper_pid"]
            cowfs("upgrade", root)
            assert mount_copy.record(root)["version"] == before["version"]
        reports = load.end()
    finally:
        load.kill()
    assert not [line for report in reports for line in report.complaints]
    assert all(report.rounds for report in reports)
    mount_copy.unmount(root)
    assert cowfs("check", "--store", before["store"], "upgraded").returncode == 0


def test_the_version_that_was_upgraded_to_comes_again_after_a_kill(
    mount_copy: MountCopy, model: Path, other: OtherVersion
) -> None:
    root = mount_copy(model)
    upgrade(other, root)
    pid = mount_copy.daemon_pid(root)
    os.kill(pid, 9)
    (root / "new").write_text("after the kill")
    mount_copy.wait_until_served(root, other_than=pid)
    record = mount_copy.record(root)
    assert record["version"] == NEXT


def test_a_version_of_the_future_is_no_obstacle_on_the_way_back(
    mount_plain: MountCopy, model: Path, other: OtherVersion
) -> None:
    # It knows an option that we do not, and says more of its mounts.
    until = r"(?:.|\n)*?"
    other.patch(
        "mount/options.py",
        rf"(class Options:{until}    read_only: bool = False\n)",
        r"\1    compress: bool = True\n",
    )
    other.patch(
        "mount/daemon.py", rf"(class Place:{until}    mount_id: int\n)", r"\1    moved: int = 7\n"
    )
    root = mount_plain.mountpoint()
    run(*other.command("mount", "-o", "share_min=5M", model, root), cwd="/")
    (root / "new").write_text("of the future")
    for _ in range(2):
        assert f"is served by cowfs {__version__}" in cowfs("upgrade", root).stdout
        assert (root / "new").read_text() == "of the future"
        assert f"is served by cowfs {NEXT}" in upgrade(other, root).stdout
    assert mount_plain.record(root)["options"] == "share_min=5M"


def test_all_mounts_are_upgraded_at_once(
    mount_copy: MountCopy, model: Path, other: OtherVersion
) -> None:
    # Those of this test: it sees no other ones.
    roots = [mount_copy(model), mount_copy(model)]
    devices = [mount_copy.record(root)["device"] for root in roots]
    seen = RECORDS.with_name(f"cowfs-{os.getpid()}")
    seen.mkdir(mode=0o700)
    try:
        for device in devices:
            for suffix in ("json", "sock"):
                os.link(RECORDS / f"{device}.{suffix}", seen / f"{device}.{suffix}")
        said = run(
            *kernel.in_own_mounts('mount --bind "$0" "$1" && shift && exec "$@"'),
            *(seen, RECORDS, *other.command("upgrade", "--all")),
            cwd="/",
        ).stdout
    finally:
        shutil.rmtree(seen)
    for root in roots:
        assert f"{root} is served by cowfs {NEXT}" in said
        assert mount_copy.record(root)["version"] == NEXT


REFUSALS: dict[str, tuple[tuple[str, str, str], str]] = {
    "another-state": (
        ("overlay/vault.py", r"STATE_VERSION = \d+", "STATE_VERSION = 77"),
        "cowfs 99.1 cannot take over from the version that serves: its state has version "
        f"{STATE_VERSION}, and "
        "this one reads 77",
    ),
    "does-not-start": (
        ("mount/daemon.py", r"import faulthandler\n", "import faulthandler\nraise SystemExit(3)\n"),
        "the new version does not start (exit code 3): see the log",
    ),
    "dies-when-asked": (
        ("mount/daemon.py", r"        Place\.from_fd\(held\[PLACE\]\)\n", "        os.abort()\n"),
        "the new version does not start (killed by signal 6): see the log",
    ),
    "cannot-serve": (
        (
            "mount/daemon.py",
            r"        place = Place\.from_fd",
            "        os.abort()\n        place = Place.from_fd",
        ),
        "it does not serve: the last version does again, see the log",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_version_that_cannot_take_over_leaves_the_last_one_serving(
    mount_copy: MountCopy, model: Path, other: OtherVersion, refusal: str
) -> None:
    patch, why = REFUSALS[refusal]
    other.patch(*patch)
    root = mount_copy(model)
    before = mount_copy.record(root)
    with (root / "new").open("w+") as file:
        file.write("before")
        refused = upgrade(other, root, check=False)
        assert refused.returncode == 32
        assert one_error(refused) == (
            f"cowfs: {root} is not upgraded: {why}; cowfs {before['version']} serves it as before"
        )
        file.write(" and after")
    assert (root / "new").read_text() == "before and after"
    assert mount_copy.record(root)["version"] == before["version"]
    upgrade_to_itself = cowfs("upgrade", root)
    assert f"is served by cowfs {before['version']}" in upgrade_to_itself.stdout


WRITEBACK_CACHE = 1 << 16


class Agreement:
    """What the ledger of a mount says that was agreed on at INIT, a struct wire_init_out."""

    _AT = 136  # see channel/ledger.c
    FLAGS, MAX_PAGES = (12, "<I"), (28, "<H")

    def __init__(self, keeper: int) -> None:
        held = Path(f"/proc/{keeper}/fd").iterdir()
        (self._ledger,) = [fd for fd in held if os.readlink(fd).startswith("/memfd:cowfs-ledger")]
        assert self.read((0, "<I")) == 7  # of FUSE

    def read(self, field: tuple[int, str]) -> int:
        with self._ledger.open("rb") as file:
            data = os.pread(file.fileno(), struct.calcsize(field[1]), self._AT + field[0])
        return int(struct.unpack(field[1], data)[0])

    def pretend(self, field: tuple[int, str], value: int) -> None:
        with self._ledger.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), struct.pack(field[1], value), self._AT + field[0])


def test_what_was_agreed_on_with_the_kernel_and_is_not_known_is_refused(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy(model)
    before = mount_copy.record(root)
    agreement = Agreement(before["keeper_pid"])
    flags = agreement.read(Agreement.FLAGS)
    agreement.pretend(Agreement.FLAGS, flags | WRITEBACK_CACHE)
    refused = cowfs("upgrade", root, check=False)
    assert refused.returncode == 32
    version = before["version"]
    assert one_error(refused) == (
        f"cowfs: {root} is not upgraded: cowfs {version} cannot take over from the version that "
        "serves: it has agreed with the kernel on what this one does not do (INIT flags 0x10000); "
        f"cowfs {version} serves it as before"
    )
    assert mount_copy.record(root) == before
    agreement.pretend(Agreement.FLAGS, flags)
    cowfs("upgrade", root)
    assert mount_copy.record(root)["daemon_pid"] != before["daemon_pid"]


def test_larger_reads_than_this_version_agrees_on_are_served_as_agreed(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy(model)
    before = mount_copy.record(root)
    agreement = Agreement(before["keeper_pid"])
    agreement.pretend(Agreement.MAX_PAGES, 4 * agreement.read(Agreement.MAX_PAGES))
    cowfs("upgrade", root)
    assert mount_copy.record(root)["daemon_pid"] != before["daemon_pid"]
    for path in (file for file in model.rglob("*") if file.is_file()):
        assert (root / path.relative_to(model)).read_bytes() == path.read_bytes()


def test_upgrade_of_what_is_no_mount(mount_plain: MountCopy, model: Path, tmp_path: Path) -> None:
    nothing = cowfs("upgrade", tmp_path, check=False)
    assert nothing.returncode == 1
    assert f"{tmp_path} is not mounted: cowfs list shows what is" in one_error(nothing)
    root = mount_plain(model)
    mount_plain.orphan(root)
    dead = cowfs("upgrade", root, check=False)
    assert dead.returncode == 1
    assert f"mount it again after: cowfs umount {root}" in one_error(dead)


def test_only_root_may_upgrade(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model)
    socket = RECORDS / f"{mount_copy.record(root)['device']}.sock"
    assert socket.exists()
    refused = run(
        *("setpriv", "--reuid=65534", "--clear-groups", "python3", "-c"),
        f"import socket; socket.socket(1, 5).connect({str(socket)!r})",
        check=False,
    )
    assert "PermissionError" in refused.stderr
    assert mount_copy.record(root)["version"]

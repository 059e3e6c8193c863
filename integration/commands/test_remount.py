"""`cowfs mount --remount`: for a mounted copy, what is wanted of it as a whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.command import COWFS, Result, run
from integration.mounts import MountCopy


def shown(path: Path) -> set[str]:
    """The options that the mount table shows."""
    found = run("findmnt", "-no", "OPTIONS", "--mountpoint", path).stdout
    return set(found.strip().split(","))


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_what_is_not_spoken_of_is_the_default_again(
    engine: str, model: Path, mount_plain: MountCopy, cowfs: Callable[..., Result]
) -> None:
    root = mount_plain(model, None, f"engine={engine}", "noexec", "noatime", "suid")
    again = cowfs("mount", "--remount", "-o", "ro,nodiratime", model, root)
    flags = "ro, nosuid, nodev, nodiratime, relatime"
    assert (again.stdout, again.stderr) == (f"{root} is {flags} from now on\n", "")
    assert shown(root) >= set(flags.split(", "))
    assert not {"noexec", "noatime"} & shown(root)
    again = cowfs("mount", "--remount", "-o", "ro,nodiratime", model, root)
    assert (again.stdout, again.stderr) == ("", "")
    cowfs("mount", "--remount", model, root)
    (root / "new").write_text("written")


def test_what_takes_a_new_mount_is_said_and_the_rest_is_done(
    model: Path, mount_plain: MountCopy, cowfs: Callable[..., Result]
) -> None:
    root = mount_plain(model, None, "clone=open", "ro")
    done = cowfs("mount", "--remount", "-o", "rw,noexec,inplace=*.h5", model, root, check=False)
    anew = f"needs a new mount: unmount it with cowfs umount {root}, and mount it again"
    assert done.returncode == 32
    assert done.stderr.splitlines() == [
        f"cowfs: {root} goes on with clone=open: to be without clone {anew}",
        f"cowfs: {root} goes on without inplace: inplace=*.h5 {anew}",
        f"cowfs: {root} goes on read-only, as it was started: rw {anew}",
    ]
    assert shown(root) >= {"ro", "noexec"}


def test_a_remount_by_mount_answers_every_option_in_words(
    model: Path, mount_plain: MountCopy
) -> None:
    """Among them the one whose field has another name than the option."""
    root = mount_plain(model, None, "inplace=*.h5")
    helper = (sys.executable, "-I", "-m", "cowfs.mounthelper", model, root, "-o")
    refused = run(*helper, "remount,ro,inplace=*.pt", check=False)
    assert (refused.returncode, refused.stderr) == (
        32,
        f"mount.cowfs: {root}: a remount cannot change inplace: unmount the copy, and mount it "
        "again\n",
    )
    run(*helper, "remount,ro,engine=auto,inplace=*.h5")
    assert "ro" in shown(root)


def test_who_may_not_mount_is_told_so(model: Path, mount_plain: MountCopy) -> None:
    root = mount_plain(model)
    command = ("setpriv", "--bounding-set=-sys_admin", COWFS, "mount", "--remount", "-o", "ro")
    done = run(*command, model, root, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cowfs: no permission to mount: ")
    assert "rw" in shown(root)


def test_what_is_no_copy_is_not_remounted(
    model: Path, tmp_path: Path, cowfs: Callable[..., Result]
) -> None:
    done = cowfs("mount", "--remount", "-o", "ro", model, tmp_path, check=False)
    assert (done.returncode, done.stderr) == (
        32,
        f"cowfs: {tmp_path} is not a mounted copy: there is nothing to remount\n",
    )

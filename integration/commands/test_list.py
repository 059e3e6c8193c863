"""`cowfs list`: what a person sees of copies, at 80 columns and elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cowfs import __version__
from integration import kernel, screens
from integration.command import COWFS, Result, cowfs, run
from integration.host import container
from integration.mounts import MountCopy
from integration.screens import on_terminal
from integration.volumes import MIB, Volume, remove_tree


def listed(volume: Volume, *options: str) -> dict[str, dict[str, Any]]:
    """The copies of a volume, by name."""
    store = volume.mountpoint / ".cowfs"
    rows = json.loads(cowfs("list", "--json", "--store", store, *options).stdout)
    return {row["name"]: row for row in rows}


def make_source(path: Path, size: int = MIB) -> Path:
    """A source with a file of this size at its top, and one further down."""
    (path / "deep/below").mkdir(parents=True)
    (path / "weights").write_bytes(os.urandom(size))
    (path / "deep/below/vocab").write_bytes(os.urandom(5000))
    return path


@pytest.fixture
def volume_(small_xfs: Callable[..., Volume]) -> Volume:
    """A volume for the test alone: nobody else has a copy there."""
    return small_xfs(400)


def test_states_of_a_copy(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model")
    for name, options in (
        ("writable", "rw"),
        ("readonly", "ro"),
        ("passing", "ephemeral"),
        ("away", "rw"),
        ("overlaid", "engine=overlay,ro"),
    ):
        mountpoint = mount_plain(source, None, f"copy={name},{options}")
        if name == "away":
            mount_plain.unmount(mountpoint)
    states = {name: row["state"] for name, row in listed(volume_).items()}
    assert states == {
        "writable": "rw",
        "readonly": "ro",
        "passing": "rw, ephemeral",
        "away": "not mounted",
        "overlaid": "ro",
    }
    mounted = listed(volume_, "--mounted")
    assert sorted(mounted) == ["overlaid", "passing", "readonly", "writable"]
    assert {row["version"] for row in mounted.values()} == {__version__}
    assert listed(volume_)["away"]["version"] is None
    run("mount", "-i", "-o", "remount,ro", mounted["writable"]["mountpoint"])
    assert listed(volume_)["writable"]["state"] == "ro"


def test_a_source_that_moved_on_or_is_gone(mount_plain: MountCopy, volume_: Volume) -> None:
    top, below, gone = (make_source(volume_.mountpoint / name) for name in ("top", "below", "gone"))
    for source in (top, below, gone):
        mount_plain.unmount(mount_plain(source, None, f"copy={source.name}"))
    assert {row["state"] for row in listed(volume_, "--sources").values()} == {"not mounted"}
    # In place, so that the directory's own times stay.
    with (top / "weights").open("r+b") as file:
        file.write(b"x")
    with (below / "deep/below/vocab").open("r+b") as file:
        file.write(b"x")
    remove_tree(gone)
    states = {name: row["state"] for name, row in listed(volume_).items()}
    assert states == {
        "top": "source moved on",
        "below": "not mounted",  # nobody walks all of a source for a list
        "gone": "source gone",
    }
    rows = listed(volume_, "--sources")
    assert rows["below"]["state"] == "source moved on"
    assert [rows[name]["source_state"] for name in ("top", "gone")] == ["moved on", "gone"]


@contextmanager
def unanswered(path: Path) -> Iterator[None]:
    """A filesystem over a directory whose server says nothing, as that of a dead network."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    try:
        mount = ("mount", "-i", "-t", "fuse", "-o", options, "dead", path)
        subprocess.run(mount, pass_fds=[device], check=True)
        yield
    finally:
        os.close(device)  # whoever waits for an answer is told that there is none
        kernel.detach(os.fspath(path))


@pytest.mark.parametrize("where", ["", "model"])
def test_what_is_mounted_over_a_source_is_not_asked(
    mount_plain: MountCopy, volume_: Volume, where: str
) -> None:
    source = make_source(volume_.mountpoint / "models/model")
    store = volume_.mountpoint / ".cowfs"
    mount_plain.unmount(mount_plain(source, None, "copy=job"))
    mount_plain.unmount(mount_plain(source / "deep", None, "copy=passing,ephemeral"))
    with unanswered(volume_.mountpoint / "models" / where):
        row = listed(volume_)["job"]
        assert (row["state"], row["source_state"]) == ("source hidden", "hidden")
        assert row["frees"] == 0  # who shares the blocks of the template is not known
        asked = on_terminal(COWFS, "rm", "--store", store, "job", answer="n\n").text
        assert f"Its source {source} is hidden" in " ".join(asked.split())
        assert "removed 1 template and" in cowfs("gc", "--store", store).stdout
        assert "discarded copy job" in cowfs("rm", "--store", store, "job").stdout
    assert (source / "weights").stat().st_size == MIB


def test_what_is_mounted_into_a_source_is_not_asked(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    mount_plain.unmount(mount_plain(source, None, "copy=job"))
    other = volume_.mountpoint / "other"
    other.write_text("of another size")
    run("mount", "--bind", other, source / "weights")
    try:
        with unanswered(source / "deep"):
            row = listed(volume_)["job"]
    finally:
        run("umount", source / "weights")
    assert row["state"] == "not mounted"


def test_last_use_is_the_unmount_and_survives_a_look(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    mountpoint = mount_plain(source, None, "copy=used")
    lock = volume_.mountpoint / ".cowfs/copies/used/lock"
    os.utime(lock, (1, 1))
    before = time.time() - 1
    mount_plain.unmount(mountpoint)
    assert listed(volume_)["used"]["last_mounted"] >= before
    os.utime(lock, (10**9, 10**9))
    cowfs("check", "--store", volume_.mountpoint / ".cowfs", "used")
    assert listed(volume_)["used"]["last_mounted"] == 10**9
    mount_plain(source, mountpoint, "copy=used")
    assert listed(volume_)["used"]["last_mounted"] >= before


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_what_a_copy_frees_is_what_it_has_alone(
    mount_plain: MountCopy, volume_: Volume, engine: str
) -> None:
    source = make_source(volume_.mountpoint / "model", 8 * MIB)
    for name in ("one", "two"):
        mountpoint = mount_plain(source, None, f"copy={name},engine={engine}")
        with (mountpoint / "weights").open("r+b") as file:
            file.write(bytes(MIB))
            os.fsync(file.fileno())
        mount_plain.unmount(mountpoint)
    # The rest is the source's, too.
    rows = listed(volume_)
    assert [rows[name]["frees"] for name in ("one", "two")] == [MIB, MIB]
    remove_tree(source)
    # Now it is the template's alone, which two copies need.
    rows = listed(volume_)
    assert [rows[name]["frees"] for name in ("one", "two")] == [MIB, MIB]
    cowfs("rm", "--store", volume_.mountpoint / ".cowfs", "one")
    assert 9 * MIB <= listed(volume_)["two"]["frees"] < 9 * MIB + 65536
    assert listed(volume_)["two"]["frees_exact"]


def test_a_large_template_is_looked_at_on_demand(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model", 8 * MIB)
    for index in range(2000):
        (source / f"part{index}").touch()
    mount_plain.unmount(mount_plain(source, None, "copy=large"))
    remove_tree(source)
    store = volume_.mountpoint / ".cowfs"
    row = listed(volume_)["large"]
    assert (row["frees"], row["frees_exact"]) == (0, False)
    assert " >0 " in cowfs("list", "--store", store).stdout
    row = listed(volume_, "--sources")["large"]
    assert row["frees"] >= 8 * MIB
    assert row["frees_exact"]


def test_a_mount_that_nobody_serves_is_listed(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model")
    mountpoint = mount_plain(source, None, "copy=orphan")
    mount_plain.orphan(mountpoint)
    rows = [
        row
        for row in json.loads(cowfs("list", "--json").stdout)
        if row["mountpoint"] == str(mountpoint)
    ]
    assert [(row["name"], row["source"], row["state"]) for row in rows] == [
        (None, str(source), "rw")
    ]


def as_user(*args: str | os.PathLike[str], check: bool = True) -> Result:
    """A command as an ordinary user calls it."""
    return run("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *args, check=check)


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_an_ordinary_user_sees_what_is_mounted(
    mount_plain: MountCopy, volume_: Volume, engine: str
) -> None:
    source = make_source(volume_.mountpoint / "model")
    mountpoint = mount_plain(source, None, f"copy=hidden,ro,engine={engine}")
    mount_plain.unmount(mount_plain(source, None, "copy=kept"))
    result = as_user(COWFS, "list", "--json")
    [row] = [row for row in json.loads(result.stdout) if row["mountpoint"] == str(mountpoint)]
    assert (row["source"], row["state"], row["engine"]) == (str(source), "ro", engine)
    assert (row["name"], row["store"], row["options"]) == (None, None, None)
    assert "hidden" not in result.stdout
    assert "kept" not in result.stdout
    [warning] = result.stderr.splitlines()
    assert "only root may look into the stores" in warning
    refused = as_user(COWFS, "list", "--store", volume_.mountpoint / ".cowfs", check=False)
    assert refused.returncode == 1


# --- screens --------------------------------------------------------------------------------------


@pytest.fixture
def place(volume_: Volume) -> Iterator[Callable[..., list[str | os.PathLike[str]]]]:
    """`place(*args)`: a command as it is called where the volume is /mnt/data, and /mnt is else
    empty, so that screens are the same everywhere."""
    with container() as process:
        inside = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--wdns=/"]
        script = (
            "mount -t tmpfs tmpfs /mnt && mkdir -p /mnt/data /mnt/jobs/train-42 /mnt/jobs/eval "
            '&& mount --bind "$0" /mnt/data'
        )
        run(*inside, "sh", "-c", script, volume_.mountpoint)
        yield lambda *args: [*inside, *args]
        mounted = [mount for mount in kernel.mounts(process.pid) if kernel.is_cowfs(mount)]
        for mount in mounted:
            if mount.mountpoint.startswith("/mnt/"):
                run(*inside, COWFS, "umount", mount.mountpoint)


def masked(text: str) -> str:
    """Without the ids of templates, which are others each time."""
    return re.sub(r"\b[0-9a-f]{8}\b", "0123abcd", text)


@pytest.fixture
def furnished(
    volume_: Volume, place: Callable[..., list[str | os.PathLike[str]]]
) -> Callable[..., list[str | os.PathLike[str]]]:
    """The same, with copies in many states."""
    models = volume_.mountpoint / "models"
    instruct = make_source(models / "meta-llama/Meta-Llama-3-70B-Instruct", 4 * MIB)
    small = make_source(models / "mini")
    gone = make_source(models / "mistralai/Mistral-7B-v0.1", 3 * MIB)
    root = "/mnt/data/models"
    jobs = "/mnt/jobs"
    kept = {
        "finetune-of-the-third-of-november-with-longer-contexts": instruct,
        "mini": small,
        "mistral": gone,
    }
    for name, source in kept.items():
        path = f"{root}/{source.relative_to(models)}"
        run(*place(COWFS, "mount", "-o", f"copy={name}", path, f"{jobs}/eval"))
        with Path(f"/proc/{_pid(place)}/root{jobs}/eval/weights").open("r+b") as file:
            file.write(bytes(65536))
            os.fsync(file.fileno())
        run(*place(COWFS, "umount", f"{jobs}/eval"))
        lock = volume_.mountpoint / ".cowfs/copies" / name / "lock"
        long_ago = time.time() - 3 * 86400 - 60
        os.utime(lock, (long_ago, long_ago))
    remove_tree(gone)
    (small / "more").touch()
    instruct_path = f"{root}/{instruct.relative_to(models)}"
    run(*place(COWFS, "mount", "-o", "ephemeral,copy=train-42", instruct_path, f"{jobs}/train-42"))
    run(*place(COWFS, "mount", "-o", "ro,copy=eval", instruct_path, f"{jobs}/eval"))
    return place


def _pid(place: Callable[..., list[str | os.PathLike[str]]]) -> str:
    [pid] = re.findall(r"/proc/(\d+)/", str(place()[1]))
    return str(pid)


def test_the_screen_at_80_columns(
    furnished: Callable[..., list[str | os.PathLike[str]]],
) -> None:
    shown = on_terminal(*furnished(COWFS, "list", "--store", "/mnt/data/.cowfs"))
    assert max(map(len, shown.text.splitlines())) <= 80
    screens.compare(__file__, "list-80", masked(shown.text))
    wide = on_terminal(*furnished(COWFS, "list", "--store", "/mnt/data/.cowfs"), columns=160)
    screens.compare(__file__, "list-160", masked(wide.text))


def test_nothing_is_cut_where_there_is_no_terminal(
    furnished: Callable[..., list[str | os.PathLike[str]]],
) -> None:
    shown = run(*furnished(COWFS, "list", "--store", "/mnt/data/.cowfs"), env={"COLUMNS": "40"})
    screens.compare(__file__, "list-file", masked(shown.stdout))
    assert "…" not in shown.stdout


def test_templates_that_nobody_needs_are_told(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model", 8 * MIB)
    mount_plain.unmount(mount_plain(source, None, "copy=passing,ephemeral"))
    remove_tree(source)
    store = volume_.mountpoint / ".cowfs"
    shown = on_terminal(COWFS, "list", "--store", store).text
    assert f"{store}: 1 template that no copy needs, 8.0 MiB of its own" in " ".join(shown.split())

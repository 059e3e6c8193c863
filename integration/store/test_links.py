"""Links that lead out of a source: what becomes of them in copies, clones and imports.

Which of them are followed is in tests/trees/test_links.py, what programs make of a cache of
huggingface_hub in integration/programs/test_hub.py.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from cowfs.system import syscalls
from integration.command import COWFS, cowfs, run
from integration.mounts import MountCopy
from integration.trees import tree_state
from integration.volumes import MIB, Volume

HASH = "ab" * 32
WEIGHTS = os.urandom(2 * MIB)
CONFIG = b'{"hidden_size": 384}\n'
USER = 1234


def make_cache(hub: Path) -> Path:
    """A cache with one model, as huggingface_hub has it; returns the snapshot."""
    model = hub / "models--some--model"
    snapshot = model / "snapshots" / "rev"
    (snapshot / "onnx").mkdir(parents=True)
    (model / "blobs").mkdir()
    shared = hub / "blobs" / "ab" / HASH
    shared.parent.mkdir(parents=True)
    shared.write_bytes(WEIGHTS)
    (model / "blobs" / "config").write_bytes(CONFIG)
    (model / "blobs" / "weights").symlink_to(f"../../blobs/ab/{HASH}")
    (snapshot / "config.json").symlink_to("../../blobs/config")
    (snapshot / "model.safetensors").symlink_to("../../blobs/weights")
    (snapshot / "onnx" / "config.json").symlink_to("../../../blobs/config")
    return snapshot


@pytest.fixture
def snapshot(xfs: Path) -> Path:
    return make_cache(xfs / "hub")


@pytest.fixture
def store(volume: Volume) -> Path:
    return volume.mountpoint / ".cowfs"


def mounted(source: Path, mountpoint: Path, *options: str) -> str:
    """Mount, and return what is said on stderr."""
    given = [arg for option in options for arg in ("-o", option)]
    return cowfs("mount", *given, source, mountpoint).stderr


def contents(root: Path) -> dict[str, bytes]:
    """The regular files, and what is in them. Fails for anything else but directories."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
        if stat.S_ISREG(mode):
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


EXPECTED = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "onnx/config.json": CONFIG}


def physical(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [extent.physical for extent in syscalls.fiemap(file.fileno())]


def templates(store: Path) -> set[str]:
    return set(os.listdir(store / "templates"))


# --- mounts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_snapshot_of_a_cache_is_a_copy_of_its_files(
    snapshot: Path, mount_plain: MountCopy, store: Path, engine: str
) -> None:
    before = tree_state(snapshot.parent.parent.parent)
    copy = mount_plain.mountpoint()
    assert mounted(snapshot, copy, "copy=model", f"engine={engine}") == ""
    assert contents(copy) == EXPECTED
    with (copy / "model.safetensors").open("r+b") as file:
        file.write(b"changed")
    (copy / "config.json").write_bytes(b"{}")
    assert (copy / "onnx" / "config.json").read_bytes() == CONFIG, "a file of its own"
    assert tree_state(snapshot.parent.parent.parent) == before, "nothing reaches the source"
    mount_plain.unmount(copy)
    assert cowfs("check", "--store", store, "model").stdout.endswith("clean\n")


def test_the_files_share_their_blocks_with_the_blobs(
    snapshot: Path, mount_plain: MountCopy, store: Path
) -> None:
    mount_plain(snapshot)
    [template] = templates(store)
    tree = store / "templates" / template / "tree"
    shared = physical((snapshot / "model.safetensors").resolve())
    assert physical(tree / "model.safetensors") == shared
    assert json.loads((tree.parent / "manifest.json").read_text())["links"] == "auto"


def test_a_link_with_a_name_that_nothing_can_have_stays_one(
    snapshot: Path, mount_plain: MountCopy
) -> None:
    odd = f"../../blobs/{'x' * 300}"
    (snapshot / "odd").symlink_to(odd)
    copy = mount_plain.mountpoint()
    assert "a link leads out of the source" in mounted(snapshot, copy)
    assert os.readlink(copy / "odd") == odd
    assert (copy / "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize("place", [".", ".."])
def test_all_revisions_and_the_model_are_copies_of_files_too(
    snapshot: Path, mount_plain: MountCopy, place: str
) -> None:
    """The blob of the model is a link to one that models share."""
    copy = mount_plain(snapshot.parent / place)
    revision = copy / "rev" if place == "." else copy / "snapshots" / "rev"
    for name, data in EXPECTED.items():
        path = Path(os.path.realpath(revision / name))
        assert path.is_relative_to(copy)
        assert path.read_bytes() == data


def test_whole_cache_is_mounted_as_it_is(snapshot: Path, mount_plain: MountCopy) -> None:
    hub = snapshot.parents[2]
    copy = mount_plain.mountpoint()
    assert mounted(hub, copy) == ""
    assert tree_state(copy) == tree_state(hub)


def test_unchanged_copy_follows_blobs_and_links_that_change(
    snapshot: Path, mount_plain: MountCopy, store: Path
) -> None:
    copy = mount_plain(snapshot, None, "copy=model")
    mount_plain.unmount(copy)
    first = templates(store)
    (snapshot / "config.json").resolve().write_bytes(b"a blob that somebody has changed")
    mount_plain(snapshot, copy, "copy=model")
    assert (copy / "config.json").read_bytes() == b"a blob that somebody has changed"
    mount_plain.unmount(copy)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/weights")
    mount_plain(snapshot, copy, "copy=model")
    assert (copy / "config.json").read_bytes() == WEIGHTS
    mount_plain.unmount(copy)
    assert not first & templates(store), "no copy needs it any more"
    cowfs("gc", "--store", store)
    assert len(templates(store)) == 1
    cowfs("rm", "--store", store, "model")
    assert not templates(store), "no copy needs it any more"


def test_copy_with_changes_goes_on_while_its_blobs_are_as_they_were(
    snapshot: Path, mount_plain: MountCopy
) -> None:
    copy = mount_plain(snapshot, None, "copy=model")
    (copy / "config.json").write_bytes(b"{}")
    mount_plain.unmount(copy)
    assert mounted(snapshot, copy, "copy=model") == ""
    mount_plain.unmount(copy)
    (snapshot / "model.safetensors").resolve().write_bytes(b"new weights")
    assert "the source has moved on since" in mounted(snapshot, copy, "copy=model")
    assert (copy / "model.safetensors").read_bytes() == WEIGHTS


def test_keep_keeps_all_links_and_each_way_has_its_template(
    snapshot: Path, mount_plain: MountCopy, store: Path
) -> None:
    copy = mount_plain.mountpoint()
    assert mounted(snapshot, copy, "ephemeral", "links=keep") == ""
    assert tree_state(copy) == tree_state(snapshot)
    other = mount_plain(snapshot, None, "ephemeral")
    assert contents(other) == EXPECTED
    assert len(templates(store)) == 2
    for mountpoint in (copy, other):
        mount_plain.unmount(mountpoint)
    cowfs("gc", "--store", store)
    assert len(templates(store)) == 2, "the source is as both of them have it"
    (snapshot / "model.safetensors").resolve().write_bytes(b"new weights")
    cowfs("gc", "--store", store)
    assert len(templates(store)) == 1, "the links are as they were"


def test_unchanged_copy_becomes_one_with_other_links_and_a_changed_one_stays(
    snapshot: Path, mount_plain: MountCopy
) -> None:
    copy = mount_plain(snapshot, None, "copy=model", "links=keep")
    assert (copy / "config.json").is_symlink()
    mount_plain.unmount(copy)
    mount_plain(snapshot, copy, "copy=model")
    assert contents(copy) == EXPECTED
    (copy / "config.json").write_bytes(b"{}")
    mount_plain.unmount(copy)
    said = mounted(snapshot, copy, "copy=model", "links=keep")
    assert said.startswith(
        "cowfs: warning: the copy model has changes and stays as it was made, with links=auto"
    )
    assert (copy / "model.safetensors").read_bytes() == WEIGHTS
    mount_plain.unmount(copy)
    assert mounted(snapshot, copy, "copy=model") == "", "nobody has asked for other links"


def test_other_links_out_of_the_source_are_warned_about_when_it_is_sealed(
    model: Path, mount_plain: MountCopy
) -> None:
    for name in ("one", "two"):
        (model / name).symlink_to("../../elsewhere")
    copy = mount_plain.mountpoint()
    said = mounted(model, copy, "ephemeral")
    assert said.startswith(
        "cowfs: warning: 2 links lead out of the source and stay links, such as "
        f"{model}/one -> ../../elsewhere; what is written through"
    )
    assert said.count("\n") == 1
    assert "-o links=follow" in said
    assert os.readlink(copy / "one") == "../../elsewhere"
    mount_plain.unmount(copy)
    assert mounted(model, copy, "ephemeral") == "", "once for a template"


# --- follow ---------------------------------------------------------------------------------------


@pytest.fixture
def planted(xfs: Path) -> Path:
    """A directory of a user's, with links to what is this user's, and to what is not."""
    source = xfs / "source"
    source.mkdir()
    secret = xfs / "secret"
    secret.mkdir(mode=0o700)
    (secret / "of root").write_text("nobody else may read it")
    (xfs / "mine").write_text("mine")
    (xfs / "mine").chmod(0o640)
    (xfs / "weights").write_text("given by root")
    (xfs / "weights").chmod(0o600)
    for name, target in (
        ("mine", "../mine"),
        ("secret", "../secret/of root"),
        ("shadow", "/etc/shadow"),
        ("disk", "/dev/null"),
        ("all", "/"),
        ("nothing", "../nothing"),
    ):
        (source / name).symlink_to(target)
    for path in (xfs / "mine", source, *source.iterdir()):
        os.chown(path, USER, USER, follow_symlinks=False)
    (source / "weights").symlink_to("../weights")
    closed = xfs / "closed"
    closed.mkdir(mode=0o700)
    (closed / "mine").write_text("in a directory that is closed to its owner")
    os.chown(closed / "mine", USER, USER)
    (source / "closed").symlink_to("../closed/mine")
    os.chown(source / "closed", USER, USER, follow_symlinks=False)
    return source


def test_follow_gives_nobody_what_the_owner_of_a_link_does_not_own(
    planted: Path, mount_plain: MountCopy
) -> None:
    copy = mount_plain.mountpoint()
    said = mounted(planted, copy, "links=follow")
    assert said.startswith("cowfs: warning: 6 links lead out of the source")
    assert said.count("\n") == 1
    for name in ("secret", "shadow", "disk", "all", "nothing", "closed"):
        assert os.readlink(copy / name) == os.readlink(planted / name)
    assert not (copy / "mine").is_symlink()
    assert (copy / "mine").read_text() == "mine"
    given = (copy / "weights").lstat()
    assert (given.st_uid, stat.S_IFMT(given.st_mode)) == (0, stat.S_IFREG)
    user = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    assert run("setpriv", *user, "cat", copy / "mine").stdout == "mine"
    refused = run("setpriv", *user, "cat", copy / "weights", check=False)
    assert refused.returncode != 0, "owner and mode are those of what the link leads to"


def test_follow_sees_when_the_file_behind_a_link_changes(
    planted: Path, mount_plain: MountCopy
) -> None:
    copy = mount_plain(planted, None, "copy=model", "links=follow")
    mount_plain.unmount(copy)
    (planted / "mine").resolve().write_text("changed")
    mount_plain(planted, copy, "copy=model", "links=follow")
    assert (copy / "mine").read_text() == "changed"


def test_follow_does_not_leave_the_volume_of_a_mount_and_does_for_an_import(
    xfs: Path, outside: Path, mount_plain: MountCopy
) -> None:
    (outside / "file").write_text("on another volume")
    source = xfs / "source"
    source.mkdir()
    (source / "link").symlink_to(outside / "file")
    copy = mount_plain.mountpoint()
    assert "(on another volume)" in mounted(source, copy, "links=follow")
    assert (copy / "link").is_symlink()
    assert cowfs("import", "--links=follow", source, xfs / "imported").stderr == ""
    assert contents(xfs / "imported") == {"link": b"on another volume"}
    assert "(on another volume)" in cowfs("clone", "--links=follow", source, xfs / "a").stderr
    cowfs("clone", "--links=follow", "--reflink=auto", source, xfs / "b")
    assert contents(xfs / "b") == {"link": b"on another volume"}


# --- clone and import -----------------------------------------------------------------------------

TOOLS = pytest.mark.parametrize("tool", ["clone", "import"])


@TOOLS
def test_a_snapshot_becomes_files(snapshot: Path, xfs: Path, tool: str) -> None:
    assert cowfs(tool, snapshot, xfs / "plain").stderr == ""
    assert contents(xfs / "plain") == EXPECTED
    shared = physical((snapshot / "model.safetensors").resolve())
    assert physical(xfs / "plain" / "model.safetensors") == shared


@TOOLS
def test_keep_copies_the_links(snapshot: Path, xfs: Path, tool: str) -> None:
    assert cowfs(tool, "--links=keep", snapshot, xfs / "plain").stderr == ""
    assert tree_state(xfs / "plain") == tree_state(snapshot)


@TOOLS
def test_other_links_are_warned_about(model: Path, xfs: Path, tool: str) -> None:
    (model / "one").symlink_to("/elsewhere")
    said = cowfs(tool, model, xfs / "plain").stderr
    assert said.startswith("cowfs: warning: a link leads out of the source")
    assert "--links=follow" in said
    assert tree_state(xfs / "plain") == tree_state(model)


def test_one_file_of_a_snapshot_is_cloned_as_a_file(snapshot: Path, xfs: Path) -> None:
    cowfs("clone", snapshot / "model.safetensors", xfs / "weights")
    cowfs("clone", snapshot / "onnx" / "config.json", xfs / "config")
    assert not (xfs / "weights").is_symlink()
    assert (xfs / "weights").read_bytes() == WEIGHTS
    assert (xfs / "config").read_bytes() == CONFIG
    cowfs("clone", "--links=keep", snapshot / "model.safetensors", xfs / "link")
    assert os.readlink(xfs / "link") == "../../blobs/weights"


def test_one_link_that_leads_out_is_told(xfs: Path) -> None:
    (xfs / "file").touch()
    (xfs / "source").mkdir()
    link = xfs / "source" / "link"
    link.symlink_to("../file")
    (xfs / "source" / "near").symlink_to("link")
    said = cowfs("clone", link, xfs / "source" / "one").stderr
    assert said.startswith(
        f"cowfs: warning: a link leads out of the source and stays one: {link} -> ../file; "
    )
    assert said.endswith("--links=follow makes files of such links where it can\n")
    assert cowfs("clone", "--links=keep", link, xfs / "source" / "two").stderr == ""
    assert cowfs("clone", "--links=follow", link, xfs / "source" / "three").stderr == ""
    assert (xfs / "source" / "three").is_file()
    assert os.readlink(xfs / "source" / "two") == "../file"


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_a_snapshot_in_a_mounted_cache_is_cloned_as_its_files(
    snapshot: Path, xfs: Path, mount_plain: MountCopy, engine: str
) -> None:
    copy = mount_plain(xfs / "hub", None, f"engine={engine}")
    changed = copy / snapshot.relative_to(xfs / "hub")
    with (changed / "config.json").open("ab") as file:
        file.write(b"mine")
    cowfs("clone", changed, xfs / "plain")
    config = CONFIG + b"mine"
    assert contents(xfs / "plain") == {
        **EXPECTED,
        "config.json": config,
        "onnx/config.json": config,
    }
    shared = physical((snapshot / "model.safetensors").resolve())
    assert physical(xfs / "plain" / "model.safetensors") == shared
    cowfs("clone", changed / "model.safetensors", xfs / "weights")
    assert physical(xfs / "weights") == shared


def test_a_cache_of_another_volume_is_imported_in_regions_and_verified(
    outside: Path, xfs: Path
) -> None:
    snapshot = make_cache(outside / "hub")
    cowfs("import", "--verify", "--region=1M", snapshot, xfs / "plain")
    assert contents(xfs / "plain") == EXPECTED


def test_an_import_that_was_interrupted_goes_on_with_the_links_that_it_began_with(
    outside: Path, xfs: Path
) -> None:
    """What it says is pasted as it is printed."""
    snapshot = make_cache(outside / "hub")
    weights = os.urandom(MIB) * 192
    (snapshot / "model.safetensors").resolve().write_bytes(weights)
    command = [COWFS, "import", "--links=follow", "--region=1M", "--json", snapshot, xfs / "plain"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 8, said
    go_on = said.partition("go on with: ")[2].strip()
    assert go_on.startswith("cowfs import --resume --links=follow ")
    run(COWFS, *shlex.split(go_on)[1:])
    assert contents(xfs / "plain") == {**EXPECTED, "model.safetensors": weights}


def test_a_user_clones_what_the_user_may_read(snapshot: Path, xfs: Path) -> None:
    own = xfs / "own"
    own.mkdir()
    for path in (own, *snapshot.parents[2].rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    run(*user, COWFS, "clone", snapshot, own / "plain")
    assert contents(own / "plain") == EXPECTED
    blobs = (snapshot / "config.json").resolve().parent
    blobs.chmod(0o700)
    os.chown(blobs, 0, 0)
    said = run(*user, COWFS, "clone", snapshot, own / "links").stderr
    assert "3 links lead out of the source" in said
    assert (own / "links" / "config.json").is_symlink()

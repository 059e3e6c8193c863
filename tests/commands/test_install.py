"""`cowfs install`: what goes where, and that nothing of anybody else is touched."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cowfs.commands import cli, install
from cowfs.commands.table import table
from cowfs.system.errors import UsageError

COWFS = table(cli.PROGRAM, cli.cowfs)
HELPERS = ("mount.cowfs", "umount.cowfs")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the directory of units."""
    directory = tmp_path / "systemd"
    (directory / "tmpfiles.d").mkdir(parents=True)
    (directory / "README.md").write_text("for people")
    (directory / "tmpfiles.d" / "cowfs.conf").write_text("d /run/cowfs 0700\n")
    (directory / "cowfs@.service").write_text("[Service]\nExecStart=@cowfs@ mount\n")
    (directory / "srv-llama.mount").write_text("[Mount]\nType=cowfs\n")
    data = install._data
    monkeypatch.setattr(
        install, "_data", lambda name: directory if name == "systemd" else data(name)
    )
    monkeypatch.setattr(sys, "argv", ["/opt/cowfs/bin/cowfs"])
    monkeypatch.setattr(os, "access", lambda *_: True)
    return directory


def everything(root: Path) -> dict[str, str]:
    """Every file below the root with its text, or with the target of a link."""
    return {
        str(path.relative_to(root)): (
            f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text()
        )
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_everything_goes_where_the_system_looks(root: Path, units: Path) -> None:
    done = install.install(str(root), COWFS)
    found = everything(root)
    assert sorted(done.written) == sorted(
        str(root / path) for path in found if path != install.MANIFEST
    )
    assert set(found) == {
        "usr/lib/cowfs/installed.json",
        "usr/lib/systemd/system/cowfs@.service",
        "usr/lib/tmpfiles.d/cowfs.conf",
        "usr/sbin/mount.cowfs",
        "usr/sbin/mount.fuse.cowfs",
        "usr/sbin/umount.cowfs",
        "usr/sbin/umount.fuse.cowfs",
        "usr/share/bash-completion/completions/cowfs",
        "usr/share/doc/cowfs/examples/srv-llama.mount",
        "usr/share/fish/vendor_completions.d/cowfs.fish",
        "usr/share/man/man1/cowfs.1",
        "usr/share/man/man5/cowfs.5",
        "usr/share/man/man8/mount.cowfs.8",
        "usr/share/man/man8/umount.cowfs.8",
        "usr/share/zsh/vendor-completions/_cowfs",
    }
    assert found["usr/sbin/mount.fuse.cowfs"] == "-> mount.cowfs"
    assert found["usr/sbin/umount.fuse.cowfs"] == "-> umount.cowfs"
    assert found["usr/lib/systemd/system/cowfs@.service"] == (
        "[Service]\nExecStart=/opt/cowfs/bin/cowfs mount\n"
    )
    for path in root.rglob("*"):
        executable = path.is_dir() or path.name in HELPERS
        if not path.is_symlink():
            assert path.stat().st_mode & 0o777 == (0o755 if executable else 0o644), path


@pytest.mark.parametrize("helper", HELPERS)
def test_a_helper_runs_the_python_of_this_installation(root: Path, helper: str) -> None:
    install.install(str(root), COWFS)
    path = root / "usr/sbin" / helper
    assert f"python={shlex.quote(sys.executable)}\n" in path.read_text()
    done = subprocess.run([path], capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{helper}: usage: ")


def test_a_python_that_is_hard_to_write_is_found(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "it's a $HOME" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    install.install(str(root), COWFS)
    command = [root / "usr/sbin/mount.cowfs", "a b", "c"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["-I", "-m", "cowfs.mounthelper", "a b", "c", ""]


def test_a_helper_whose_installation_is_gone_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    install.install(str(root), COWFS)
    for helper in HELPERS:
        done = subprocess.run([root / "usr/sbin" / helper], capture_output=True, text=True)
        assert done.returncode == (2 if os.geteuid() == 0 else 1)
        [line] = done.stderr.splitlines()
        assert line.startswith(f"{helper}: ")


def test_what_is_within_the_root_is_named_as_from_there(
    root: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", f"{root}/opt/cowfs/bin/python")
    monkeypatch.setattr(sys, "argv", [f"{root}/opt/cowfs/bin/cowfs"])
    install.install(str(root), COWFS)
    found = everything(root)
    assert "python=/opt/cowfs/bin/python\n" in found["usr/sbin/mount.cowfs"]
    assert "=/opt/cowfs/bin/cowfs " in found["usr/lib/systemd/system/cowfs@.service"]


def test_an_sbin_that_is_no_link_and_site_functions_are_used(root: Path) -> None:
    (root / "sbin").mkdir()
    (root / "usr/share/zsh/site-functions").mkdir(parents=True)
    install.install(str(root), COWFS)
    assert (root / "sbin/mount.cowfs").exists()
    assert not (root / "usr/sbin").exists()
    assert (root / "usr/share/zsh/site-functions/_cowfs").exists()


def test_uninstall_leaves_what_was_there_before(root: Path, units: Path) -> None:
    (root / "usr/sbin").mkdir(parents=True)
    (root / "usr/sbin/other").write_text("not ours")
    install.install(str(root), COWFS)
    done = install.uninstall(str(root))
    assert everything(root) == {"usr/sbin/other": "not ours"}
    assert sorted(path.name for path in root.rglob("*")) == ["other", "sbin", "usr"]
    assert (len(done.removed), done.kept) == (14, [])
    with pytest.raises(UsageError, match="nothing is installed"):
        install.uninstall(str(root))


def test_uninstall_keeps_what_somebody_has_changed_or_added(root: Path) -> None:
    install.install(str(root), COWFS)
    page, extra = root / "usr/share/man/man1/cowfs.1", root / "usr/share/man/man1/mine.1"
    page.write_text("changed")
    extra.write_text("added")
    (root / "usr/sbin/umount.cowfs").unlink()
    done = install.uninstall(str(root))
    assert done.kept == [str(page)]
    assert set(everything(root)) == {"usr/share/man/man1/cowfs.1", "usr/share/man/man1/mine.1"}


@pytest.mark.parametrize("what", ["file", "link", "directory"])
def test_what_is_not_its_own_is_never_overwritten(root: Path, what: str) -> None:
    path = root / "usr/share/man/man5/cowfs.5"
    path.parent.mkdir(parents=True)
    if what == "file":
        path.write_text("somebody else's")
    elif what == "link":
        path.symlink_to("/nowhere")
    else:
        path.mkdir()
    before = everything(root)
    with pytest.raises(UsageError, match=r"cowfs\.5 is there and was not put there"):
        install.install(str(root), COWFS)
    assert everything(root) == before


def test_installing_again_replaces_its_own_and_drops_what_it_has_no_more(
    root: Path, units: Path
) -> None:
    install.install(str(root), COWFS)
    (units / "cowfs@.service").write_text("[Service]\nExecStart=@cowfs@ other\n")
    (units / "srv-llama.mount").unlink()
    done = install.install(str(root), COWFS)
    assert done.removed == [str(root / "usr/share/doc/cowfs/examples/srv-llama.mount")]
    assert "other" in (root / "usr/lib/systemd/system/cowfs@.service").read_text()
    install.uninstall(str(root))
    assert list(root.iterdir()) == []


def test_what_was_interrupted_can_be_done_again_or_taken_away(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = install._write
    written: list[Path] = []

    def fail(path: Path, file: install.File) -> None:
        if len(written) == 5:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write(path, file)

    monkeypatch.setattr(install, "_write", fail)
    with pytest.raises(Exception, match="No space left on device"):
        install.install(str(root), COWFS)
    monkeypatch.setattr(install, "_write", write)
    install.install(str(root), COWFS)
    manifest = json.loads((root / install.MANIFEST).read_text())
    assert set(manifest["files"]) == set(everything(root)) - {install.MANIFEST}
    install.uninstall(str(root))
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(("number", "code", "says"), [(13, 1, "as root"), (30, 32, "Read-only")])
def test_a_root_that_cannot_be_changed_is_told(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
    says: str,
) -> None:
    def fail(path: Path, _file: install.File) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(install, "_write", fail)
    assert cli.main(["install", "--root", str(root)]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert str(root) in line
    assert says in line


def test_a_command_that_no_unit_can_name_is_refused(
    root: Path, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/my apps/100%/cowfs"])
    with pytest.raises(UsageError, match="cannot name /opt/my apps"):
        install.install(str(root), COWFS)
    assert list(root.iterdir()) == []


def test_the_command_says_what_it_did(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["install", "--root", str(root)]) == 0
    assert f"installed {root}/usr/sbin/mount.cowfs\n" in capsys.readouterr().out
    (root / "usr/sbin/mount.cowfs").write_text("changed")
    assert cli.main(["install", "--root", str(root)]) == 1
    assert "was changed since" in capsys.readouterr().err
    assert cli.main(["install", "--root", str(root), "--uninstall"]) == 0
    captured = capsys.readouterr()
    assert f"removed {root}/usr/sbin/umount.cowfs\n" in captured.out
    assert f"{root}/usr/sbin/mount.cowfs was changed by somebody" in captured.err
    assert cli.main(["install", "--root", str(root / "none")]) == 1

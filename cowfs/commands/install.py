"""`cowfs install`: helpers, units, man pages and completions, each where the system expects it.

All of it is made for the installation that runs the command. Where they go is decided once, in
`_files`:

- /usr/sbin: mount(8) looks in /sbin alone, which is a link to it since Debian 12.
- /usr/lib/systemd/system, not /etc: what is in /etc can be neither masked nor overridden by
  the administrator, whose place that is.
- Units that are examples (.mount, .automount) go to the documentation, since systemd would take
  them for real ones.

A manifest says what was put where. Nothing else is ever overwritten or removed: not what somebody
has changed since, not what was there before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import stat
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cowfs.commands import completion, manpages
from cowfs.commands.table import Command
from cowfs.system.errors import CowfsError, UsageError

MANIFEST = "usr/lib/cowfs/installed.json"

_UNITS = "usr/lib/systemd/system"
_EXAMPLES = "usr/share/doc/cowfs/examples"
_EXAMPLE_SUFFIXES = (".mount", ".automount")
_PACKAGE = Path(__file__).parent.parent


class File(NamedTuple):
    """What is put into one place: text with a mode, or a symlink."""

    text: str
    mode: int = 0o644
    is_link: bool = False

    def digest(self) -> str:
        """What tells it from anything else that may be in its place."""
        return _digest(os.fsencode(self.text), self.is_link)


class Done(NamedTuple):
    """Paths as they are in the root that was given. kept: changed by somebody, so left there."""

    written: list[str]
    removed: list[str]
    kept: list[str]


def install(root: str, command: Command) -> Done:
    """Put everything below root, in place of what an earlier call has put there.

    command: `cowfs`, whose man pages and completion are made.

    UsageError when something else is in a place that is needed, and then nothing is written.
    """
    top = _root(root)
    files = _files(top, command)
    manifest = _read_manifest(top)
    for path in files:
        found = _found(top / path)
        if found is not None and found not in manifest.files.get(path, ()):
            raise UsageError(
                f"{top / path} is there and was not put there by an installation of cowfs, or "
                "was changed since: move it away first"
            )
    obsolete = {path: digests for path, digests in manifest.files.items() if path not in files}
    with _failures_told():
        # Both what is there and what will be: whatever comes between, it is known as ours.
        both = {path: [*manifest.files.get(path, []), files[path].digest()] for path in files}
        directories = _write_manifest(top, _Manifest({**obsolete, **both}, manifest.directories))
        removed, kept = _remove(top, obsolete)
        for path, file in files.items():
            _write(top / path, file)
        now = {path: [file.digest()] for path, file in files.items()}
        _write_manifest(top, _Manifest(now, directories))
    return Done([str(top / path) for path in files], removed, kept)


def uninstall(root: str) -> Done:
    """Take away what install() put below root, and the directories that it made. UsageError."""
    top = _root(root)
    manifest = _read_manifest(top)
    if not manifest.files:
        raise UsageError(f"nothing is installed below {top}: there is no {top / MANIFEST}")
    with _failures_told():
        removed, kept = _remove(top, manifest.files)
        (top / MANIFEST).unlink()
        for directory in sorted(manifest.directories, key=len, reverse=True):
            with contextlib.suppress(OSError):  # others have put something there
                (top / directory).rmdir()
    return Done([], removed, kept)


def has_units(root: str) -> bool:
    """Whether there is anything that systemd has to be told of."""
    return any(path.startswith(_UNITS) for path in _read_manifest(_root(root)).files)


# --- what goes where ------------------------------------------------------------------------------


def _files(root: Path, command: Command) -> dict[str, File]:
    """Everything, by its place below the root."""
    sbin = "sbin" if (root / "sbin").is_dir() and not (root / "sbin").is_symlink() else "usr/sbin"
    files: dict[str, File] = {}
    for name in ("mount", "umount"):
        text = (_data("mount_helpers") / f"{name}.cowfs").read_text()
        text = text.replace("@python@", shlex.quote(_within(root, sys.executable)))
        files[f"{sbin}/{name}.cowfs"] = File(text, 0o755)
        # The type that the kernel shows is fuse.cowfs, and umount(8) knows no other.
        files[f"{sbin}/{name}.fuse.cowfs"] = File(f"{name}.cowfs", is_link=True)
    for place, path in _unit_files(_data("systemd")):
        files[place] = File(_with_command(root, path))
    for name, text in manpages.pages(command).items():
        files[f"usr/share/man/man{name[-1]}/{name}"] = File(text)
    files["usr/share/bash-completion/completions/cowfs"] = File(completion.bash(command))
    files[f"{_zsh_directory(root)}/_cowfs"] = File(completion.zsh(command))
    files["usr/share/fish/vendor_completions.d/cowfs.fish"] = File(completion.fish(command))
    return files


def _unit_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """The place of each file of systemd/, and where it is here."""
    for path in sorted(directory.rglob("*")):
        if path.is_dir() or path.suffix == ".md":
            continue
        inside = path.relative_to(directory)
        if path.suffix in _EXAMPLE_SUFFIXES or inside.parts[0] == "examples":
            yield f"{_EXAMPLES}/{path.name}", path
        elif inside.parts[0] == "tmpfiles.d":
            yield f"usr/lib/{inside}", path
        else:
            yield f"{_UNITS}/{inside}", path


def _zsh_directory(root: Path) -> str:
    """Debian's zsh looks for packages' functions where no other does."""
    debian, others = "usr/share/zsh/vendor-completions", "usr/share/zsh/site-functions"
    return others if (root / others).is_dir() and not (root / debian).is_dir() else debian


def _data(name: str) -> Path:
    """A directory of files to install: in the package, or at the top of the sources."""
    for path in (_PACKAGE / "data" / name, _PACKAGE.parent / name):
        if path.is_dir():
            return path
    raise CowfsError(f"this installation has no {name}: install cowfs with pip")


def _with_command(root: Path, unit: Path) -> str:
    text = unit.read_text()
    if "@cowfs@" in text:
        command = _within(root, _command())
        if not re.fullmatch(r"[A-Za-z0-9/_.+@:-]+", command):
            raise UsageError(f"units of systemd cannot name {command}: install cowfs elsewhere")
        text = text.replace("@cowfs@", command)
    return text


def _command() -> str:
    """The command of this installation, by its full path."""
    called = Path(sys.argv[0]).absolute()
    if called.name == "cowfs" and os.access(called, os.X_OK):
        return str(called)
    return os.path.join(sysconfig.get_path("scripts"), "cowfs")


def _within(root: Path, path: str) -> str:
    """A path of this installation as it is once *root* is the root."""
    with contextlib.suppress(ValueError):
        return "/" + str(Path(path).relative_to(root))
    return path


# --- the manifest, and files ----------------------------------------------------------------------


class _Manifest(NamedTuple):
    """files: the digests that a path may have and be ours; directories: those that we made."""

    files: dict[str, list[str]]
    directories: list[str]


def _read_manifest(root: Path) -> _Manifest:
    try:
        values = json.loads((root / MANIFEST).read_text())
        return _Manifest(values["files"], values["directories"])
    except FileNotFoundError:
        return _Manifest({}, [])
    except (ValueError, KeyError, TypeError):
        raise CowfsError(f"{root / MANIFEST} cannot be read: it says what to remove") from None


def _write_manifest(root: Path, manifest: _Manifest) -> list[str]:
    """Makes the directories of everything that it names, notes and returns those that it made."""
    made = set(manifest.directories)
    for path in (MANIFEST, *manifest.files):
        missing = [parent for parent in Path(path).parents if not (root / parent).is_dir()]
        made.update(map(str, missing))
    text = json.dumps({"files": manifest.files, "directories": sorted(made)}, indent=1) + "\n"
    _make_directories(root / MANIFEST)
    _write(root / MANIFEST, File(text))
    for path in manifest.files:
        _make_directories(root / path)
    return sorted(made)


def _make_directories(path: Path) -> None:
    old = os.umask(0o022)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(old)


def _write(path: Path, file: File) -> None:
    """In one step, so that a helper is never half there."""
    new = path.with_name(f".{path.name}.cowfs-new")
    new.unlink(missing_ok=True)
    if file.is_link:
        new.symlink_to(file.text)
    else:
        with open(new, "x", encoding="utf-8", errors="surrogateescape") as out:
            out.write(file.text)
        new.chmod(file.mode)
    new.replace(path)


def _remove(root: Path, files: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Remove what is still as it was put there: what was removed, and what was left."""
    removed, kept = [], []
    for path, digests in files.items():
        found = _found(root / path)
        if found is None:
            continue
        if found in digests:
            (root / path).unlink()
            removed.append(str(root / path))
        else:
            kept.append(str(root / path))
    return removed, kept


def _found(path: Path) -> str | None:
    """The digest of what is there; None when nothing is."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return _digest(os.fsencode(os.readlink(path)), is_link=True)
        return _digest(path.read_bytes(), is_link=False) if stat.S_ISREG(mode) else "no file"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _digest(content: bytes, is_link: bool) -> str:
    return ("link:" if is_link else "file:") + hashlib.sha256(content).hexdigest()


def _root(root: str) -> Path:
    path = Path(os.path.realpath(root))
    if not path.is_dir():
        raise UsageError(f"root {root} is not a directory")
    return path


@contextlib.contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"no permission to change {error.filename}: run it as root") from None
    except OSError as error:
        raise CowfsError(f"cannot change {error.filename}: {error.strerror}") from None

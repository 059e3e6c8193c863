"""Kernels of distributions: fetched from their archives with apt, unpacked, and cached.

Nothing is installed: apt gets a directory of its own. A kernel that is in the cache is not looked
for again; delete its directory to have the newest of its release.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from integration.command import run
from integration.machine import cache

_DEBIAN = "http://deb.debian.org/debian"
_DEBIAN_SECURITY = "http://security.debian.org/debian-security"
_UBUNTU = "http://archive.ubuntu.com/ubuntu"
# Of the dependencies of the package that always names the newest one, those that have files of it.
_PART = re.compile(r"linux-(?:image|base|binary|modules)-\d[\w.+~-]*")


class Distribution(NamedTuple):
    """Where a kernel comes from."""

    title: str
    archives: tuple[str, ...]  # lines of sources.list(5)
    package: str  # the one that depends on the newest kernel


def _debian(title: str, release: str, *, security: bool = True) -> Distribution:
    archives = [f"deb {_DEBIAN} {release} main"]
    if security:
        archives.append(f"deb {_DEBIAN_SECURITY} {release}-security main")
    # Without drivers of hardware: a quarter of the size.
    return Distribution(title, tuple(archives), "linux-image-cloud-amd64")


def _ubuntu(title: str, release: str) -> Distribution:
    # Debian 12 has no key of Ubuntu's. These packages are unpacked, and run in a machine only.
    archives = [
        f"deb [trusted=yes] {_UBUNTU} {suite} main" for suite in (release, f"{release}-updates")
    ]
    return Distribution(title, tuple(archives), "linux-image-virtual")


DISTRIBUTIONS = {
    "5.10": _debian("Debian 11 (bullseye)", "bullseye"),
    "5.15": _ubuntu("Ubuntu 22.04 (jammy)", "jammy"),
    "6.1": _debian("Debian 12 (bookworm)", "bookworm"),
    "6.8": _ubuntu("Ubuntu 24.04 (noble)", "noble"),
    "6.12": _debian("Debian 13 (trixie)", "trixie"),
    "newest": _debian("Debian unstable (sid)", "sid", security=False),
}


class Kernel:
    """A kernel in the cache: `image`, and its modules."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "image"
        self._modules = next((directory / "lib/modules").iterdir())
        #: As uname(2) says it.
        self.release = self._modules.name
        self._paths: dict[str, list[Path]] = {}
        for line in (self._modules / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            files = [self._modules / file for file in (path, *needs.split())]
            self._paths[_module_name(path)] = files
        builtin = (self._modules / "modules.builtin").read_text().split()
        self._builtin = {_module_name(path) for path in builtin}

    def modules(self, *names: str) -> list[Path]:
        """The files of these modules and of what they need, in the order in which to load them.

        One that is part of the kernel has no file. KeyError for one that there is not.
        """
        found: dict[Path, None] = {}
        for name in names:
            if name not in self._builtin:
                found |= dict.fromkeys(reversed(self._paths[name]))
        return list(found)

    def has(self, name: str) -> bool:
        """Whether it has this module, or can do the same without one."""
        return name in self._builtin or name in self._paths


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def kernel(name: str) -> Kernel:
    """One of DISTRIBUTIONS, fetched when it is not in the cache."""
    made = cache() / f"kernel-{name}"
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = made.with_name(f".{made.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            _fetch(DISTRIBUTIONS[name], new)
            new.rename(made)
    return Kernel(made)


def _fetch(distribution: Distribution, directory: Path) -> None:
    apt = _Apt(directory / "apt", distribution.archives)
    for package in apt.download(distribution.package):
        subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
    shutil.rmtree(directory / "apt")
    if not (directory / "lib").exists():  # of a distribution that has /usr alone
        (directory / "lib").symlink_to("usr/lib")
    release = next((directory / "lib/modules").iterdir()).name
    images = (f"boot/vmlinuz-{release}", f"lib/modules/{release}/vmlinuz")
    (directory / "image").symlink_to(next(path for path in images if (directory / path).exists()))
    run("depmod", "-b", directory, release)


class _Apt:
    """apt with other archives than the system's, which knows of no installed package."""

    def __init__(self, directory: Path, archives: tuple[str, ...]) -> None:
        self._downloads = directory / "downloads"
        for path in ("lists/partial", "cache/archives/partial", "downloads"):
            (directory / path).mkdir(parents=True)
        sources = directory / "sources.list"
        sources.write_text("\n".join((*archives, "")))
        settings = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State": directory,
            "Dir::State::status": "/dev/null",
            "Dir::Cache": directory / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._options = [arg for key, value in settings.items() for arg in ("-o", f"{key}={value}")]
        run("apt-get", *self._options, "update", "-qq", timeout=300)

    def download(self, package: str) -> list[Path]:
        """The parts of a kernel that this package depends on."""
        parts: dict[str, None] = {}
        asked = [package]
        while asked:
            shown = run("apt-cache", *self._options, "show", "--no-all-versions", *asked).stdout
            depends = re.findall(r"^Depends: (.*)", shown, re.MULTILINE)
            asked = [part for part in _PART.findall("\n".join(depends)) if part not in parts]
            parts |= dict.fromkeys(asked)
        run("apt-get", *self._options, "download", "-qq", *parts, timeout=600, cwd=self._downloads)
        return list(self._downloads.iterdir())

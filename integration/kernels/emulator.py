"""Boots a kernel with QEMU, without KVM, in the tree of `integration.machine`; hears its report.

The machine has three disks: the tree with the package; an XFS volume; and what this run brings, a
newer package and the code of `guest`. A small initial filesystem loads the modules and begins
the guest as the first process; the guest reports on its second serial port, a line of JSON for each
event. There is no network.
"""

from __future__ import annotations

import json
import lzma
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from integration import machine
from integration.command import run
from integration.kernels.distributions import Kernel
from integration.volumes import GIB, MIB

#: What the guest needs of the kernel; what is part of it is not loaded.
_MODULES = ("virtio_pci", "virtio_blk", "ext4", "xfs", "fuse", "overlay", "loop")
#: The kernel would ask modprobe(8) for these when it needs them. New ones have no such modules.
_MODULES_IF_ANY = ("crc32c_generic", "virtio_rng")
_ROOT = Path(__file__).parent.parent
_INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /root
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
for module in /modules/*; do /bin/busybox insmod $module || echo "cannot load $module"; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t ext4 -o ro /dev/vdc /root/mnt
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /proc
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/mnt PYTHONDONTWRITEBYTECODE=1
exec /bin/busybox switch_root /root /usr/bin/python3 -m integration.kernels.guest
"""
# nokaslr and no mitigations: half the time until init. tsc=reliable: on a busy host the kernel
# thinks that its clock is broken, and takes one of which each reading leaves the processor.
_COMMAND_LINE = "console=ttyS0 panic=-1 nokaslr mitigations=off audit=0 apparmor=0 tsc=reliable"


class SilenceError(Exception):
    """The machine has ended, or takes too long, without a last word."""


class Emulator:
    """One machine, which runs from `boot` until the end of its `events`."""

    def __init__(
        self, directory: Path, kernel: Kernel, package: Path, update: Path, plan: dict[str, Any]
    ) -> None:
        """*package* is installed, *update* is there to be. *plan*: for the guest.

        *directory*: a new one, for all that is its own.
        """
        directory.mkdir(parents=True)
        self._kernel = kernel
        self._console = directory / "console"
        self._report = directory / "report"
        self._initrd = directory / "initrd"
        self._volume = directory / "volume"
        self._payload = directory / "payload"
        self._root = directory / "root.ext4"
        self._make_initrd(directory / "initial")
        with self._volume.open("wb") as file:
            file.truncate(2 * GIB)
        # What the oldest of these kernels can mount.
        options = ("-m", "reflink=1,bigtime=0,inobtcount=0", "-i", "nrext64=0")
        run("mkfs.xfs", "-q", *options, self._volume)
        self._make_payload(directory / "brought", update, plan)
        self._make_root(directory / "tree", package)

    def _make_initrd(self, root: Path) -> None:
        (root / "bin").mkdir(parents=True)
        (root / "modules").mkdir()
        shutil.copy("/bin/busybox", root / "bin")
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        names = (*_MODULES, *filter(self._kernel.has, _MODULES_IF_ANY))
        for number, module in enumerate(self._kernel.modules(*names)):
            unpacked = root / "modules" / f"{number:02}-{module.name.partition('.')[0]}.ko"
            unpacked.write_bytes(_unpacked(module))
        with self._initrd.open("wb") as file:
            subprocess.run(
                ["cpio", "--create", "--quiet", "--format=newc"],
                cwd=root,
                input="".join(f"{path.relative_to(root)}\n" for path in root.rglob("*")),
                text=True,
                stdout=file,
                check=True,
            )

    def _make_payload(self, root: Path, update: Path, plan: dict[str, Any]) -> None:
        code = root / "integration"
        kept_out = shutil.ignore_patterns("__pycache__", "programs", "test_*", "conftest.py")
        shutil.copytree(_ROOT, code, ignore=kept_out)
        shutil.copy(update, root)
        (root / "plan.json").write_text(json.dumps({**plan, "update": update.name}))
        _make_ext4(self._payload, root, 16 * MIB + update.stat().st_size)

    def _make_root(self, directory: Path, package: Path) -> None:
        """The tree with the package: to install it here takes a twentieth of the time."""
        for name in ("upper", "work", "root"):
            (directory / name).mkdir(parents=True)
        shutil.copy(package, directory / "upper/package.deb")
        script = f"""
            layers=lowerdir={machine.tree()},upperdir=upper,workdir=work
            mount -t overlay -o "$layers" overlay root
            chroot root dpkg --install --force-unsafe-io /package.deb
            rm root/package.deb
            {_make_ext4_command(self._root, Path("root"))}
        """
        with self._root.open("wb") as file:
            file.truncate(1536 * MIB)
        command = ("unshare", "--mount", "--propagation", "slave", "sh", "-ec", script)
        run(*command, timeout=300, cwd=directory)
        shutil.rmtree(directory)

    @contextmanager
    def boot(self) -> Iterator[None]:
        """Runs it meanwhile."""
        drives = [
            arg
            for image, options in (
                (self._root, "cache=unsafe"),
                (self._volume, "cache=unsafe"),
                (self._payload, "readonly=on"),
            )
            for arg in ("-drive", f"file={image},format=raw,if=virtio,{options}")
        ]
        self._report.touch()
        command = [
            *(
                "qemu-system-x86_64",
                "-machine",
                "pc",
                "-accel",
                "tcg",
                "-cpu",
                "Nehalem",
                "-smp",
                "2",
            ),
            *("-m", "2048", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(self._kernel.image), "-initrd", str(self._initrd)),
            *("-append", _COMMAND_LINE, "-device", "virtio-rng-pci", *drives),
            *("-serial", f"file:{self._console}", "-serial", f"file:{self._report}"),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            self._process.kill()
            self._process.wait()

    def events(self, patience: float) -> Iterator[dict[str, Any]]:
        """What the guest reports, until it is done.

        SilenceError when that takes longer than *patience* seconds, or the machine ends before.
        """
        deadline = time.monotonic() + patience
        with self._report.open() as file:
            line = ""
            while True:
                ended = self._process.poll() is not None  # before the last read
                line += file.readline()
                if line.endswith("\n"):
                    event = json.loads(line)
                    line = ""
                    yield event
                    if event["event"] == "done":
                        with suppress(subprocess.TimeoutExpired):
                            self._process.wait(30)
                        return
                elif ended:
                    raise SilenceError("the machine has ended")
                elif time.monotonic() > deadline:
                    raise SilenceError(f"it takes longer than {patience:.0f} s")
                else:
                    time.sleep(0.1)

    def console(self) -> str:
        """What the kernel has said."""
        return self._console.read_text(errors="replace")


def _unpacked(module: Path) -> bytes:
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", module], stdout=subprocess.PIPE, check=True).stdout
    return module.read_bytes()


def _make_ext4(image: Path, root: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    run("sh", "-ec", _make_ext4_command(image, root), timeout=300)


def _make_ext4_command(image: Path, root: Path) -> str:
    # No journal: it is used once. What old kernels do not know is left out.
    words = ("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^orphan_file", "-d", root, image)
    return shlex.join(map(str, words))

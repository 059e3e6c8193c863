"""Compiles probe.c and runs it: the only way in which workloads touch files while a clock runs."""

from __future__ import annotations

from pathlib import Path

from .system import run

SOURCE = Path(__file__).with_name("probe.c")
MIB = 1 << 20


class Probe:
    """The compiled probe; every method returns seconds unless it says otherwise."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "probe"
        run(["gcc", "-O2", "-std=c11", "-o", self._program, SOURCE])

    def _ask(self, *words: object) -> dict[str, float]:
        lines = run([self._program, *(str(word) for word in words)], timeout=1800).splitlines()
        return {key: float(value) for key, value in (line.split() for line in lines)}

    def fill(self, path: Path, size: int, seed: int) -> None:
        """Write `size` bytes of random data to a new file."""
        self._ask("fill", path, size, seed)

    def tree(self, path: Path, directories: int, files: int, size: int) -> None:
        """Make directories of small files of random data."""
        self._ask("tree", path, directories, files, size, 7)

    def read(self, path: Path, *, drop: bool = False, block: int = MIB) -> float:
        """Read from beginning to end; with `drop` after dropping the pages of this very inode."""
        return self._ask("read", path, block, int(drop))["seconds"]

    def readers(self, paths: list[Path], block: int = MIB) -> float:
        """Read all files at once, each in a process of its own, until the last one is read."""
        return self._ask("readers", block, *paths)["seconds"]

    def will_need(self, path: Path, piece: int = MIB) -> float:
        """Ask for the pages of a whole file by posix_fadvise; does not wait for them."""
        return self._ask("willneed", path, piece)["seconds"]

    def map(self, path: Path, repeats: int) -> dict[str, float]:
        """`touch` one byte of every page, `read` every byte, through fresh mappings."""
        return self._ask("map", path, repeats)

    def overwrite(self, path: Path, block: int = MIB) -> dict[str, float]:
        """`write` over the whole of an existing file, and `fsync` after it."""
        return self._ask("overwrite", path, block)

    def first_write(self, paths: list[Path]) -> float:
        """Open for writing, write 4 KiB, close: the median over the files."""
        return self._ask("first-write", *paths)["seconds"]

    def names(self, what: str, root: Path, reference: Path, passes: int) -> tuple[float, int]:
        """Seconds of a pass (`open`, `stat` or `list`) over all names, and how many they are."""
        answer = self._ask(what, root, reference, passes)
        return answer["seconds"], int(answer["names"])

"""Another version of cowfs beside the one under test, in an environment of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cowfs


class OtherVersion:
    """A copy of the package that says another version number.

    Everything that it needs it finds where the environment that runs the tests has it.
    """

    def __init__(self, directory: Path, version: str) -> None:
        self.version = version
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", "--symlinks", directory], check=True
        )
        self.python = directory / "bin" / "python"
        (packages,) = (directory / "lib").glob("python3*/site-packages")
        self._package = packages / "cowfs"
        assert cowfs.__file__ is not None
        shutil.copytree(Path(cowfs.__file__).parent, self._package)
        # Behind its own directory in sys.path: the package that is copied here comes first.
        (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.patch("__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"')

    def patch(self, module: str, pattern: str, replacement: str) -> None:
        """Replace the one place in a module that the regular expression finds."""
        path = self._package / module
        text, count = re.subn(pattern, replacement, path.read_text())
        assert count == 1, f"{pattern!r} is {count} times in {module}"
        path.write_text(text)

    def command(self, *args: str | Path) -> list[str]:
        """The words of its `cowfs ARGS...`."""
        return [str(self.python), "-m", "cowfs", *map(str, args)]

"""The version is one number, wherever it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cowfs import __version__

TOP = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("cowfs/__init__.py", r'^__version__ = "(.*)"$'),
        ("pyproject.toml", r'^version = "(.*)"$'),
        ("meson.build", r"^  version: '(.*)',$"),
        # the first heading: what is under way, or was released last
        ("CHANGELOG.md", r"^## ([^, ]*)"),
    ],
)
def test_every_file_has_the_same_version(file: str, pattern: str) -> None:
    found = re.search(pattern, (TOP / file).read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == __version__


def test_the_command_says_it() -> None:
    command = Path(sys.executable).with_name("cowfs")
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"cowfs {__version__}\n"

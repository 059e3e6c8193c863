"""What quickstart.sh and test.sh share: .ci/setup.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent


def test_an_active_environment_is_not_built_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `source .venv/bin/activate; ./test.sh` took the Python of .venv for the one to make it with,
    # and removed it first.
    base = sys._base_executable
    subprocess.run([base, "-m", "venv", "--without-pip", tmp_path], check=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found = subprocess.run(
        ["bash", "-c", "source .ci/setup.sh; find_python"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    assert os.path.realpath(found.stdout.strip()) == os.path.realpath(base)
    assert not found.stdout.startswith(str(tmp_path))

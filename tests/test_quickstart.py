"""What the quickstart ends with. That it works, CI sees by itself: .ci/run."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path

TOP = Path(__file__).parent.parent
next_step = runpy.run_path(str(TOP / "docs/quickstart.py"))["next_step"]


def test_the_next_step_is_what_the_readme_says() -> None:
    lines = next_step(None).splitlines()
    readme = (TOP / "README.md").read_text().splitlines()
    commands = [word for line in lines if line.startswith("  ") for word in line.split(" && ")]
    assert len(commands) == 4
    for command in map(str.strip, commands[:3]):
        assert any(line.startswith(command) for line in readme), command


def test_the_readers_own_model_can_be_pasted() -> None:
    last = next_step(Path("/data/my model")).splitlines()[-1]
    assert shlex.split(last)[-3:] == ["mount", "/data/my model", "/mnt/job-42"]

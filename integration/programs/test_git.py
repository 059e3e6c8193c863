"""git in several processes: lock files, packs that are mapped while others repack, worktrees.

git keeps a long-running process's packs open, and believes its index by inode numbers and times.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.programs import actors
from integration.programs.turns import OPTIONS, Stage, Step, Turns, explore, interleavings

#: The same commits and objects in every repository.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_NAME": "somebody" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "somebody@example.org" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": "1700000000 +0000" for who in ("AUTHOR", "COMMITTER")},
}
SECONDS = 60
CONFIGURATION = ["-c", "gc.auto=0"]
if "clone=open" in OPTIONS:
    # There the first reader of a file moves its ctime, and git would take it for changed.
    CONFIGURATION += ["-c", "core.trustctime=false"]


def git(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *CONFIGURATION, *words],
        cwd=directory,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def fill(directory: Path) -> None:
    noise = random.Random(1)
    top = directory / "repository"
    top.mkdir()
    for words in (("init", "-q", "-b", "main"), ("config", "core.packedGitWindowSize", "1m")):
        assert git(top, *words).returncode == 0
    (top / "model.bin").write_bytes(noise.randbytes(1_200_000))
    for number in range(20):
        (top / f"file{number}").write_text(f"{number}\n" * 100)
    commit = ("commit", "-q", "-m", "more")
    for words in (("add", "."), commit, ("tag", "first"), ("gc", "-q")):
        assert git(top, *words).returncode == 0
    (top / "file0").write_text("changed\n")
    assert git(top, *commit, "-a").returncode == 0
    assert git(top, "branch", "side").returncode == 0
    assert any(f.stat().st_size > 1 << 20 for f in top.glob(".git/objects/pack/*.pack"))


class Player(actors.Player):
    """A process with gits that stay open, and the gits that it runs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._open: dict[int, subprocess.Popen[bytes]] = {}

    def git(self, where: str, *words: str) -> tuple[int, str]:
        done = git(self.root / where, *words)
        return done.returncode, self._plain(done.stdout + done.stderr)

    def _plain(self, text: str) -> str:
        # Columns are as wide as the longest path.
        return re.sub(r" {2,}", " ", text.replace(str(self.root), "ROOT"))

    def write(self, where: str, name: str, text: str) -> None:
        (self.root / where / name).write_text(text)

    def objects(self, slot: int) -> None:
        """Start a `git cat-file --batch`, which keeps its packs open and mapped."""
        self.end(slot)
        self._open[slot] = subprocess.Popen(
            ["git", "cat-file", "--batch"],
            cwd=self.root / "repository",
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def show(self, slot: int, name: str) -> tuple[str, int]:
        """What it says of an object, and a checksum of its bytes."""
        process = self._open[slot]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{name}\n".encode())
        process.stdin.flush()
        head = process.stdout.readline().decode().strip()
        if head.endswith(("missing", "ambiguous")):
            return head, 0
        data = process.stdout.read(int(head.split()[-1]) + 1)
        return head, sum(data)

    def edit(self, slot: int, where: str) -> bool:
        """Start a commit whose editor waits: it holds index.lock meanwhile."""
        self.end(slot)
        # The editor says on its output that it is there, and goes on when its input ends.
        process = subprocess.Popen(
            ["git", *CONFIGURATION, "commit", "--allow-empty", "-a", "-m", "edited", "-e"],
            cwd=self.root / where,
            env={**ENVIRONMENT, "GIT_EDITOR": "sh -c 'echo there; cat >/dev/null' --"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._open[slot] = process
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line == b"there\n":
                return True
        return False

    def end(self, slot: int) -> tuple[int, str] | None:
        """End what is open there: nothing more comes for it to read."""
        if slot not in self._open:
            return None
        output, _ = self._open[slot].communicate(timeout=SECONDS)
        return self._open.pop(slot).returncode, self._plain(output.decode(errors="replace"))


WHERE = ("repository", "tree")
WORKTREE = ("worktree", "add", "-q", "../tree", "side")
READS: tuple[tuple[str, ...], ...] = (
    *(("status", "--porcelain", "-b"), ("log", "--oneline", "--all"), ("diff", "--stat")),
    *(("fsck", "--full"), ("worktree", "list"), ("rev-parse", "HEAD", "main", "side")),
    *(("cat-file", "-s", "first:model.bin"), ("diff", "--stat", "main", "side")),
)
CHANGES: tuple[tuple[str, ...], ...] = (
    *(("add", "."), ("commit", "-a", "-m", "more"), ("commit", "-m", "staged")),
    *(("gc", "-q"), ("repack", "-a", "-d", "-f", "-q"), ("gc", "-q", "--prune=now")),
    *(("reset", "-q", "--hard", "first"), ("merge", "-q", "main"), ("merge", "-q", "side")),
    *(("stash",), ("pack-refs", "--all"), ("update-index", "--refresh"), ("rm", "-q", "file3")),
)


def check(turns: Turns) -> None:
    """When everybody has gone, git finds nothing wrong, and the same."""
    for side in (turns.native, turns.copy):
        side.end()
    turns.do("checker", "git", "repository", "fsck", "--full", "--strict")
    for where in WHERE:
        for words in (("log", "--all", "--stat"), ("status", "--porcelain"), ("ls-files", "-s")):
            turns.do("checker", "git", where, *words)


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


# --- stories --------------------------------------------------------------------------------------


def test_a_reader_of_packs_goes_on_while_others_collect_garbage(stage: Stage) -> None:
    with stage.turns() as turns:
        turns.gives(None, "reader", "objects", 0)
        before = turns.do("reader", "show", 0, "first:model.bin")
        for words in (("gc", "-q"), ("repack", "-q", "-a", "-d", "-f")):
            turns.do("writer", "write", "repository", "model.bin", f"{words}\n" * 50_000)
            turns.do("writer", "git", "repository", "commit", "-a", "-m", "more")
            turns.do("reader", "show", 0, "main:model.bin")
            turns.do("writer", "git", "repository", *words)
            turns.do("reader", "show", 0, "main:model.bin")
            assert turns.do("reader", "show", 0, "first:model.bin") == before
        check(turns)


def test_index_lock_keeps_others_out_and_is_free_again(stage: Stage) -> None:
    with stage.turns() as turns:
        turns.do("first", "write", "repository", "file1", "by the first\n")
        turns.gives(True, "first", "edit", 0, "repository")
        for words in (("add", "."), ("commit", "-a", "-m", "no"), ("reset", "--hard", "first")):
            outcome = turns.do("second", "git", "repository", *words)
            assert "index.lock': File exists" in str(outcome.what), turns.told(str(outcome))
        # A worktree has an index of its own.
        turns.do("second", "git", "repository", *WORKTREE)
        turns.do("second", "write", "tree", "file2", "by the second\n")
        turns.do("second", "git", "tree", "commit", "-a", "-m", "elsewhere")
        turns.do("first", "end", 0)
        turns.do("second", "git", "repository", "status", "--porcelain", "-b")
        turns.do("second", "git", "repository", "merge", "-q", "side")
        check(turns)


# --- made-up interleavings ------------------------------------------------------------------------


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """A reader of objects comes first; then two processes work, in two worktrees."""
    steps: list[Step] = [("first", "objects", 0), ("first", "show", 0, "first:model.bin")]
    steps.append(("second", "git", "repository", *WORKTREE))
    for number in range(chance.randint(8, 16)):
        kinds = ("read", "change", "write", "show", "edit", "end", "killed")
        [kind] = chance.choices(kinds, (5, 6, 4, 4, 1, 1, 1))
        actor, where = chance.choice(["first", "second"]), chance.choice(WHERE)
        if kind == "read":
            steps.append((actor, "git", where, *chance.choice(READS)))
        elif kind == "change":
            steps.append((actor, "git", where, *chance.choice(CHANGES)))
        elif kind == "write":
            name = chance.choice(["file1", "file2", "model.bin", "new"])
            steps.append((actor, "write", where, name, f"{number}\n" * chance.choice([9, 600_000])))
        elif kind == "show":
            name = chance.choice(["first:model.bin", "main:model.bin", "side:file1", "HEAD"])
            steps.append(("first", "show", 0, name))
        elif kind == "edit":
            steps.append((actor, "edit", 1, where))
        elif kind == "end":
            steps.append((actor, "end", 1))
        else:
            steps.append((actor, "killed"))
            steps.append(("first", "objects", 0))
    return "", steps


def play(turns: Turns, example: tuple[str, list[Step]]) -> None:
    turns.play(example[1])
    check(turns)


def test_processes_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(3, interleavings(plan), stage.playing(play))

"""What `./test.sh --quick` does not leave out: each command and each room, on a real mount.

Read from the tests themselves: a command or a room that is new fails here until a test that has the
mark `quick` drives it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from cowfs.commands import cli
from tests.test_architecture import ROOMS, below

INTEGRATION = Path(__file__).parent.parent / "integration"


def is_quick(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(mark) == "pytest.mark.quick" for mark in function.decorator_list)


def called(tree: ast.AST) -> Iterator[str]:
    """The words that stand where a command has its name: the first of a call, or behind COWFS."""
    for node in ast.walk(tree):
        words: list[ast.expr] = []
        if isinstance(node, ast.Call):
            words = node.args
        elif isinstance(node, ast.List | ast.Tuple):
            words = node.elts
        if words and isinstance(words[0], ast.Name) and words[0].id == "COWFS":
            words = words[1:]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("run"):
            continue  # another program
        if words and isinstance(words[0], ast.Constant) and isinstance(words[0].value, str):
            yield words[0].value


@functools.cache
def definitions(path: Path) -> dict[str, tuple[Path, ast.AST]]:
    """What a file defines or imports from another one of these, by name."""
    found: dict[str, tuple[Path, ast.AST]] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = path, node
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("integration."):
            other = INTEGRATION.parent / f"{str(node.module).replace('.', '/')}.py"
            if other.exists():
                there = definitions(other)
                found |= {a.name: there[a.name] for a in node.names if a.name in there}
    return found


def commands_of(path: Path) -> set[str]:
    """What the quick tests of a file call, by themselves or by functions and classes they name."""
    left = {
        (path, name)
        for name, (_, node) in definitions(path).items()
        if isinstance(node, ast.FunctionDef) and is_quick(node)
    }
    seen, found = set[tuple[Path, str]](), set[str]()
    while left:
        where, name = left.pop()
        seen.add((where, name))
        known = definitions(where)
        _, node = known[name]
        found.update(called(node))
        named = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        named |= {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
        left |= {(known[other][0], other) for other in named & known.keys()} - seen
    return found


def test_every_command_is_called_by_a_quick_test() -> None:
    found = set[str]().union(*map(commands_of, INTEGRATION.rglob("test_*.py")))
    assert not cli.cowfs.commands.keys() - found


def test_every_room_has_a_quick_test_or_is_used_by_one_that_has() -> None:
    driven = {
        path.parent.name
        for path in INTEGRATION.rglob("test_*.py")
        if any(
            is_quick(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)
        )
    }
    with_tests = {path.parent.name for path in INTEGRATION.glob("*/test_*.py")}
    assert driven >= with_tests
    used = below()
    reached, left = set[str](), driven & set(ROOMS)
    while left:
        room = left.pop()
        reached.add(room)
        left |= used[room] - reached
    assert reached == set(ROOMS)

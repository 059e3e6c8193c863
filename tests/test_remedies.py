"""Every command in a message is written by one printer, which quotes what others have chosen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cowfs.commands import cli

TOP = Path(__file__).parent.parent
ROOT = TOP / "cowfs"

#: Pages and completions are made of commands, and suggest none.
MODULES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).as_posix() not in ("commands/manpages.py", "commands/completion.py")
]

#: What a person could paste: a command of ours, or one of the system with what it is to do.
COMMANDS = re.compile(
    rf"(?<!\ba )\bcowfs ({'|'.join(cli.cowfs.commands)})\b"
    r"|\b(umount|mount|fusermount3?|fuser|lsof|rm|rmdir|mkdir|chmod|chown|chattr|setfattr) -"
    r"|\b(chmod|chown|umount) [/0-9{]"
    r"|\b(modprobe|systemctl|journalctl|kill|pip|apt|apt-get) [a-z/{-]"
    r"|\bsysctl [^ ]+="
)

#: The first argument of these is a command.
PRINTERS = {"command", "of_copy", "of_store"}


def printed(tree: ast.AST) -> set[ast.AST]:
    """The strings that a printer gets."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node.func) in PRINTERS and node.args
        for inner in ast.walk(node.args[0])
        if not isinstance(inner, ast.JoinedStr)  # what is filled in is an operand, and quoted
    }


def documentation(tree: ast.AST) -> set[ast.AST]:
    """The strings that are no messages: docstrings, and the help of an option."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            found.add(node.value)
        elif isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "epilog"):
            found.update(ast.walk(node.value))
    return found


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def unprinted(text: str) -> list[str]:
    """Commands in the messages of a module that no printer has written."""
    tree = ast.parse(text)
    exempt = printed(tree) | documentation(tree)
    found = []
    for node in ast.walk(tree):
        if node in exempt:
            continue
        if isinstance(node, ast.JoinedStr):  # as a whole: a name may stand where the option is
            shown = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            shown = node.value
        else:
            continue
        if match := COMMANDS.search(shown):
            found.append(f"{node.lineno}: {match[0]!r}")
    return sorted(set(found))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_messages_come_from_the_printer(path: Path) -> None:
    assert unprinted(path.read_text()) == [], f"{path}: use cowfs.system.remedy"


@pytest.mark.parametrize(
    "line",
    [
        'x = f"discard it with: cowfs rm {name}"',
        'x = f"first: umount {path}"',
        'x = f"make it with: mkdir -p {path}"',
        'raise Error("load it with: modprobe fuse")',
        'log.warning("ask who has it: fuser -vm %s", path)',
        'x = remedy.command(f"cowfs rm {name}")',
    ],
)
def test_a_command_that_was_written_by_hand_is_found(line: str) -> None:
    assert unprinted(line)


@pytest.mark.parametrize(
    "line",
    [
        "x = f\"discard it with: {remedy.command('cowfs rm', name)}\"",
        'def f():\n    """As `cowfs rm` does."""',
        'x = "the mount, unmount, clone or import failed"',
    ],
)
def test_what_is_no_suggestion_or_was_printed_is_left_alone(line: str) -> None:
    assert not unprinted(line)

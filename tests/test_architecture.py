"""The rooms of cowfs, and that imports between them point down only, as docs/architecture.md draws
them.

Read from the sources, without importing them: an import inside a function or under TYPE_CHECKING
counts as well, because it too makes one room know about another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "cowfs"

#: Which modules make a room, from the top to the bottom. A new module is entered here.
ROOMS = {
    "commands": "__main__ cli commands completion doctor engine helper install interrupts launch "
    "manpages messages mounthelper outcome overlaymount preflight privileges probes remount report "
    "scope umounthelper unmount upgrade",
    "transfer": "clone importing plan journal filecopy filedata verify origin staging",
    "check": "check checkcopy checklower checkrules checktemplate findings",
    "warm": "warm warmfiles",
    "daemon": "attendant daemon keeper keeperlink conversation config deadlines logline "
    "mountpoint oom servicemanager supervisor threads",
    "operations": "operations backing caller priming touching turns",
    "overlay": "overlay overlay_attributes overlay_create overlay_groups overlay_index "
    "overlay_lookup overlay_namespace overlay_parents overlay_publish overlay_remove "
    "overlay_rename overlay_replace overlay_shared overlay_upper overlay_work links restore",
    "inodes": "inodes layers listing vault pieces",
    "copyup": "copyup",
    "store": "store storedir copies templates emptying garbage lowers overlayfs removal names "
    "processes seal scan cloning workers",
    "records": "runtime jsonfile mountinfo",
    "options": "options inplace",
    "channel": "channel",
    "copying": "copying",
    "ondisk": "ondisk treewalk walk",
    "syscalls": "syscalls descriptors directories inherited",
    "errors": "errors",
}

#: The rooms directly below each one. A room may use these and all that are below them.
BELOW = {
    "commands": "daemon check warm transfer store options",
    "transfer": "store",
    "check": "store",
    "warm": "overlay store options",
    "daemon": "channel operations store options",
    "operations": "channel overlay options",
    "overlay": "inodes copyup",
    "inodes": "ondisk",
    "copyup": "ondisk copying",
    "store": "records ondisk copying errors",
    "records": "syscalls",
    "options": "syscalls errors",
    "channel": "",
    "copying": "",
    "ondisk": "syscalls",
    "syscalls": "",
    "errors": "",
}

#: The rooms that may use a package of others.
PACKAGES = {
    "pyfuse3": {"operations", "daemon", "commands"},
    "trio": {"inodes", "operations", "daemon", "commands"},
    "xattr": {"ondisk"},
    "click": {"commands"},
    "rich": {"commands"},
    "xxhash": {"transfer"},
}


def modules() -> dict[str, Path]:
    """Every module below cowfs/ by its dotted name in the package; a package by its own name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    del found["__init__"]  # the package itself: it holds the version and imports nothing
    return found


MODULES = modules()
ROOM_OF = {module: room for room, names in ROOMS.items() for module in names.split()}


def below(room: str) -> set[str]:
    """Every room that this one may use."""
    direct = set(BELOW[room].split())
    return direct.union(*(below(name) for name in direct))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that the file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > 0:
                inside = path.parent != ROOT and node.level == 1
                assert inside, f"{path}:{node.lineno}: a relative import hides the room"
                continue  # inside a subpackage, which is one room
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def module_of(imported: str) -> str | None:
    """The module of cowfs that an import means; None for others, and for the package itself."""
    parts = imported.split(".")
    if parts[0] != "cowfs":
        return None
    for end in range(len(parts), 1, -1):
        if (name := ".".join(parts[1:end])) in MODULES:
            return name
    return None


def room_of(module: str) -> str | None:
    """The room of a module; a subpackage is in the room of its head."""
    return ROOM_OF.get(module) or ROOM_OF.get(module.split(".")[0])


@pytest.mark.parametrize("module", MODULES)
def test_module_uses_only_rooms_below_its_own(module: str) -> None:
    room = room_of(module)
    assert room is not None, f"cowfs/{module}.py is in no room: enter it in ROOMS"
    allowed = {room} | below(room)
    wrong = [
        f"{MODULES[module]}:{line}: {room} may not use {target} ({room_of(target)})"
        for line, imported in imports(MODULES[module])
        if (target := module_of(imported)) is not None and room_of(target) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_module_uses_only_packages_of_its_room(module: str) -> None:
    wrong = [
        f"{MODULES[module]}:{line}: {imported} is not for the room {room_of(module)}"
        for line, imported in imports(MODULES[module])
        if (rooms := PACKAGES.get(imported.split(".")[0])) and room_of(module) not in rooms
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text())), "it has no docstring"


def test_only_directories_lists_what_is_open() -> None:
    """A descriptor that was opened earlier may not show what is in the directory by now."""
    # These name /proc, and what users say.
    by_path = {"inherited", "launch", "preflight", "processes", "threads", "unmount"}
    wrong = [
        f"{path}:{node.lineno}: use cowfs.directories, or list a path"
        for module, path in MODULES.items()
        if module not in by_path | {"directories"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("listdir", "scandir", "fwalk", "walk")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]
    # The channel lists what it opens in the same function.
    listing = [path for path in ROOT.rglob("*.c") if "fdopendir" in path.read_text()]
    assert [path.name for path in listing] == ["touch.c"]
    assert not wrong, "\n".join(wrong)


#: The table of the commands is made of their parsers, and some of the commands are made of it.
CIRCLE = {"cli", "commands", "completion", "install", "manpages"}


def test_no_module_is_above_itself() -> None:
    """Whoever reads one file needs those below it, and not those above. Packages are one file."""
    uses = {
        module: {found for _, imported in imports(path) if (found := module_of(imported))}
        for module, path in MODULES.items()
    }

    def reached(module: str) -> set[str]:
        found: set[str] = set()
        pending = [module]
        while pending:
            new = uses[pending.pop()] - found
            found |= new
            pending += new
        return found

    assert {module for module in MODULES if module in reached(module)} == CIRCLE


def test_no_room_is_above_itself() -> None:
    for room in ROOMS:
        assert room not in below(room)  # a cycle would not end before

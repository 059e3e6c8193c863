"""The rooms of cowfs are its folders, and imports between them point down only.

Read from the sources, without importing them: an import inside a function or under TYPE_CHECKING
counts as well, because it too makes one room know about another. `docs/rooms.py` draws what is
checked here.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ROOT = TOP / "cowfs"
MODULES = sorted(path for path in ROOT.rglob("*.py"))
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

#: The rooms that may use a package of others.
PACKAGES = {
    "pyfuse3": {"overlay", "mount", "commands"},
    "trio": {"overlay", "mount", "commands"},
    "xattr": {"system"},
    "click": {"commands"},
    "rich": {"commands"},
    "xxhash": {"transfer"},
    "grpc": {"csi"},
    "google": {"csi"},
}


def name_of(path: Path) -> str:
    """A module as people call it, such as "store/seal"."""
    return str(path.relative_to(ROOT).with_suffix(""))


def room_of(path: Path) -> str | None:
    """None for what lies beside the rooms: the processes, each of a few lines."""
    return path.parent.name if path.parent != ROOT else None


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A module as it is written."""
    return ast.parse(path.read_text())


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and full dotted name of everything that is imported."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            before = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{before}.{alias.name}") for alias in node.names]
    return found


def of_rooms(imported: list[tuple[int, str]]) -> list[tuple[int, str, str]]:
    """Line, room, and the part of the room that is meant; "" for the room itself."""
    found = []
    for line, name in imported:
        first, *rest = name.split(".")
        if first == "cowfs" and rest and rest[0] in ROOMS:
            found.append((line, rest[0], rest[1] if len(rest) > 1 else ""))
    return found


@functools.cache
def imports_of_rooms(path: Path) -> list[tuple[int, str, str]]:
    """What a module imports, wherever in it."""
    return of_rooms(imports(tree_of(path)))


def below() -> dict[str, set[str]]:
    """The rooms that each room uses."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in MODULES:
        if (room := room_of(path)) is not None:
            found[room].update(other for _, other, _ in imports_of_rooms(path) if other != room)
    return found


def face_of(room: str) -> set[str]:
    """What others may use of a room: __all__ of its __init__.py."""
    for node in ast.parse((ROOT / room / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assert node.targets[0].id == "__all__"
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"the face of {room} has no __all__")


def test_imports_between_rooms_point_down() -> None:
    left = below()
    while left:  # take away a floor that stands on nothing
        floor = {room for room, used in left.items() if not used & left.keys()}
        assert floor, f"these rooms use each other in a circle: {left}"
        left = {room: used for room, used in left.items() if room not in floor}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_a_face_says_where_it_is_by_a_dot(path: Path) -> None:
    assert path.name == "__init__.py" or not any(
        name.startswith(".") for _, name in imports(tree_of(path))
    )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_uses_only_the_faces_of_other_rooms(path: Path) -> None:
    wrong = [
        f"{path}:{line}: {part} is {room}'s own, or not named in its __init__.py"
        for line, room, part in imports_of_rooms(path)
        if room != room_of(path) and part and part not in face_of(room)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_face_shows_what_there_is_and_what_somebody_uses(room: str) -> None:
    used = {
        part
        for path in MODULES
        if room_of(path) != room
        for _, used_room, part in imports_of_rooms(path)
        if used_room == room
    }
    if "" in used:  # somebody uses it whole: for a call of another name
        used = face_of(room) | used - {""}
    assert face_of(room) == used


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_of_a_room_do_not_go_in_circles(path: Path) -> None:
    room, seen, left = room_of(path), set[str](), [path.stem]
    if room is None:
        return
    while left:
        inside = ROOT / room / f"{left.pop()}.py"
        if inside.exists():
            used = {part for _, other, part in imports_of_rooms(inside) if other == room}
            left += used - seen
            seen |= used
    assert path.stem not in seen


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_uses_only_packages_of_its_room(path: Path) -> None:
    wrong = [
        f"{path}:{line}: {imported} is not for the room {room_of(path)}"
        for line, imported in imports(tree_of(path))
        if (rooms := PACKAGES.get(imported.split(".")[0])) and room_of(path) not in rooms
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "it has no docstring"


def test_only_directories_lists_what_is_open() -> None:
    """A descriptor that was opened earlier may not show what is in the directory by now."""
    # These name /proc, and what users say.
    by_path = {"system/inherited", "system/nearby", "system/processes"}
    by_path |= {
        f"mount/{name}"
        for name in ("forked", "forker", "launch", "preflight", "threads", "unmount")
    }
    wrong = [
        f"{path}:{node.lineno}: use cowfs.system.directories, or list a path"
        for path in MODULES
        if name_of(path) not in by_path | {"system/directories"}
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("listdir", "scandir", "fwalk", "walk")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]
    # The channel lists what it opens in the same function.
    listing = [path for path in ROOT.rglob("*.c") if "fdopendir" in path.read_text()]
    assert [path.name for path in listing] == ["touch.c"]
    assert not wrong, "\n".join(wrong)


#: What is started as `python -m cowfs.NAME`. Keepers outlive an upgrade and start the daemon of
#: another version by this name, installed helpers of mount(8) the helper: the names stay for good.
PROCESSES = ("attendant", "daemon", "emptying", "forker", "keeper", "mounthelper", "umounthelper")


def test_beside_the_rooms_there_are_only_processes() -> None:
    found = {path.stem for path in ROOT.glob("*.py")}
    assert found == {"__init__", "__main__", *PROCESSES}


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_starts_by_its_name(process: str) -> None:
    text = (ROOT / f"{process}.py").read_text()
    assert re.fullmatch(
        rf'"""[^"]+: `python -m cowfs\.{process}`\."""\n\nimport sys\n\n'
        rf"from cowfs\.\w+\.{process} import main\n\n"
        r'if __name__ == "__main__":\n    sys\.exit\(main\(sys\.argv\[1:\]\)\)\n',
        text,
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import cowfs.{process}; print(cowfs.{process}.main)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("<function main"), done.stderr


def test_tests_lie_in_rooms_as_the_code_does() -> None:
    for tests in (TOP / "tests", TOP / "integration"):
        folders = {path.name for path in tests.iterdir() if any(path.glob("test_*.py"))}
        assert folders <= {*ROOMS, "conformance", "programs"}  # these two try all of it


def test_the_picture_of_the_rooms_is_current() -> None:
    done = subprocess.run(
        [sys.executable, TOP / "docs" / "rooms.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

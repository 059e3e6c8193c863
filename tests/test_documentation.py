"""What docs/ names exists: files, functions, and the places that links lead to.

The code moves, and nobody reads all pages then.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ROOT = TOP / "cowfs"
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
ROOMS = sorted(face.parent.name for face in ROOT.glob("*/__init__.py"))

#: Those that are about the code.
CODE_PAGES = [
    TOP / "docs" / f"{name}.md" for name in ("architecture", "files", "overlayfs", "surviving")
]


@functools.cache
def text_of(path: Path) -> str:
    """A file's text."""
    return path.read_text()


@functools.cache
def sources() -> list[Path]:
    """Everything of cowfs that somebody has written."""
    return [path for path in ROOT.rglob("*.*") if path.suffix in (".py", ".pyi", ".c", ".h")]


def defines(path: Path, function: str) -> bool:
    """Whether the file has the body of this function, and not its declaration alone."""
    if path.suffix in (".c", ".h"):
        return bool(re.search(rf"^\w[\w \*]*\b{function}\([^;{{]*\)\n{{", text_of(path), re.M))
    return bool(re.search(rf"^ *(async )?def {function}\(", text_of(path), re.M))


def has_member(name: str, member: str) -> bool:
    """Whether some class of this name has such a method or attribute."""
    return any(
        re.search(rf"^class {name}\b", text_of(path), re.M)
        and re.search(rf"\bdef {member}\(|\bself\.{member}\b|^    {member} = ", text_of(path), re.M)
        for path in sources()
    )


def anchors(page: Path) -> set[str]:
    """The places of a page, as they are named where Markdown is shown."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", CODE_PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    wrong = []
    for paragraph in text_of(page).split("\n\n"):
        of_room = re.match(r"\*\*(\w+)\*\*", paragraph)
        for name in re.findall(r"`([\w/]+\.(?:pyi?|c|h))`", paragraph):
            places = [TOP / name, ROOT / name]
            if of_room:
                places = [*places, ROOT / of_room[1] / name]
            elif "/" not in name:
                places = [path for path in sources() if path.name == name]
            if not any(path.exists() for path in places):
                wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("page", CODE_PAGES, ids=lambda page: page.name)
def test_functions_that_are_named_exist(page: Path) -> None:
    text = text_of(page)
    wrong = [
        name
        for name in re.findall(r"`(\w+)\(\)`", text)
        if not any(defines(path, name) for path in sources())
    ]
    wrong += [
        f"{name}.{member}"
        for name, member in re.findall(r"`([A-Z]\w+)\.(\w+)`", text)
        if not has_member(name, member)
    ]
    wrong += [
        f"{file}: {function}"
        for file, function in re.findall(r"^\| \d+ \| `([^`]+)` \| `([^`]+)` \|", text, re.M)
        if not defines(ROOT / file, function)
    ]
    assert not wrong


def test_the_map_has_a_paragraph_for_each_room() -> None:
    told = re.findall(r"^\*\*(\w+)\*\* ", text_of(TOP / "docs" / "architecture.md"), re.M)
    assert sorted(told) == ROOMS

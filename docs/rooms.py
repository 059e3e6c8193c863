"""Draw docs/rooms.svg: the rooms of cowfs, each as low as can be with all that it uses below it.

    python docs/rooms.py            write it
    python docs/rooms.py --check    fail if it is not what would be written

An arrow means that one room imports another. Where a way of other arrows leads to the same room,
it is left out: the picture shows who stands on whom.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent / "cowfs"
PICTURE = Path(__file__).with_name("rooms.svg")

WIDTH, HEIGHT = 250, 76  # of a room
APART, BETWEEN = 30, 56  # beside each other, and from floor to floor
MARGIN = 20
LETTERS = 40  # on one line of a room

Graph = dict[str, set[str]]


def read() -> tuple[dict[str, str], Graph]:
    """What each room says of itself in its first sentence, and the rooms that it imports."""
    faces = sorted(ROOT.glob("*/__init__.py"))
    says = {face.parent.name: _first_sentence(face) for face in faces}
    uses: Graph = {room: set() for room in says}
    for room, used in uses.items():
        for path in (ROOT / room).glob("*.py"):
            used.update(name for name in _imported(path) if name in says and name != room)
    return says, uses


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split()).rstrip(".")


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cowfs":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cowfs."):
            found.add((node.module or "").split(".")[1])
    return found


def reach(uses: Graph, room: str) -> set[str]:
    """Every room below one."""
    return uses[room].union(*(reach(uses, below) for below in uses[room]))


def direct(uses: Graph) -> Graph:
    """The arrows that do not follow from others."""
    return {
        room: {one for one in used if not any(one in reach(uses, other) for other in used)}
        for room, used in uses.items()
    }


def floors(uses: Graph) -> list[list[str]]:
    """The rooms of each floor, from the ground up."""
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = 1 + max(map(of, uses[room]), default=-1)
        return height[room]

    top = max(map(of, uses))
    return [sorted(room for room in uses if of(room) == floor) for floor in range(top + 1)]


def draw(says: dict[str, str], uses: Graph) -> str:
    """The picture as SVG."""
    house = floors(uses)
    widest = max(map(len, house))
    width = widest * WIDTH + (widest - 1) * APART + 2 * MARGIN
    height = len(house) * HEIGHT + (len(house) - 1) * BETWEEN + 2 * MARGIN
    place: dict[str, tuple[int, int]] = {}
    for floor, rooms in enumerate(reversed(house)):
        left = (width - len(rooms) * WIDTH - (len(rooms) - 1) * APART) // 2
        for index, room in enumerate(rooms):
            place[room] = (left + index * (WIDTH + APART), MARGIN + floor * (HEIGHT + BETWEEN))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif">',
        "<!-- made by docs/rooms.py -->",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#567"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for room, used in sorted(direct(uses).items()):
        targets = sorted(used, key=lambda other: place[other])
        for index, other in enumerate(targets):
            x, y = place[room]
            start = x + WIDTH * (index + 1) // (len(targets) + 1)
            end_x, end_y = place[other]
            aim = min(max(start, end_x + 20), end_x + WIDTH - 20)
            lines.append(
                f'<path d="M{start} {y + HEIGHT}L{aim} {end_y - 2}" stroke="#567" fill="none"'
                ' marker-end="url(#end)"/>'
            )
    for room, (x, y) in sorted(place.items()):
        lines.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3f8"'
            ' stroke="#567"/>'
        )
        middle = x + WIDTH // 2
        lines.append(
            f'<text x="{middle}" y="{y + 20}" font-size="15" font-weight="bold"'
            f' text-anchor="middle">{room}/</text>'
        )
        for number, line in enumerate(_wrapped(says[room])):
            lines.append(
                f'<text x="{middle}" y="{y + 37 + 14 * number}" font-size="11"'
                f' text-anchor="middle">{escape(line)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > LETTERS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def main(arguments: list[str]) -> int:
    picture = draw(*read())
    if arguments == ["--check"]:
        if not PICTURE.exists() or PICTURE.read_text() != picture:
            print(f"{PICTURE} is not current: run python docs/rooms.py", file=sys.stderr)
            return 1
        return 0
    PICTURE.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

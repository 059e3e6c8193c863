"""Names and paths: how long they may be, and of which bytes."""

from __future__ import annotations

import os

from integration.conformance.cases import case, equal, exists, fails, get, put


@case
def names_have_255_bytes() -> list[str]:
    longest, longer = "n" * 255, "n" * 256
    put(longest, b"long")
    equal(get(longest), b"long")
    os.mkdir("m" * 255)
    put("m" * 255 + "/" + longest)
    os.symlink("x", "s" * 255)
    os.link("file", "l" * 255)
    os.rename(longest, "r" * 255)
    for call in (os.stat, os.unlink, os.rmdir, os.mkdir, os.listdir, os.readlink, put, os.mkfifo):
        fails("ENAMETOOLONG", call, longer)
        fails("ENAMETOOLONG", call, f"dir/{longer}")
        fails("ENAMETOOLONG", call, f"{longer}/below")
    fails("ENAMETOOLONG", os.symlink, "x", longer)
    fails("ENAMETOOLONG", os.link, "file", longer)
    fails("ENAMETOOLONG", os.rename, "file", longer)
    fails("ENAMETOOLONG", os.chmod, longer, 0o600)
    return sorted(os.listdir("."))


@case
def bytes_are_counted_and_not_characters() -> None:
    put("\u20ac" * 85)
    fails("ENAMETOOLONG", put, "\u20ac" * 85 + "x")


@case
def paths_have_4095_bytes() -> None:
    equal(get("./" * 2045 + "/file"), b"0123456789")
    for call in (os.stat, os.unlink, os.mkdir, os.readlink, put):
        fails("ENAMETOOLONG", call, "./" * 2046 + "file")
    fails("ENAMETOOLONG", os.rename, "file", "./" * 2047 + "new")


@case
def every_byte_but_slash_and_nul() -> list[bytes]:
    for byte in range(1, 256):
        if byte not in b"/.":
            os.close(os.open(b"dir/" + bytes([byte]), os.O_CREAT | os.O_WRONLY, 0o644))
    names = (b"...", b" ", b"-", b"\\", b"a\nb", b"\xff\xfe", b"\xc3", b".wh.x", b"*", b"~")
    for name in names:
        os.makedirs(b"void/" + name)
        os.symlink(name, b"void/" + name + b"/" + name)
        equal(os.readlink(b"void/" + name + b"/" + name), name)
    equal(len(os.listdir(b"dir")), 253 + 3)
    return sorted(os.listdir(b"dir") + os.listdir(b"void"))


@case
def case_and_normal_form_are_kept_apart() -> list[str]:
    for number, name in enumerate(("name", "NAME", "e\u0301", "\u00e9", "name ", "name.")):
        put(f"void/{name}", str(number).encode())
    equal(get("void/NAME"), b"1")
    equal(get("void/\u00e9"), b"3")
    return sorted(os.listdir("void"))


@case
def dots_and_slashes_are_worked_off() -> None:
    for path in ("dir/../file", "./file", ".//file", "dir/sub/../../file", "dirlink/../file"):
        equal(get(path), b"0123456789")
    fails("ENOTDIR", os.stat, "file/.")
    fails("ENOTDIR", os.stat, "file/..")
    fails("ENOENT", os.stat, "none/..")
    fails("ENOENT", os.stat, "")
    equal(os.stat("dir/.").st_ino, os.stat("dir").st_ino)


@case
def deep_directories() -> int:
    depth = 60
    home = os.open(".", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep")
        os.chdir("deep")
    put("leaf", b"far down")
    equal(len(os.getcwd()) > 5 * depth, True)
    os.chdir(home)
    equal(get("deep/" * depth + "leaf"), b"far down")
    os.rename("deep", "void/deep")
    equal(get("void/" + "deep/" * depth + "leaf"), b"far down")
    assert not exists("deep")
    for level in range(depth, 50, -1):
        if level == depth:
            os.unlink("void/" + "deep/" * level + "leaf")
        os.rmdir("void/" + "deep/" * level)
    os.close(home)
    return depth

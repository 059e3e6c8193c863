"""What makes sense in an upper layer, entry by entry, and what findings come to."""

from __future__ import annotations

import stat

import pytest

from cowfs.check.findings import Finding, Report
from cowfs.check.rules import DIRECTORY, WHITEOUT, Entry, ino_of, problems, redirect_path
from cowfs.system import ondisk
from cowfs.system.errors import CHECK_LEFT, CHECK_REPAIRED, MountFailure

FILE = stat.S_IFREG
NUMBER = (77).to_bytes(8, "little")


def broken(entry: Entry) -> list[tuple[str, object]]:
    return [(problem.problem, problem.fix) for problem in problems(entry)]


@pytest.mark.parametrize(
    "entry",
    [
        Entry(FILE, {}),
        Entry(FILE, {ondisk.INO: NUMBER, ondisk.BTIME: bytes(8)}, below=FILE, origin=FILE),
        Entry(FILE, {ondisk.INO: NUMBER, ondisk.DATA: bytes(8) + b"a/b"}, origin=FILE),
        Entry(FILE, {}, below=DIRECTORY),
        Entry(DIRECTORY, {}, below=FILE),
        Entry(DIRECTORY, {ondisk.OPAQUE: b"y"}, below=DIRECTORY),
        Entry(DIRECTORY, {ondisk.OPAQUE: b"y"}),
        Entry(DIRECTORY, {ondisk.OPAQUE: b"y", ondisk.REDIRECT: b"/gone"}),
        Entry(DIRECTORY, {ondisk.REDIRECT: b"/a/b"}, target=DIRECTORY),
        Entry(DIRECTORY, {b"trusted.overlay.origin": b"x", b"trusted.overlay.impure": b"y"}),
        Entry(DIRECTORY, {ondisk.INO: NUMBER}, is_root=True),
        Entry(WHITEOUT, {}, below=FILE),
        Entry(WHITEOUT, {}, whole=False),
        Entry(FILE, {ondisk.INO: NUMBER}, whole=False),
    ],
)
def test_what_cowfs_and_overlayfs_write_is_in_order(entry: Entry) -> None:
    assert broken(entry) == []


@pytest.mark.parametrize("value", [b"", b"/", b"..", b".", b"/..", b"/a/../b", b"//a", b"/a/",
                                   b"a/b", b"../a", b"a\0"])  # fmt: skip
def test_redirect_that_overlayfs_does_not_write_is_none(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"component|bare name"):
        redirect_path(value, b"parent")


def test_redirect_leads_to_a_path_of_the_template() -> None:
    assert redirect_path(b"/a/b", None) == b"a/b"
    assert redirect_path(b"sibling", b"") == b"sibling"
    assert redirect_path(b"sibling", b"a/b") == b"a/b/sibling"
    assert redirect_path(b"sibling", None) is None
    assert redirect_path(b"/...", b"") == b"..."


@pytest.mark.parametrize(("below", "whole", "fix"), [
    (None, True, ondisk.REDIRECT), (FILE, True, ondisk.REDIRECT),
    (DIRECTORY, True, None), (None, False, None),
])  # fmt: skip
def test_redirect_is_taken_away_only_when_that_shows_nothing_new(
    below: int | None, whole: bool, fix: object
) -> None:
    for value, problem in ((b"/../x", "bad-redirect"), (b"/gone", "lost-redirect")):
        entry = Entry(DIRECTORY, {ondisk.REDIRECT: value}, below=below, whole=whole)
        assert broken(entry) == [(problem, fix)]


def test_mark_of_shared_data_goes_with_a_kept_number_on_a_file() -> None:
    data = bytes(8) + b"a/b"
    fix = [("bad-data", ondisk.DATA)]
    assert broken(Entry(FILE, {ondisk.DATA: data})) == fix
    assert broken(Entry(FILE, {ondisk.INO: NUMBER, ondisk.DATA: bytes(8)}, origin=FILE)) == fix
    assert broken(Entry(DIRECTORY, {ondisk.DATA: data})) == [("senseless-mark", ondisk.DATA)]


def test_number_of_another_type_or_of_nothing_is_told_apart() -> None:
    marks = {ondisk.INO: NUMBER}
    assert broken(Entry(FILE, marks, origin=DIRECTORY)) == [("bad-ino", ondisk.INO)]
    [problem] = problems(Entry(FILE, marks, origin=None))
    assert (problem.problem, problem.harmless) == ("lost-ino", True)
    assert ino_of(NUMBER) == 77
    assert ino_of(bytes(8)) is ino_of(b"7") is None


def test_mark_that_is_not_known_is_never_taken_away() -> None:
    for name in (b"trusted.cowfs.later", b"trusted.overlay.metacopy"):
        assert broken(Entry(FILE, {name: b""})) == [("unknown-mark", None)]


def finding(*, harmless: bool = False, repaired: bool = False) -> Finding:
    return Finding("/x", "word", "detail", "remedy", harmless=harmless, repaired=repaired)


@pytest.mark.parametrize(("findings", "unexamined", "code"), [
    ([], False, 0),
    ([finding(harmless=True)], False, 0),
    ([finding(harmless=True, repaired=True)], False, 0),
    ([finding(repaired=True), finding(harmless=True)], False, CHECK_REPAIRED),
    ([finding(repaired=True), finding()], False, CHECK_LEFT),
    ([], True, MountFailure.exit_code),
    ([finding(repaired=True)], True, MountFailure.exit_code),
    ([finding()], True, CHECK_LEFT),
])  # fmt: skip
def test_exit_code_tells_the_worst(findings: list[Finding], unexamined: bool, code: int) -> None:
    report = Report(findings=findings, unexamined=["copy"] if unexamined else [])
    assert report.exit_code == code
    assert report.as_json()["exit_code"] == code
    assert report.as_json()["clean"] == (code != CHECK_LEFT)

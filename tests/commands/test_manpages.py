"""The man pages have everything that the program has."""

from __future__ import annotations

import pytest

from cowfs.commands import cli, manpages, mounthelper, umounthelper
from cowfs.commands.table import Command, table
from cowfs.mount import options
from cowfs.system import errors

COWFS = table(cli.PROGRAM, cli.cowfs)


def words(page: str) -> str:
    """A page without what is roff's: as somebody reads it, on one line."""
    text = manpages.pages(COWFS)[page]
    for written, meant in (("\\-", "-"), ("\\e", "\\"), ("\\(dq", '"'), ("\\&", "")):
        text = text.replace(written, meant)
    return " ".join(text.split())


@pytest.mark.parametrize("command", COWFS.commands, ids=lambda command: command.name)
def test_every_command_with_its_options_and_exit_codes_is_described(command: Command) -> None:
    page = words("cowfs.1")
    assert f'.SS "cowfs {command.name} {command.usage}".'.replace(' ".', '".').rstrip(".") in page
    for paragraph in command.text:
        assert paragraph in page
    for option in command.options:
        assert ", ".join(option.flags) in page
        assert option.help in page
    for line in command.ending[1:]:
        assert line.split(maxsplit=1)[1] in page


def test_the_options_of_the_command_itself_are_described() -> None:
    assert {flag for option in COWFS.options for flag in option.flags} == {
        *("-h", "--help", "--version")
    }
    for option in COWFS.options:
        assert f'.B "{", ".join(option.flags)}" {option.help}' in words("cowfs.1")


def test_every_mount_option_is_described() -> None:
    page = words("cowfs.5")
    for form, text in options.DESCRIPTIONS.items():
        assert f'.B "{form}" {text}' in page
    for name in (*options.GENERIC, *options.FSTAB_WORDS, *options.KERNEL_WORDS):
        assert name in page


@pytest.mark.parametrize("helper", [mounthelper, umounthelper])
def test_every_option_of_the_helpers_is_described(helper: object) -> None:
    page = words("mount.cowfs.8")
    for option in helper.OPTIONS:  # type: ignore[attr-defined]
        assert f'.B "-{option.letter} {option.value}'.rstrip() in page
        assert option.help in page


def test_every_exit_code_is_described() -> None:
    for page in ("cowfs.1", "mount.cowfs.8"):
        for code in errors.EXIT_CODES:
            assert f'.B "{code}"' in words(page)


def test_no_line_is_taken_for_a_command_of_roff() -> None:
    known = (".TH", ".SH", ".SS", ".PP", ".TP", ".B ", ".nf", ".fi", ".so")
    for page in manpages.pages(COWFS).values():
        for line in page.splitlines():
            assert line.startswith(known) or line[0] not in ".'", line

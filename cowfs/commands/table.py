"""The command line as a table, read from the parsers: for man pages and shell completion."""

from __future__ import annotations

import re
from typing import NamedTuple

import click


class Option(NamedTuple):
    """flags: ("-l", "--lazy"). value: what its argument is called, empty when it has none."""

    flags: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str


class Argument(NamedTuple):
    """name: as the parser calls it. shown: as a usage line does, such as "NAME..."."""

    name: str
    shown: str
    many: bool


class Command(NamedTuple):
    """text: paragraphs. ending: lines that stand below the options, such as exit codes. commands:
    its subcommands, in the order in which --help lists them."""

    name: str
    summary: str
    text: list[str]
    options: list[Option]
    arguments: list[Argument]
    ending: list[str]
    commands: list[Command]

    @property
    def usage(self) -> str:
        """What stands behind the command's name."""
        words = ["[OPTIONS]"] if self.options else []
        return " ".join([*words, *(argument.shown for argument in self.arguments)])

    def below(self) -> list[Command]:
        """Its subcommands, each followed by its own, which have both names: "store rm"."""
        found = []
        for command in self.commands:
            found.append(command)
            found += [
                inner._replace(name=f"{command.name} {inner.name}") for inner in command.below()
            ]
        return found


def table(program: str, command: click.Command) -> Command:
    """A program of this name, with all its subcommands."""
    return _command(click.Context(command, info_name=program, **command.context_settings))


def _command(context: click.Context) -> Command:
    command = context.command
    options, arguments = [], []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            options.append(_option(parameter, context))
        elif isinstance(parameter, click.Argument):
            shown = " ".join(parameter.get_usage_pieces(context))
            arguments.append(Argument(parameter.name or "", shown, parameter.nargs != 1))
    below = command.commands if isinstance(command, click.Group) else {}
    return Command(
        name=context.info_name or "",
        summary=command.get_short_help_str(1000),
        text=_paragraphs(command.help or ""),
        options=options,
        arguments=arguments,
        ending=[line for line in (command.epilog or "").replace("\b", "").splitlines() if line],
        commands=[
            _command(click.Context(inner, info_name=name, parent=context))
            for name, inner in sorted(below.items())
            if not inner.hidden
        ],
    )


def _option(option: click.Option, context: click.Context) -> Option:
    flags = (*option.opts, *option.secondary_opts)
    # click itself writes what an argument is called, what is the default, and the range of numbers.
    names, text = option.get_help_record(context) or ("", "")
    value = names.split(", ")[-1].partition(" ")[2]
    choices = tuple(option.type.choices) if isinstance(option.type, click.Choice) else ()
    return Option(flags, value, choices, " ".join(text.split()))


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()) if part]

"""Completion for bash, zsh and fish, made from the parsers and the table of mount options.

Words that do not change are written into the scripts. Names of copies and mountpoints are asked for
when they are completed: `cowfs list --json`, findmnt(8).
"""

from __future__ import annotations

import shlex

from cowfs.commands.table import Argument, Command, Option
from cowfs.mount import options

# What stands for an argument, where it is not a path.
_COPIES = "copies"
_MOUNTS = "mounts"
_PATHS = ("destination", "source")  # beside a copy

_SHELL_FUNCTIONS = r"""
_cowfs_copies() {
    cowfs list --json 2>/dev/null | sed -n 's/^ *"name": "\(.*\)",$/\1/p' | sed 's/\\\(.\)/\1/g'
}

_cowfs_mounts() {
    printf '%b\n' "$(findmnt --raw --noheadings --types fuse.cowfs --output TARGET)"
}
"""

_BASH = r"""
_cowfs_mount_options() {
    local before= item=$cur
    [[ $cur == *,* ]] && before=${cur%,*}, item=${cur##*,}
    compopt -o nospace
    case $item in
    store=*) mapfile -t COMPREPLY < <(compgen -P "${before}store=" -d -- "${item#store=}") ;;
    *) mapfile -t COMPREPLY < <(compgen -P "$before" -W @options@ -- "$item") ;;
    esac
    # readline takes what stands behind the last = for the word
    local shown=${cur%"${cur##*=}"}
    [[ $COMP_WORDBREAKS != *=* ]] || COMPREPLY=("${COMPREPLY[@]#"$shown"}")
}

_cowfs_lines() {
    local line
    while IFS= read -r line; do
        line=$(printf '%q' "$line")
        [[ $line == "$cur"* ]] && COMPREPLY+=("$line")
    done
}

_cowfs_paths() {
    compopt -o filenames
    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")
}

_cowfs() {
    local cur prev words cword word command= IFS=$' \t\n'
    _get_comp_words_by_ref -n =: cur prev words cword
    COMPREPLY=()
    for word in "${words[@]:1:cword-1}"; do
        [[ $word == -* ]] || { command=$word; break; }
    done
    case $command:$prev in
@values@
    esac
    if [[ $cur == -* || -z $command ]]; then
        case $command in
@words@
        esac
        mapfile -t COMPREPLY < <(compgen -W "$word" -- "$cur")
        return
    fi
    case $command in
@arguments@
    *) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}
complete -F _cowfs cowfs
"""

_ZSH = r"""
_cowfs_mount_options() {
    _values -s , 'mount option' @options@
}

_cowfs_lines() {
    # _arguments puts what is for compadd before our own word
    local -a found
    found=(${(f)"$(_cowfs_$argv[-1])"})
    compadd "${@[1,-2]}" -a found
}

_cowfs() {
    local curcontext=$curcontext state line
    typeset -A opt_args
    _arguments -C @top@ '1:command:->command' '*::argument:->argument'
    case $state in
    command)
        local -a commands=(@commands@)
        _describe command commands
        ;;
    argument)
        case $line[1] in
@arguments@
        esac
        ;;
    esac
}

_cowfs "$@"
"""

_FISH = r"""
function __cowfs_copies
    cowfs list --json 2>/dev/null | string match -rg '^ *"name": "(.*)",$' |
        string replace -ra '\\\\(.)' '$1'
end

function __cowfs_mounts
    for path in (findmnt --raw --noheadings --types fuse.cowfs --output TARGET)
        printf '%b\n' $path
    end
end

function __cowfs_mount_options
    set -l before (string match -r '^.*,' -- (commandline -ct | string replace -r '^-o' ''))
    printf '%s\n' "$before"@options@
end

function __cowfs_is
    contains -- $argv[1] (commandline -opc)[2..]
end

complete -c cowfs -f
"""


def bash(top: Command) -> str:
    """A script for bash-completion."""
    values, words, arguments = [], [], []
    for command in top.commands:
        for option in _options(command):
            if option.value:
                pattern = "|".join(f"{command.name}:{flag}" for flag in option.flags)
                values.append(f"    {pattern}) {_bash_value(option)}; return ;;")
        flags = " ".join(flag for option in _options(command) for flag in option.flags)
        words.append(f"        {command.name}) word={shlex.quote(flags)} ;;")
        kinds = {_kind(command, argument) for argument in command.arguments} - {None}
        takes_path = any(argument.name in _PATHS for argument in command.arguments)
        arguments += [
            f"    {command.name}) _cowfs_lines < <(_cowfs_{kind})"
            + ("; _cowfs_paths ;;" if takes_path else " ;;")
            for kind in kinds
        ]
        if below := " ".join(inner.name for inner in command.commands):
            arguments.append(
                f"    {command.name}) compopt -o filenames; mapfile -t COMPREPLY < "
                f'<(compgen -W {shlex.quote(below)} -- "$cur"; compgen -d -- "$cur") ;;'
            )
    names = [command.name for command in top.commands]
    own = [flag for option in top.options for flag in option.flags]
    words.append(f"        '') word={shlex.quote(' '.join([*names, *own]))} ;;")
    words.append("        *) word= ;;")
    return _filled(
        _heading("bash") + _SHELL_FUNCTIONS + _BASH,
        options=shlex.quote(" ".join(_option_words())),
        values="\n".join(values),
        words="\n".join(words),
        arguments="\n".join(arguments),
    )


def zsh(top: Command) -> str:
    """A function for the directories that zsh's compinit reads."""
    arguments = []
    for command in top.commands:
        specs = [spec for option in _options(command) for spec in _zsh_option(option)]
        specs += [_zsh_argument(command, argument) for argument in command.arguments]
        if below := " ".join(inner.name for inner in command.commands):
            specs += [shlex.quote(f"1:command:({below})"), shlex.quote("*:path:_files")]
        lines = " \\\n".join(f"            {spec}" for spec in specs)
        arguments.append(f"        {command.name}) _arguments \\\n{lines} ;;")
    described = [
        shlex.quote(f"{command.name}:{command.summary}".replace("\\", "\\\\"))
        for command in top.commands
    ]
    return _filled(
        "#compdef cowfs\n" + _heading("zsh") + _SHELL_FUNCTIONS + _ZSH,
        options=" ".join(_zsh_mount_options()),
        top=" ".join(spec for option in top.options for spec in _zsh_option(option)),
        commands=" ".join(described),
        arguments="\n".join(arguments),
    )


def fish(top: Command) -> str:
    """A script for one of fish's directories of completions."""
    first = "__fish_use_subcommand"
    lines = [_fish_option(first, option) for option in top.options]
    for command in top.commands:
        summary = _fish_quoted(command.summary)
        lines.append(f"complete -c cowfs -n {first} -a {command.name} -d {summary}")
        condition = f"'__cowfs_is {command.name}'"
        lines += [_fish_option(condition, option) for option in _options(command)]
        for inner in command.commands:
            summary = _fish_quoted(inner.summary)
            lines.append(f"complete -c cowfs -n {condition} -a {inner.name} -d {summary} -F")
        kinds = {_kind(command, argument) for argument in command.arguments}
        if None in kinds:
            lines.append(f"complete -c cowfs -n {condition} -F")
        lines += [
            f"complete -c cowfs -n {condition} -a '(__cowfs_{kind})'"
            for kind in sorted(kind for kind in kinds if kind is not None)
        ]
    words = ",".join(_fish_quoted(word) for word in _option_words())
    return _filled(_heading("fish") + _FISH, options=f"{{{words}}}") + "\n".join([*lines, ""])


def _heading(shell: str) -> str:
    return f"# {shell} completion for cowfs, made by `cowfs install`\n"


def _filled(template: str, **parts: str) -> str:
    for name, part in parts.items():
        template = template.replace(f"@{name}@", part)
    return template


def _options(command: Command) -> list[Option]:
    """Those of a command, and of its subcommands."""
    of_all = [command, *command.commands]
    return list({option.flags: option for one in of_all for option in one.options}.values())


def _kind(command: Command, argument: Argument) -> str | None:
    """What an argument is, when it is no path."""
    if argument.name in ("name", "names", "other"):
        return _COPIES
    if argument.name == "mountpoint" and command.name in ("logs", "stats", "top", "umount"):
        return _MOUNTS
    return None


def _option_words() -> list[str]:
    """Mount options, with each choice; those that need more end in "="."""
    words = []
    for form in options.DESCRIPTIONS:
        name, equals, _value = form.partition("=")
        choices = options.CHOICES.get(name)
        words += [f"{name}={choice}" for choice in choices] if choices else [name + equals]
    return [*words, *(name for name in options.GENERIC if name not in options.DESCRIPTIONS)]


def _bash_value(option: Option) -> str:
    if option.value == "OPTIONS":
        return "_cowfs_mount_options"
    if option.value == "DIR":
        return 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$cur")'
    words = shlex.quote(" ".join(option.choices))
    return f'mapfile -t COMPREPLY < <(compgen -W {words} -- "$cur")' if option.choices else ":"


def _zsh_text(text: str) -> str:
    """Inside the brackets of a specification."""
    return "".join(f"\\{char}" if char in "[]:\\" else char for char in text)


def _zsh_option(option: Option) -> list[str]:
    text = f"[{_zsh_text(option.help)}]"
    if option.value == "OPTIONS":
        value = ":options:_cowfs_mount_options"
    elif option.value == "DIR":
        value = ":directory:_directories"
    elif option.choices:
        value = f":value:({' '.join(option.choices)})"
    else:
        value = f":{_zsh_text(option.value)}: " if option.value else ""
    return [shlex.quote(f"{flag}{text}{value}") for flag in option.flags]


def _zsh_argument(command: Command, argument: Argument) -> str:
    kind = _kind(command, argument)
    action = "_files" if kind is None else f"_cowfs_lines {kind}"
    count = "*" if argument.many else ""
    return shlex.quote(f"{count}:{argument.name}:{action}")


def _zsh_mount_options() -> list[str]:
    specs = []
    for form, text in options.DESCRIPTIONS.items():
        name, equals, value = form.partition("=")
        choices = options.CHOICES.get(name)
        action = f"({' '.join(choices)})" if choices else "_directories" if value == "DIR" else " "
        specs.append(f"{name}[{_zsh_text(text)}]" + (f":{value}:{action}" if equals else ""))
    specs += [name for name in options.GENERIC if name not in options.DESCRIPTIONS]
    return [shlex.quote(spec) for spec in specs]


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_option(condition: str, option: Option) -> str:
    words = ["complete -c cowfs -n", condition]
    for flag in option.flags:
        words += ["-l", flag[2:]] if flag.startswith("--") else ["-s", flag[1:]]
    if option.value == "OPTIONS":
        words += ["-x", "-a", "'(__cowfs_mount_options)'"]
    elif option.value == "DIR":
        words += ["-x", "-a", "'(__fish_complete_directories)'"]
    elif option.value:
        words += ["-x", "-a", _fish_quoted(" ".join(option.choices))]
    return " ".join([*words, "-d", _fish_quoted(option.help)])

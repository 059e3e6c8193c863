"""Real shells, and what they make of a line when somebody presses Tab."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

#: What each shell is told before anything is completed. The control character T shows the line.
SET_UP = {
    "bash": """
        bind 'set show-all-if-ambiguous on'; bind 'set bell-style none'
        bind 'set enable-bracketed-paste off'; bind 'set page-completions off'
        source /usr/share/bash-completion/bash_completion
        source {script}
        bind -x '"\\C-t": printf "\\n[%s]\\n" "$READLINE_LINE"'
    """,
    "zsh": """
        fpath=({directory} $fpath)
        autoload -Uz compinit; compinit -u -d {directory}/dump
        unsetopt beep list_beep; setopt auto_list no_auto_menu; LISTMAX=10000
        show-line() {{ zle -I; print -r -- "[$BUFFER]" }}
        zle -N show-line; bindkey '^T' show-line
    """,
}
COMMANDS = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "zsh": ("zsh", "-f", "-i"),
}
_PROMPT = "ready%"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\r\a\x00]")


class Completed:
    """line: as it stands after Tab. shown: everything that the shell printed meanwhile."""

    def __init__(self, shown: str) -> None:
        self.shown, _, line = shown.rpartition("[")
        self.line = line.partition("]")[0]


def complete(shell: str, script: Path, line: str, path: str) -> Completed:
    """Type *line* and Tab into an interactive shell that has read the completion script.

    path: PATH of the shell, whose directory is the script's.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        COMMANDS[shell],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=script.parent,  # names in it are offered, too
        env={**os.environ, "PATH": path, "PS1": "", "TERM": "vt100", "COLUMNS": "500"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        os.write(ours, b"stty cols 500 -echo; PS1=; unset PROMPT_COMMAND\n")
        set_up = SET_UP[shell].format(script=script, directory=script.parent)
        for command in set_up.strip().splitlines():
            os.write(ours, f"{command.strip()}\n".encode())
        # In two parts: the shell shows what is typed, too.
        os.write(ours, b"printf '%s%%\\n' read''y\n")
        _read_until(ours, r"ready%")
        os.write(ours, f"{line}\t\x14".encode())
        return Completed(_read_until(ours, r"\[[^\]\n]*\]\n"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def _read_until(fd: int, pattern: str, seconds: float = 30) -> str:
    text = ""
    deadline = time.monotonic() + seconds
    while not re.search(pattern, text):
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"the shell did not come to {pattern!r}: {text!r}"
        text += _CONTROL.sub("", os.read(fd, 65536).decode(errors="replace"))
    return text

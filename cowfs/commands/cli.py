"""The command line: what the words mean, how errors look, which exit code they get.

What a command does is in a module of its own, imported when the command is called: a mount must not
wait for what only the doctor needs. Results go to stdout, errors and warnings to stderr, one line
each, with nothing in them that a terminal would obey.
"""

from __future__ import annotations

import atexit
import json
import re
import time
from collections.abc import Iterator, Sequence
from gc import freeze
from typing import TYPE_CHECKING, Any, Literal

import click

from cowfs import __version__
from cowfs.commands import messages, report
from cowfs.mount.options import DESCRIPTIONS
from cowfs.system.errors import (
    CHECK_EXIT_CODES,
    EXIT_CODES,
    WARM_EXIT_CODES,
    CowfsError,
    Interrupted,
    SystemFailure,
    UsageError,
)

if TYPE_CHECKING:
    from cowfs.check.findings import Report
    from cowfs.store.runtime import Record
    from cowfs.store.store import CopyInfo, Store
    from cowfs.warm.filling import Outcome

PROGRAM = "cowfs"

_EPILOG = "\b\nExit codes, as in mount(8):\n" + "\n".join(
    f"  {code:>2}  {meaning}" for code, meaning in EXIT_CODES.items()
)

_store_option = click.option(
    "--store",
    metavar="DIR",
    help="Only this store. Without it: the .cowfs of every mounted volume, and those in use.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.version_option(__version__, message="cowfs %(version)s")
@click.pass_context
def cowfs(context: click.Context) -> None:
    """Instant copy-on-write copies of directories, read at the speed of XFS."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cowfs.command(short_help="Mount an instant copy of a directory.")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help=f"Options, separated by commas: {', '.join(DESCRIPTIONS)}, and those of mount(8) such as "
    "noexec or relatime. nosuid and nodev are on unless suid or dev is given. See cowfs(5).",
)
@click.option(
    "-f",
    "--foreground",
    is_flag=True,
    help="Serve the mount in this process until it is unmounted.",
)
@click.argument("source")
@click.argument("mountpoint")
def mount(options: tuple[str, ...], foreground: bool, source: str, mountpoint: str) -> int:
    """Mount an instant copy of the directory SOURCE on MOUNTPOINT.

    Returns when the mount answers. The copy is a snapshot: neither side sees later changes of the
    other. It is kept after unmounting under a name made from MOUNTPOINT, or copy=NAME, and the next
    mount there goes on with it; with -o ephemeral it goes away.
    """
    from cowfs.mount import launch
    from cowfs.mount.options import parse

    if foreground:
        _show_log()
    return launch.mount(
        source,
        mountpoint,
        parse(options),
        foreground=foreground,
        warn=_warn,
        progress=report.sealing_progress,
    )


@cowfs.command(short_help="Make a plain reflink copy, without a mount.")
@click.option(
    "--reflink",
    type=click.Choice(["always", "auto"]),
    default="always",
    help="always (default): clone, or fail; auto: copy the data of what cannot be cloned.",
)
@click.argument("source")
@click.argument("destination")
def clone(reflink: Literal["always", "auto"], source: str, destination: str) -> None:
    """Copy SOURCE, a directory or file, to DESTINATION on the same volume by sharing its blocks.

    As cp -a --reflink=always, on all cores. DESTINATION must not exist; it appears when the copy
    is whole.
    """
    from cowfs.system.interrupts import Interrupts
    from cowfs.transfer import clone as clones

    with report.cloning_progress() as progress, Interrupts("nothing was made") as interrupts:
        clones.clone(
            source,
            destination,
            reflink=reflink,
            warn=_warn,
            progress=progress,
            interruptible=interrupts.allowed,
        )


@cowfs.command("import", short_help="Bring a directory from another volume onto this one.")
@click.option("--resume", is_flag=True, help="Go on with an import that was interrupted.")
@click.option("--verify", is_flag=True, help="Read both sides back and compare them (xxhash).")
@click.option(
    "--region",
    default="64M",
    metavar="SIZE",
    help="Larger files are copied in parts of this size, several at once (default 64M).",
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1, 64),
    help="Processes that copy (default: one for each processor, 8 at most).",
)
@click.option(
    "--depth",
    metavar="N",
    type=click.IntRange(1, 1024),
    default=16,
    help="Blocks of 1 MiB under way in each of them, and so its memory (default 16).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: progress, and the result.")
@click.argument("source")
@click.argument("destination")
def import_(
    resume: bool,
    verify: bool,
    region: str,
    jobs: int | None,
    depth: int,
    as_json: bool,
    source: str,
    destination: str,
) -> None:
    """Copy the directory SOURCE, from any filesystem, to DESTINATION on an XFS volume.

    The copies that cowfs mount makes need their source there. DESTINATION must not exist; it
    appears when everything is copied and on disk. What is interrupted goes on with --resume.
    """
    from cowfs.mount.options import parse_size
    from cowfs.system.interrupts import Interrupts
    from cowfs.transfer import importing

    size = parse_size("region", region)
    if size < importing.LEAST_REGION:
        raise UsageError(f"--region={region}: regions have at least 1M")
    options = importing.Options(resume, verify, size, jobs or 0, depth)
    go_on = f"nothing was published; go on with: {importing.command(source, destination)}"
    started = time.monotonic()
    try:
        with report.import_progress(as_json) as progress, Interrupts(go_on) as interrupts:
            result = importing.import_(
                source,
                destination,
                options,
                warn=_warn,
                progress=progress,
                interruptible=interrupts.allowed,
            )
    except CowfsError as error:
        if as_json:
            failed = {"event": "failed", "error": str(error), "exit_code": error.exit_code}
            click.echo(json.dumps(failed))
        raise
    if as_json:
        seconds = round(time.monotonic() - started, 3)
        rest = {"seconds": seconds, "verified": verify, "destination": destination}
        click.echo(json.dumps({"event": "done", **result._asdict(), **rest}))


@cowfs.command(short_help="Unmount a copy, and say what was kept.")
@click.option(
    "-l",
    "--lazy",
    is_flag=True,
    help="Detach it now, and let what still uses it finish (umount -l).",
)
@click.argument("mountpoint")
def umount(lazy: bool, mountpoint: str) -> None:
    """Unmount the copy at MOUNTPOINT, and say what was kept and how to discard it."""
    from cowfs.commands import outcome
    from cowfs.mount import unmount

    report.tell(outcome.line(unmount.unmount(mountpoint, lazy=lazy)))


@cowfs.command(short_help="Have this version serve the mounts of another one.")
@click.option("--all", "everything", is_flag=True, help="Every mount of this machine.")
@click.argument("mountpoint", required=False)
def upgrade(everything: bool, mountpoint: str | None) -> int:
    """Let this version of cowfs take the mount at MOUNTPOINT over from the one that serves it.

    Nothing is unmounted: open files stay open, and passed-through reads do not notice. A version
    that cannot take over says so, and the other one goes on. The way back is the same command of
    the other version.
    """
    if (mountpoint is None) != everything:
        raise UsageError("name a mountpoint, or say --all: see cowfs upgrade --help")
    from cowfs.mount import upgrade as upgrading

    code = 0
    for record in upgrading.records(mountpoint):
        try:
            report.tell(upgrading.upgrade(record))
        except CowfsError as error:
            _say_error(str(error))
            code = max(code, error.exit_code)
    return code


@cowfs.command("list", short_help="List the copies.")
@_json_option
@_store_option
def list_(as_json: bool, store: str | None) -> None:
    """List the copies, with their template, mountpoint, private bytes and age.

    PRIVATE is what a copy costs: the bytes of its own files that share no blocks with any other
    file (FIEMAP).
    """
    rows = _copies(store)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    now = time.time()
    report.table(
        ("NAME", "SOURCE", "TEMPLATE", "MOUNTED AT", "ENGINE", "PRIVATE", "AGE", "PID"),
        [
            (
                row["name"] if row["persistent"] else f"{row['name']} (ephemeral)",
                row["source"],
                row["template"] or "-",
                row["mountpoint"] or "-",
                row["engine"] or "-",
                report.human_size(row["private_bytes"]),
                report.age(now - row["created"]),
                str(row["daemon_pid"] or "-"),
            )
            for row in rows
        ],
    )


@cowfs.command(short_help="Discard copies that are not mounted.")
@_store_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def rm(store: str | None, names: tuple[str, ...]) -> int:
    """Discard copies that are not mounted, and what was written to them."""
    stores = _stores(store)
    code = 0
    for name in dict.fromkeys(names):
        try:
            _holding(stores, name).remove(name)
        except CowfsError as error:
            _say_error(str(error))
            code = max(code, error.exit_code)
    return code


@cowfs.command(short_help="Delete what no copy needs.")
@_store_option
def gc(store: str | None) -> None:
    """Delete what no copy needs: old templates, and what a crash left behind."""
    for found in _stores(store):
        removed = found.collect()
        click.echo(
            report.printable(
                f"{found.path}: removed {report.count(len(removed.templates), 'template')} and "
                f"{report.count(len(removed.copies), 'ephemeral copy', 'ephemeral copies')}"
            )
        )


@cowfs.command(
    short_help="Look for damage in copies and templates.",
    epilog="\b\nExit codes:\n"
    + "\n".join(f"  {code:>2}  {meaning}" for code, meaning in CHECK_EXIT_CODES.items()),
)
@click.option("--all", "everything", is_flag=True, help="Every copy and template, not NAME.")
@click.option("--repair", is_flag=True, help="Repair what can be repaired without a loss.")
@_json_option
@_store_option
@click.argument("names", metavar="[NAME...]", nargs=-1)
def check(
    everything: bool, repair: bool, as_json: bool, store: str | None, names: tuple[str, ...]
) -> int:
    """Look for damage in copies that are not mounted, and in their templates.

    One line for each finding says what is wrong, and what to do about it. What is called harmless
    was left by a crash and cannot be noticed. A repair never removes what a user wrote.
    """
    if bool(names) == everything:
        raise UsageError("name the copies to look at, or say --all: see cowfs check --help")
    from cowfs.check import examine as checks
    from cowfs.check.findings import Report

    stores = _stores(store)
    wanted: dict[Store, list[str] | None] = dict.fromkeys(stores) if everything else {}
    for name in dict.fromkeys(names):
        holding = wanted.setdefault(_holding(stores, name), [])
        assert holding is not None
        holding.append(name)
    found = Report()
    with report.checking_progress() as progress:
        for one, chosen in wanted.items():
            checks.check(one, chosen, repair=repair, progress=progress, report=found)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in _check_lines(found):
            report.tell(line)
    return found.exit_code


@cowfs.command(
    short_help="Fill the page cache before somebody reads.",
    epilog="\b\nExit codes:\n"
    + "\n".join(f"  {code:>2}  {meaning}" for code, meaning in WARM_EXIT_CODES.items()),
)
@click.option(
    "--limit",
    metavar="SIZE",
    help="Read at most SIZE bytes (with k, M, G or T) that are not in memory yet. Without it: "
    "seven eighths of the memory that is available, to this control group too.",
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="Read with N threads.",
)
@_json_option
@click.argument("paths", metavar="MOUNTPOINT|PATH...", nargs=-1, required=True)
def warm(limit: str | None, jobs: int, as_json: bool, paths: tuple[str, ...]) -> int:
    """Fill the page cache with the files at and below each PATH, before somebody reads them.

    In a copy root reads the files behind it: their pages serve all copies of the same template, and
    no second set of pages is made. Elsewhere the files themselves are read. What is in memory
    already is not read again, holes cost nothing, and a file with several names is read once.

    Files are read in the order of their names. A PATH that is a symlink is followed, a symlink
    below it is not, and other mounts below it are left out. SIGINT and SIGTERM end it with the
    report so far.
    """
    from cowfs.mount.options import parse_size
    from cowfs.system.interrupts import sigterm_like_sigint
    from cowfs.warm import filling as warming

    size = None if limit is None else parse_size("--limit", limit)
    try:
        with sigterm_like_sigint(), report.warming_progress() as progress:
            outcome = warming.warm(paths, limit=size, jobs=jobs, progress=progress)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UsageError(f"{where}{error.strerror}") from None
    for path, reason in outcome.errors:
        _say_error(f"{path}: {reason}")
    if as_json:
        click.echo(json.dumps(outcome.as_json(), indent=2))
    else:
        for line in _warm_lines(outcome, default_limit=size is None):
            report.tell(line)
    if outcome.interrupted:
        return Interrupted.exit_code
    return SystemFailure.exit_code if outcome.errors else 0


@cowfs.command(short_help="Tell whether copies work here, and what to do if not.")
@_json_option
@click.argument("path", required=False)
def doctor(as_json: bool, path: str | None) -> int:
    """Tell whether copies work on this machine, and on the volume of PATH, and what to do if not.

    Exits with 0 when a mount would work, else with 32.
    """
    from cowfs.commands import doctor as doctors

    findings = doctors.examine(path)
    if as_json:
        click.echo(json.dumps(doctors.as_json(findings), indent=2))
    else:
        for line, indent in doctors.as_lines(findings):
            report.tell(line, indent)
    return 0 if doctors.would_mount(findings) else CowfsError.exit_code


@cowfs.command(short_help="Put mount helpers, units and man pages into the system.")
@click.option(
    "--root",
    metavar="DIR",
    default="/",
    help="Below this directory, as for a package or an image, not below /.",
)
@click.option("--uninstall", is_flag=True, help="Take away what was put there.")
def install(root: str, uninstall: bool) -> None:
    """Install helpers, units, man pages and completions where the system expects them.

    With it mount -t cowfs and fstab work. What is there already and is not its own is never
    overwritten; --uninstall takes away what it put there, and nothing that was changed since.
    """
    from cowfs.commands import install as installation
    from cowfs.commands import table

    had_units = installation.has_units(root)
    done = (
        installation.uninstall(root)
        if uninstall
        else installation.install(root, table.table(PROGRAM, cowfs))
    )
    for path in done.written:
        click.echo(report.printable(f"installed {path}"))
    for path in done.removed:
        click.echo(report.printable(f"removed {path}"))
    for path in done.kept:
        _warn(f"{path} was changed by somebody, and is left there")
    if root == "/" and (had_units or installation.has_units(root)):
        click.echo("now tell systemd about the units: systemctl daemon-reload")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Every failure is one line on stderr."""
    # At its end the interpreter would look for garbage in all that there is. The kernel frees it as
    # well, and that takes none of the few hundredths of a second that a short command has.
    atexit.register(freeze)

    def run() -> int:
        try:
            code = cowfs.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        except click.ClickException as error:
            raise _wrong_call(error) from None
        except click.Abort:
            raise Interrupted("interrupted") from None
        return code if isinstance(code, int) else 0

    return messages.told(PROGRAM, run)


def _copies(store: str | None) -> list[dict[str, Any]]:
    """Every copy as `cowfs list --json` shows it, by name."""
    from cowfs.store import runtime

    records = {(record.store, record.copy): record for record in runtime.all()}
    rows = [
        _row(found, copy, records.get((found.path, copy.name)))
        for found in _stores(store)
        for copy in found.copies()
    ]
    return sorted(rows, key=lambda row: (row["name"], row["store"]))


def _row(store: Store, copy: CopyInfo, record: Record | None) -> dict[str, Any]:
    from cowfs.store import runtime

    place = None if record is None else runtime.place(record)
    return {
        "name": copy.name,
        "source": copy.source,
        "template": copy.template,
        "mountpoint": None if place is None else place.mount.mountpoint,
        "engine": None if record is None else record.engine,
        "persistent": copy.persistent,
        "private_bytes": copy.private_bytes,
        "created": copy.created,
        "daemon_pid": None if record is None else runtime.living(record.daemon_pid),
        "keeper_pid": None if record is None else runtime.living(record.keeper_pid),
        "options": None if record is None else record.options,
        "store": store.path,
    }


def _check_lines(found: Report) -> Iterator[str]:
    """What `cowfs check` has found, for people."""
    for finding in found.findings:
        remedy = f": {finding.remedy}" if finding.remedy else ""
        yield f"{finding.status}: {finding.path}: {finding.detail}{remedy}"
    for name in found.in_use:
        yield f"not examined: the copy {name} is in use: unmount it and check again"
    counts = [
        report.count(found.copies, "copy", "copies"),
        report.count(found.templates, "template"),
        report.count(found.entries, "entry", "entries"),
    ]
    problems = [
        report.count(found.count("error"), "error"),
        f"{found.count('repaired')} repaired",
        f"{found.count('harmless')} harmless",
    ]
    verdict = ", ".join(problems) if found.findings else "clean"
    yield f"{', '.join(counts)}: {verdict}"


def _warm_lines(outcome: Outcome, *, default_limit: bool) -> Iterator[str]:
    """What `cowfs warm` has done, for people."""

    def size(amount: int | None) -> str:
        return "not told to this user" if amount is None else report.human_size(amount)

    speed = report.human_size(int(outcome.read / max(outcome.seconds, 0.001)))
    yield f"{report.count(outcome.files, 'file')}, {size(outcome.bytes)}"
    yield f"in memory before: {size(outcome.resident_before)}"
    yield f"read: {size(outcome.read)} in {outcome.seconds:.1f} s ({speed}/s)"
    yield f"in memory now: {size(outcome.resident_after)}"
    if outcome.limit_reached:
        reason = "what the memory has to spare" if default_limit else "--limit"
        yield f"not everything was read: the limit is {size(outcome.limit)}, {reason}"
    if outcome.interrupted:
        yield "interrupted"


def _stores(path: str | None) -> list[Store]:
    from cowfs.store.store import Store

    _show_log()
    return Store.discover() if path is None else [Store.open(path)]


def _holding(stores: list[Store], name: str) -> Store:
    """The one store that has a copy of this name."""
    from cowfs.store import copies
    from cowfs.store.names import check_name

    check_name(name)
    holding = [store for store in stores if name in copies.names(store)]
    if not holding:
        raise UsageError(f"there is no copy {name!r}: cowfs list shows the copies")
    if len(holding) > 1:
        paths = ", ".join(store.path for store in holding)
        raise UsageError(f"several stores have a copy {name!r}: {paths}; name one with --store DIR")
    return holding[0]


# As click says it: "No such command 'mout'. (Did you mean one of: 'mount', 'umount'?)".
_SUGGESTION = re.compile(r"\.?\s+\(?Did you mean (?:one of: )?([^?]*)\??\)?\.?$")


def _in_words(suggestion: re.Match[str]) -> str:
    words = suggestion[1].replace("'", "").split(", ")
    return f": did you mean {' or '.join(words)}?"


def _wrong_call(error: click.ClickException) -> UsageError:
    message = _SUGGESTION.sub(_in_words, error.format_message()).rstrip(".")
    command = "cowfs"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        command = error.ctx.command_path
    message = message[:1].lower() + message[1:]
    see = " See" if message.endswith("?") else ": see"
    return UsageError(f"{message}{see} {command} --help")


def _say_error(message: str) -> None:
    messages.say(PROGRAM, message)


def _show_log() -> None:
    """Print what the modules below log: warnings, and what is worse."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _warn(record.getMessage())

    logging.getLogger("cowfs").handlers = [Lines()]


def _warn(message: str) -> None:
    messages.warn(PROGRAM, message)

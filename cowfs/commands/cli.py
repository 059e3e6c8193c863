"""The command line: what the words mean, how errors look, which exit code they get.

What a command does is in a module of its own, imported when the command is called: a mount must not
wait for what only the doctor needs. Results go to stdout, errors and warnings to stderr, one line
each, with nothing in them that a terminal would obey.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from gc import freeze
from typing import TYPE_CHECKING, Literal

import click

from cowfs import __version__
from cowfs.commands import messages, report, which
from cowfs.mount.options import CHOICES, DESCRIPTIONS
from cowfs.system import remedy
from cowfs.system.errors import (
    CHECK_EXIT_CODES,
    DIFF_EXIT_CODES,
    DIFF_TROUBLE,
    EXIT_CODES,
    WARM_EXIT_CODES,
    CowfsError,
    Interrupted,
    SystemFailure,
    UsageError,
)

if TYPE_CHECKING:
    from cowfs.check.findings import Report
    from cowfs.store.store import Store
    from cowfs.trees.links import Policy
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
_links_option = click.option(
    "--links",
    type=click.Choice(CHOICES["links"]),
    default="auto",
    help="What becomes of symbolic links that lead out of SOURCE. auto (default): those to the "
    "blobs of a Hugging Face cache become files. follow: all to files do, if root or the file's "
    "owner made them. keep: none.",
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
@click.option(
    "--remount",
    is_flag=True,
    help="Change a mounted copy to these OPTIONS as far as a remount can, and say what takes a new "
    "mount.",
)
@click.argument("source", metavar="SOURCE|NAME|copy:NAME")
@click.argument("mountpoint")
def mount(
    options: tuple[str, ...], foreground: bool, remount: bool, source: str, mountpoint: str
) -> int:
    """Mount an instant copy of the directory SOURCE on MOUNTPOINT, or the kept copy NAME.

    Returns when the mount answers. The copy is a snapshot: neither side sees later changes of the
    other. It is kept after unmounting under a name made from MOUNTPOINT, or copy=NAME, and the next
    mount there goes on with it; with -o ephemeral it goes away.

    NAME is that of a kept copy, which goes on at MOUNTPOINT with its own source. It has no slash;
    where a directory has the same name the directory is meant.

    SOURCE may be the mountpoint of a copy, or copy:NAME, mounted or not: the new copy has the state
    of that one at this moment, also while programs write to it.
    """
    from cowfs.commands import mounting
    from cowfs.mount import launch, preflight

    if foreground:
        messages.show_log(PROGRAM)
        launch.go_on()
    if remount:
        from cowfs.commands import configuration

        with preflight.comments_explained(source, mountpoint, *options):
            return configuration.apply(source, mountpoint, options, say=_say, say_error=_say_error)
    call = mounting.Call(options, source, mountpoint)
    return mounting.mount(PROGRAM, call, foreground=foreground)


@cowfs.command(short_help="Make a plain reflink copy, without a mount.")
@click.option(
    "--reflink",
    type=click.Choice(["always", "auto"]),
    default="always",
    help="always (default): clone, or fail; auto: copy the data of what cannot be cloned.",
)
@_links_option
@click.argument("source")
@click.argument("destination")
def clone(reflink: Literal["always", "auto"], links: Policy, source: str, destination: str) -> None:
    """Copy SOURCE, a directory or file, to DESTINATION on the same volume by sharing its blocks.

    As cp -a --reflink=always, on all cores. DESTINATION must not exist; it appears when the copy
    is whole. For root SOURCE may be in a mounted copy, and DESTINATION on its volume, where the
    kernel alone would clone nothing.
    """
    from cowfs.system.interrupts import Interrupts
    from cowfs.transfer import clone as clones

    with report.cloning_progress() as progress, Interrupts("nothing was made") as interrupts:
        clones.clone(
            source,
            destination,
            reflink=reflink,
            links=links,
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
@_links_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: progress, and the result.")
@click.argument("source")
@click.argument("destination")
def import_(
    resume: bool,
    verify: bool,
    region: str,
    jobs: int | None,
    depth: int,
    links: Policy,
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
    options = importing.Options(resume, verify, size, jobs or 0, depth, links)
    go_on = f"nothing was published; go on with: {importing.command(source, destination, links)}"
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
@click.argument("mountpoint", metavar="MOUNTPOINT|NAME")
def umount(lazy: bool, mountpoint: str) -> None:
    """Unmount the copy at MOUNTPOINT, or of this NAME; say what was kept and how to discard it."""
    from cowfs.commands import outcome
    from cowfs.mount import unmount

    taken = unmount.unmount(which.mountpoint(mountpoint), lazy=lazy)
    report.tell(outcome.line(taken))


@cowfs.command(short_help="Have this version serve the mounts of another one.")
@click.option("--all", "everything", is_flag=True, help="Every mount of this machine.")
@click.argument("mountpoint", metavar="[MOUNTPOINT|NAME]", required=False)
def upgrade(everything: bool, mountpoint: str | None) -> int:
    """Let this version of cowfs take the mount at MOUNTPOINT over from the one that serves it.

    NAME is that of its copy.

    Nothing is unmounted: open files stay open, and passed-through reads do not notice. A version
    that cannot take over says so, and the other one goes on. The way back is the same command of
    the other version.
    """
    if (mountpoint is None) != everything:
        raise UsageError(
            f"name a mountpoint, or say --all: see {remedy.command('cowfs upgrade --help')}"
        )
    from cowfs.mount import upgrade as upgrading

    code = 0
    for record in upgrading.records(mountpoint and which.mountpoint(mountpoint)):
        try:
            report.tell(upgrading.upgrade(record))
        except CowfsError as error:
            _say_error(str(error))
            code = max(code, error.exit_code)
    return code


@cowfs.command("list", short_help="List the copies.")
@click.option("--mounted", is_flag=True, help="Only those that are mounted.")
@click.option(
    "--sources",
    is_flag=True,
    help="Walk whole sources and templates, however large. Without it STATE says of a source what "
    "its top shows, and FREES leaves out a template of more than 2000 entries (>).",
)
@_json_option
@_store_option
def list_(mounted: bool, sources: bool, as_json: bool, store: str | None) -> None:
    """List the copies: their state, when they were last in use, and what removing one would free.

    STATE is rw, ro or not mounted, and says what became of the source. USED is how long ago a copy
    was mounted or unmounted. FREES is what cowfs rm would free: bytes that the copy shares with no
    other file, and those of its template if no other copy needs that. On a terminal each copy has
    one line, and long names are cut; --json has everything.

    An ordinary user sees what is mounted.
    """
    from cowfs.commands import listing

    try:
        stores = _stores(store)
    except UsageError:
        if store is not None:
            raise
        _warn("only root may look into the stores: what is mounted is shown, and no more")
        stores = []
    rows = listing.rows(stores, walk=sources, everywhere=store is None)
    rows = [row for row in rows if row["mountpoint"] or not mounted]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    listing.show(rows)
    listing.show_templates(stores, walk=sources)


@cowfs.command(short_help="Discard copies that are not mounted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask on a terminal about changed copies.")
@_store_option
@click.argument("names", metavar="NAME|MOUNTPOINT...", nargs=-1, required=True)
def rm(yes: bool, store: str | None, names: tuple[str, ...]) -> int:
    """Discard copies that are not mounted, and what was written to them.

    A copy that has its name from a mountpoint can be named by that. The template goes with the last
    copy that needs it. Says what that frees. On a terminal it asks before it discards a copy with
    changes.
    """
    from cowfs.commands import removing

    stores = _stores(store)
    code = 0
    for name in dict.fromkeys(names):
        try:
            found = which.which(name, stores)
            report.tell(removing.remove(found.store, found.name, yes=yes))
        except CowfsError as error:
            _say_error(str(error))
            code = max(code, error.exit_code)
    return code


@cowfs.command(
    short_help="Show what a copy has changed.",
    epilog="\b\nExit codes, as in diff(1):\n"
    + "\n".join(f"  {code:>2}  {meaning}" for code, meaning in DIFF_EXIT_CODES.items()),
)
@click.option("--source", is_flag=True, help="Compare with the source as it is now.")
@click.option("--stat", is_flag=True, help="Only numbers and sizes.")
@click.option("--name-only", is_flag=True, help="Only the paths.")
@click.option("--times", is_flag=True, help="Times of modification count, too.")
@click.option(
    "--content",
    is_flag=True,
    help="Read files whose data is elsewhere on the disk: they may hold the same bytes.",
)
@_json_option
@_store_option
@click.argument("name", metavar="NAME|MOUNTPOINT")
@click.argument("other", metavar="[OTHER]", required=False)
def diff(
    source: bool,
    stat: bool,
    name_only: bool,
    times: bool,
    content: bool,
    as_json: bool,
    store: str | None,
    name: str,
    other: str | None,
) -> int:
    """Show what a copy, mounted or not, has added, removed, changed and renamed.

    It is compared with its template, the state of its source that it is based on; or with the copy
    OTHER; or with the source as it is now, and each line says which of the two has moved. What is
    told of a file is its size, and how much of it no other file shares.

    Content is compared by where it is on the disk, so that no data is read: a file that was written
    anew counts as changed also when it holds the same bytes. --content reads such files.
    """
    from cowfs.commands import changes

    if source and other is not None:
        raise UsageError("name another copy, or say --source, not both")
    if stat + name_only + as_json > 1:
        raise UsageError("say one of --stat, --name-only and --json")
    stores = _stores(store)
    one = which.which(name, stores)
    two = None if other is None else which.which(other, stores)
    which.close_others(stores, [found.store for found in (one, two) if found is not None])
    found = changes.found(one, two, source=source, times=times, content=content)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in changes.lines(found, stat=stat, name_only=name_only):
            click.echo(report.printable(line))
    return changes.code(found)


@cowfs.command(short_help="Make a plain directory of what a copy shows.")
@click.option(
    "--oci",
    metavar="FILE",
    help="Write only the changes, as a layer of an OCI image (a tar file), to FILE.",
)
@_store_option
@click.argument("name", metavar="NAME|MOUNTPOINT")
@click.argument("destination", required=False)
def commit(oci: str | None, store: str | None, name: str, destination: str | None) -> None:
    """Make the plain directory DESTINATION of what a copy, mounted or not, shows at present.

    It is on the volume of the copy, and made of reflink clones: no data is copied, and it can be
    the source of other copies. Neither DESTINATION nor FILE may exist; they appear when they are
    whole.
    """
    from cowfs.commands import changes
    from cowfs.system.interrupts import Interrupts

    if (destination is None) == (oci is None):
        raise UsageError(
            f"name a DESTINATION, or a file with --oci: see {remedy.command('cowfs commit --help')}"
        )
    one = which.alone(name, _stores(store))
    with Interrupts("nothing was made") as interrupts:
        if oci is not None:
            line = changes.commit_layer(one, oci, warn=_warn, interruptible=interrupts.allowed)
        else:
            assert destination is not None
            with report.cloning_progress() as progress:
                line = changes.commit(
                    one,
                    destination,
                    warn=_warn,
                    progress=progress,
                    interruptible=interrupts.allowed,
                )
    click.echo(report.printable(line))


@cowfs.command(short_help="Take back what was changed in a copy.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask on a terminal.")
@_store_option
@click.argument("name", metavar="NAME|MOUNTPOINT")
@click.argument("paths", metavar="[PATH...]", nargs=-1)
def reset(yes: bool, store: str | None, name: str, paths: tuple[str, ...]) -> None:
    """Take back what was changed in a copy that is not mounted: all of it, or each PATH alone.

    PATH is seen from the top of the copy, and everything below it goes back to the template. All
    happens in one step, or nothing. On a terminal it asks before all changes go.
    """
    from cowfs.commands import changes

    one = which.alone(name, _stores(store))
    click.echo(report.printable(changes.reset(one, paths, yes=yes)))


@cowfs.command(short_help="Give a kept copy another name.")
@_store_option
@click.argument("name", metavar="NAME|MOUNTPOINT")
@click.argument("new", metavar="NEW")
def rename(store: str | None, name: str, new: str) -> None:
    """Give a kept copy that is not mounted the name NEW.

    A copy that has its name from a mountpoint has it from you afterwards: mount it by its name.
    """
    from cowfs.commands import changes

    one = which.alone(name, _stores(store))
    click.echo(report.printable(changes.rename(one, new)))


@cowfs.command("set-source", short_help="Say which directory a copy is one of.")
@click.option("--force", is_flag=True, help="Also when SOURCE is not as the copy's template.")
@_store_option
@click.argument("name")
@click.argument("source")
def set_source(force: bool, store: str | None, name: str, source: str) -> None:
    """Let the copy NAME, which is not mounted, be one of SOURCE: its source was moved there.

    SOURCE is on the volume of the copy. One that differs from the state that a copy with changes is
    based on is refused without --force. The copy keeps that state; without changes, it follows
    SOURCE at the next mount.
    """
    from cowfs.commands import setsource

    found = which.alone(name, _stores(store))
    report.tell(setsource.set_source(found.store, found.name, source, force=force))


@cowfs.command(short_help="Delete what no copy needs.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option(
    "--keep-template",
    metavar="AGE",
    help="Keep a template for so long after its last use (seconds, or with m, h, d, w or y), "
    "whatever became of its source.",
)
@click.option(
    "--max-bytes",
    metavar="SIZE",
    help="Let templates that no copy needs hold at most SIZE bytes of their own (with k, M, G or "
    "T): the least recently used ones go first.",
)
@click.option(
    "--low-space",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    help="While less than PERCENT of the volume is free, delete templates that no copy needs, the "
    "least recently used ones first.",
)
@_store_option
def gc(
    dry_run: bool,
    keep_template: str | None,
    max_bytes: str | None,
    low_space: float | None,
    store: str | None,
) -> None:
    """Delete what no copy needs: old templates, and what a crash left behind.

    A template that no copy needs stays while its source is as it was: the next mount wants it.
    --max-bytes and --low-space take such ones, too, and those that --keep-template would keep. What
    is in use never goes.
    """
    from cowfs.commands import removing

    limits = removing.limits(keep_template, max_bytes, low_space)
    for found in _stores(store):
        done = found.collect(limits, pretend=dry_run)
        for line in removing.collected(found, done, limits, pretend=dry_run):
            report.tell(line)


@cowfs.group(short_help="List the stores, or remove one.", invoke_without_command=True)
@_json_option
@click.pass_context
def store(context: click.Context, as_json: bool) -> None:
    """List the stores: where they are, and what they hold.

    A store is the directory .cowfs of a volume, or what a mount has named with store=. HOLDS is
    what removing it would free.
    """
    if context.invoked_subcommand is not None:
        return
    from cowfs.commands import stores

    rows = stores.rows(_stores(None))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        stores.show(rows)


@store.command("rm", short_help="Remove a store for good.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, also when it has kept copies.")
@click.argument("path")
def store_rm(yes: bool, path: str) -> None:
    """Remove the store PATH for good, with its copies and templates.

    Refused while one of its copies is mounted, and, where nobody can be asked, without --yes when
    it has kept ones. A store that is not there any more is forgotten.
    """
    from cowfs.commands import stores

    messages.show_log(PROGRAM)
    for line in stores.remove(path, yes=yes):
        report.tell(line)


@cowfs.command(short_help="Show what the daemon of a mount has to say.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the mount ends.")
@click.option(
    "-n", "--lines", metavar="N", type=click.IntRange(0), help="The last N lines (default: all)."
)
@click.argument("mountpoint")
def logs(follow: bool, lines: int | None, mountpoint: str) -> None:
    """Show the log of the mount at MOUNTPOINT: that of its keeper, daemon or attendant.

    It is a file in /run/cowfs, which goes on as long as the mount. Under a unit of systemd it is in
    the journal, and journalctl shows it.
    """
    from cowfs.commands import logs as showing

    showing.show(
        which.mountpoint(mountpoint),
        lines=lines,
        follow=follow,
        out=lambda line: click.echo(report.printable(line)),
    )


@cowfs.command(short_help="Show what mounts have done, and what they cost.")
@click.option("--all", "everything", is_flag=True, help="Every mount of this machine (default).")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=86400),
    help="A line of columns every SECONDS, of what came in between, until the mount ends.",
)
@click.option(
    "--count", metavar="N", type=click.IntRange(1), help="With --interval: N lines, and no more."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; with --interval one line for each mount."
)
@click.option("--prometheus", is_flag=True, help="Print the text format of Prometheus.")
@click.argument("mountpoint", metavar="[MOUNTPOINT|NAME]", required=False)
def stats(
    everything: bool,
    interval: float | None,
    count: int | None,
    as_json: bool,
    prometheus: bool,
    mountpoint: str | None,
) -> None:
    """Show what the mount at MOUNTPOINT, or each mount, has done since it began, and what it costs.

    Requests of the kernel by kind, bytes by what backs the file, copy-ups and the time of their
    clones, opens that the channel has answered again, nodes and open files, take-overs, and
    processor time and memory of keeper and daemon. What is passed through the kernel reads and
    writes by itself: no daemon sees those bytes. The counters are read out of memory: it costs the
    daemon nothing. They go on when another daemon takes over.
    """
    from cowfs.commands import stats as showing

    if everything and mountpoint is not None:
        raise UsageError(
            f"name a mountpoint, or say --all: see {remedy.command('cowfs stats --help')}"
        )
    if prometheus and (as_json or interval is not None):
        raise UsageError(
            "--prometheus goes with neither --json nor --interval: see "
            f"{remedy.command('cowfs stats --help')}"
        )
    if count is not None and interval is None:
        raise UsageError(
            f"--count goes with --interval: see {remedy.command('cowfs stats --help')}"
        )
    place = mountpoint and which.mountpoint(mountpoint)
    if interval is not None:
        showing.watch(place, interval, count, as_json=as_json)
        return
    found = showing.samples(place)
    if as_json:
        showing.show_json(found)
    elif prometheus:
        showing.show_prometheus(found)
    else:
        showing.show(found)


@cowfs.command(short_help="Show which thread reads and writes which file.")
@click.option("--all", "everything", is_flag=True, help="Every mount of this machine (default).")
@click.option("-p", "--pid", metavar="PID", type=click.IntRange(1), help="This process alone.")
@click.option(
    "-d", "--directory", metavar="PATH", help="Files at and below this path of the copy alone."
)
@click.option("-r", "--rows", metavar="N", type=click.IntRange(1), help="At most N rows.")
@click.option(
    "-s",
    "--sort",
    type=click.Choice(("all", "reads", "writes", "read-kb", "written-kb", "faults", "file")),
    default="all",
    help="By what: all bytes (default), or a column.",
)
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    help="How long each look takes.",
)
@click.option("--count", metavar="N", type=click.IntRange(1), help="N looks, and no more.")
@click.option("-C", "--no-clear", is_flag=True, help="Write one look below the other.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line for each look.")
@click.argument("mountpoint", metavar="[MOUNTPOINT|NAME]", required=False)
def top(
    everything: bool,
    pid: int | None,
    directory: str | None,
    rows: int | None,
    sort: str,
    interval: float,
    count: int | None,
    no_clear: bool,
    as_json: bool,
    mountpoint: str | None,
) -> None:
    """Show which thread reads and writes which file of the copy at MOUNTPOINT, or of every copy.

    READS and WRITES are calls, R_KB and W_KB what they have moved, FAULTS those in mappings. BY is
    kernel for what is passed through, or served by overlayfs, and cowfs for what a daemon has
    served; what FUSE answers out of pages of its own is not counted. A file of a template that
    several mounted copies share is counted for all of them together.

    On a terminal the table fills the screen, and a key changes the order: a for all bytes, r and w
    for the calls, R and W for their bytes, f for faults, n for the name of the file; q ends it.

    It takes CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, and the tracepoints of XFS; what cannot be
    seen without them is said in a line of its own. Whoever is watched pays for it with some hundred
    nanoseconds for each call.
    """
    from cowfs.commands import top as showing

    if everything and mountpoint is not None:
        raise UsageError(
            f"name a mountpoint, or say --all: see {remedy.command('cowfs top --help')}"
        )
    showing.run(
        mountpoint and which.mountpoint(mountpoint),
        showing.Choice(pid, directory, rows, sort),
        interval=interval,
        count=count,
        clear=not no_clear,
        as_json=as_json,
        warn=_warn,
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
@click.argument("names", metavar="[NAME|MOUNTPOINT...]", nargs=-1)
def check(
    everything: bool, repair: bool, as_json: bool, store: str | None, names: tuple[str, ...]
) -> int:
    """Look for damage in copies that are not mounted, and in their templates.

    One line for each finding says what is wrong, and what to do about it. What is called harmless
    was left by a crash and cannot be noticed. A repair never removes what a user wrote.
    """
    if bool(names) == everything:
        raise UsageError(
            f"name the copies to look at, or say --all: see {remedy.command('cowfs check --help')}"
        )
    from cowfs.check import examine as checks
    from cowfs.check.findings import Report

    stores = _stores(store)
    wanted: dict[Store, list[str] | None] = dict.fromkeys(stores) if everything else {}
    for name in dict.fromkeys(names):
        one = which.which(name, stores)
        chosen = wanted.setdefault(one.store, [])
        assert chosen is not None
        if one.name not in chosen:
            chosen.append(one.name)
    which.close_others(stores, list(wanted))
    found = Report()
    with report.checking_progress() as progress:
        for examined, some in wanted.items():
            checks.check(examined, some, repair=repair, progress=progress, report=found)
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
@click.argument("paths", metavar="MOUNTPOINT|NAME|PATH...", nargs=-1, required=True)
def warm(limit: str | None, jobs: int, as_json: bool, paths: tuple[str, ...]) -> int:
    """Fill the page cache with the files at and below each PATH, before somebody reads them.

    NAME is a mounted copy, all of it, where there is no file of that name.

    In a copy root reads the files behind it: their pages serve all copies of the same template, and
    no second set of pages is made. Elsewhere the files themselves are read. What is in memory
    already is not read again, holes cost nothing, and a file with several names is read once.

    Files are read in the order of their names. A PATH that is a symlink is followed; a symlink
    below it is not, but for those to the blobs of a Hugging Face cache. Other mounts below it are
    left out. SIGINT and SIGTERM end it with the report so far.
    """
    from cowfs.mount.options import parse_size
    from cowfs.system.interrupts import sigterm_like_sigint
    from cowfs.warm import filling as warming

    size = None if limit is None else parse_size("--limit", limit)
    try:
        with sigterm_like_sigint(), report.warming_progress() as progress:
            places = [path if os.path.lexists(path) else which.mountpoint(path) for path in paths]
            outcome = warming.warm(places, limit=size, jobs=jobs, progress=progress)
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


@cowfs.command(short_help="Serve copies as volumes of Kubernetes (CSI).")
@click.option(
    "--endpoint",
    metavar="SOCKET",
    default="/var/lib/kubelet/plugins/csi.cowfs/csi.sock",
    show_default=True,
    help="The Unix socket to listen on.",
)
@click.option(
    "--kubelet",
    metavar="DIR",
    default="/var/lib/kubelet",
    show_default=True,
    help="The kubelet's directory: targets lie below it.",
)
@click.option(
    "--state",
    metavar="DIR",
    default="/var/lib/cowfs/csi",
    show_default=True,
    help="Records and mounts of the volumes.",
)
@click.option(
    "--configuration",
    metavar="FILE",
    default="/etc/cowfs/csi.json",
    show_default=True,
    help="Which sources there are, and which namespaces may have them.",
)
@click.option(
    "--driver",
    metavar="NAME",
    default="csi.cowfs",
    show_default=True,
    help="The driver's name, that of the CSIDriver object.",
)
@click.option(
    "--node", metavar="NAME", default="", help="The node's name (default: the host's name)."
)
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Volumes that are mounted at the same time; the others wait in a queue.",
)
@click.option("--no-register", is_flag=True, help="Do not register with the kubelet.")
def csi(
    endpoint: str,
    kubelet: str,
    state: str,
    configuration: str,
    driver: str,
    node: str,
    at_once: int,
    no_register: bool,
) -> None:
    """Serve the copies of this node as volumes of Kubernetes, as a CSI driver.

    Runs in the foreground until SIGTERM. What it has mounted stays mounted when it ends or is
    killed, and the next one goes on with it.

    Needs the Python packages grpcio and protobuf.
    """
    try:
        from cowfs.csi import plugin
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        install = remedy.command(
            "pip install", "grpcio", "protobuf", options=("--python", sys.executable)
        )
        raise UsageError(
            f"this command needs the Python packages grpcio and protobuf: install them with: "
            f"{install}"
        ) from None
    plugin.run(
        endpoint=endpoint,
        kubelet=kubelet,
        state=state,
        configuration=configuration,
        driver=driver,
        node=node,
        at_once=at_once,
        register=not no_register,
    )


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
        report.tell(f"installed {path}")
    for path in done.removed:
        report.tell(f"removed {path}")
    for path in done.kept:
        _warn(f"{path} was changed by somebody, and is left there")
    if root == "/" and (had_units or installation.has_units(root)):
        report.tell(
            f"now tell systemd about the units: {remedy.command('systemctl daemon-reload')}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Every failure is one line on stderr."""
    # At its end the interpreter would look for garbage in all that there is. The kernel frees it as
    # well, and that takes none of the few hundredths of a second that a short command has.
    atexit.register(freeze)
    words = sys.argv[1:] if arguments is None else list(arguments)

    def run() -> int:
        try:
            code = cowfs.main(args=words, prog_name=PROGRAM, standalone_mode=False)
        except click.ClickException as error:
            raise _wrong_call(error) from None
        except click.Abort:
            raise Interrupted("interrupted") from None
        return code if isinstance(code, int) else 0

    return messages.told(PROGRAM, _as_diff(run) if words[:1] == ["diff"] else run)


def _as_diff(run: Callable[[], int]) -> Callable[[], int]:
    """What calls diff(1) takes 1 for a difference, and 2 for every failure."""

    def told() -> int:
        try:
            return run()
        except Interrupted:
            raise
        except CowfsError as error:
            error.exit_code = DIFF_TROUBLE
            raise

    return told


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

    messages.show_log(PROGRAM)
    return Store.discover() if path is None else [Store.open(path)]


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


def _say(message: str) -> None:
    click.echo(report.printable(message))


def _say_error(message: str) -> None:
    messages.say(PROGRAM, message)


def _warn(message: str) -> None:
    messages.warn(PROGRAM, message)

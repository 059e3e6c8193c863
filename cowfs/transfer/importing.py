"""`cowfs import`: bringing a tree from any filesystem to an XFS volume, as plain files.

The steps: scan the source; make the directories and the blocks of large files; copy all pieces in
several processes; make links and attributes; sync the volume; scan the source again; publish. What
is done is noted in a journal beside the tree, so an import that was interrupted can be gone on
with. Nothing is visible under the destination's name before the end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import NamedTuple, Protocol

from cowfs.system import remedy, syscalls
from cowfs.system.errors import CowfsError, SystemFailure, UsageError
from cowfs.transfer import origin, plan, staging
from cowfs.transfer.filecopy import DIFFERS, Copier, Piece, Region
from cowfs.transfer.journal import Journal
from cowfs.transfer.plan import Kept, Plan
from cowfs.transfer.staging import Staging
from cowfs.trees import scan, workers
from cowfs.trees.cloning import Pair
from cowfs.trees.links import Policy
from cowfs.trees.scan import Scanner, SourceChanged

REGION = 64 << 20  # bytes
LEAST_REGION = 1 << 20

_SYNC_SECONDS = 60.0  # between two points from which an import goes on after a power failure
_OPEN_TREE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Progress(Protocol):
    """What hears how far an import has come."""

    def begin(self, doing: str, files: int, size: int) -> None:
        """*doing* is "copying" or "verifying"; *files* files, of *size* bytes, are ahead."""

    def advance(self, files: int, size: int) -> None:
        """*files* more files, of *size* bytes, are done."""


class Options(NamedTuple):
    """How an import is done."""

    resume: bool = False
    verify: bool = False
    region: int = REGION  # bytes
    jobs: int = 0  # processes; 0: one for each processor, 8 at most
    depth: int = 16  # blocks of 1 MiB under way in each of them
    links: Policy = "auto"

    def processes(self) -> int:
        """How many processes."""
        return self.jobs or min(len(os.sched_getaffinity(0)), 8)


class Result(NamedTuple):
    """What was imported."""

    entries: int
    size: int  # bytes, of regular files
    kept: int  # files that an earlier try had copied


def import_(
    source: str,
    destination: str,
    options: Options,
    *,
    warn: Callable[[str], None],
    progress: Progress | None,
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Result:
    """Import the directory `source` as `destination`, which must not be there yet. CowfsError.

    In what `interruptible` encloses an exception may come at any moment; the state is kept then.
    """
    path = origin.canonical(source, follow=True)
    if not origin.is_directory(path):
        raise UsageError(f"source {source} is not a directory: copy a single file with cp -a")
    tree = origin.open_tree(path, options.links, volumes=True)
    with tree as scanner, Staging(destination, "import", path) as place:
        journal = _journal(path, place, options)
        try:
            run = _Import(scanner, place, journal, options, progress)
            with interruptible():
                result = run.work(warn)
            place.publish()
        except SourceChanged as change:
            changed = CowfsError(
                f"source {os.path.join(path, change.path)} was changed while it was imported"
            )
            raise _with_ways_on(changed, path, place, journal, options) from None
        except OSError as error:
            if error.errno == DIFFERS:
                journal.add_again(scan.key_of_path(os.fsdecode(error.filename)))
            told = origin.failure(path, place.destination, error)
            raise _with_ways_on(told, path, place, journal, options) from None
        except SystemFailure as error:
            raise _with_ways_on(error, path, place, journal, options) from None
        finally:
            journal.close()
        place.discard()
        place.sync_parent()
    return result


def command(source: str, destination: str, links: Policy) -> str:
    """How to go on with an import."""
    return remedy.command("cowfs import --resume", source, destination, options=origin.given(links))


def _journal(source: str, place: Staging, options: Options) -> Journal:
    """The state in the hidden directory; a new one where there is none."""
    discard = f"discard it with: {remedy.command('rm -rf', place.path)}"
    journal = Journal.read(place.fd, place.path) if place.found else None
    if journal is not None and not journal.holds_anything:
        journal.close()
        journal = None
    if journal is None:
        place.empty()
        return Journal.create(place.fd, source, options.region)
    if journal.source == source and options.resume:
        return journal
    journal.close()
    if journal.source != source:
        raise UsageError(
            f"the unfinished import in {place.path} is one of {journal.source}, not of {source}: "
            f"{discard}"
        )
    raise UsageError(
        f"there is an unfinished import in {place.path}: go on with it with: "
        f"{command(source, place.destination, options.links)}; or {discard}"
    )


def _with_ways_on(
    error: CowfsError, source: str, place: Staging, journal: Journal, options: Options
) -> CowfsError:
    """The error, with what can be done about what is there; where nothing is, it is removed."""
    if not journal.holds_anything:
        place.discard()
        return error
    go_on = command(source, place.destination, options.links)
    return type(error)(
        f"{error}; nothing was published. When that is put right, go on with: {go_on}; or discard "
        f"what is there with: {remedy.command('rm -rf', place.path)}"
    )


class _Import:
    """One run of an import: the state that its steps share."""

    def __init__(
        self,
        scanner: Scanner,
        place: Staging,
        journal: Journal,
        options: Options,
        progress: Progress | None,
    ) -> None:
        self._scanner = scanner
        self._place = place
        self._journal = journal
        self._options = options
        self._progress = progress
        self._synced = time.monotonic()

    def work(self, warn: Callable[[str], None]) -> Result:
        """Everything but publishing. SourceChanged, CowfsError, OSError."""
        found = self._scanner.settled()
        todo = Plan(self._scanner.fd, found, self._journal.region)
        try:
            os.mkdir(staging.TREE, 0o700, dir_fd=self._place.fd)
        except FileExistsError:
            pass  # of the try that is gone on with
        tree_fd = os.open(staging.TREE, _OPEN_TREE, dir_fd=self._place.fd)
        try:
            kept = plan.keep(todo, self._journal, tree_fd, self._place.fd)
            with closing(self._copier(tree_fd, 0o777)) as copier:
                self._copy(copier, todo, kept, tree_fd)
            syscalls.syncfs(tree_fd)
            if self._options.verify:
                self._verify(todo, tree_fd)
            changed = scan.first_difference(found, self._scanner.scan())
            if changed is not None:
                raise SourceChanged(changed)
        finally:
            os.close(tree_fd)
        scan.warn_of_left_out(self._scanner.source, found, warn)
        scan.warn_of_links(self._scanner, found.symlinks, "--links=follow", warn)
        return Result(found.entries, found.bytes, len(kept.files))

    def _copy(self, copier: Copier, todo: Plan, kept: Kept, tree_fd: int) -> None:
        copier.make_directories(todo.found.directories)
        small = plan.left(todo, kept)
        large = [p for p in todo.large if p.key not in kept.files]
        regions = [
            region
            for place in large
            for region in todo.regions(place)
            if region.start not in kept.regions.get(region.key, ())
        ]
        pieces: list[Piece] = [*regions, *small]  # the large ones first, for an even end
        self._begin("copying", todo, pieces)
        cloned = set()
        for place in large:
            if place.key not in kept.regions and copier.begin_large(place.directory, place.name):
                cloned.add(place.key)
                self._advance(0, todo.size(place.key))
        pieces = [p for p in pieces if not (isinstance(p, Region) and p.key in cloned)]

        def done(piece: Piece) -> None:
            if isinstance(piece, Region):
                self._journal.add_region(piece.key, todo.records[piece.key], piece.start)
                self._advance(0, piece.end - piece.start)
            else:
                keys = [piece.directory.key_of(name) for name in piece.files]
                self._journal.add_files((key, todo.records[key]) for key in keys)
                self._advance(len(keys), todo.bytes_of(piece))
            self._sync_at_times(tree_fd)

        self._share_out(todo, pieces, tree_fd, done, verify=False)
        for place in large:
            if place.key not in cloned:
                copier.finish_large(place.directory, place.name)
            self._journal.add_files([(place.key, todo.records[place.key])])
            self._advance(1, 0)
        for places in todo.links:
            with Pair(copier, places[0].directory) as pair:
                copier.link(pair, places)
        for places in todo.special_links:
            copier.clone_links(places)
        for unfinished in todo.unfinished:
            copier.finish(unfinished)

    def _copier(self, tree_fd: int, umask: int) -> Copier:
        scanner = self._scanner
        return Copier(scanner.fd, tree_fd, umask, self._options.depth, scanner.links)

    def _verify(self, todo: Plan, tree_fd: int) -> None:
        regions = [region for place in todo.large for region in todo.regions(place)]
        pieces: list[Piece] = [*regions, *(piece for piece in todo.small if piece.files)]
        self._begin("verifying", todo, pieces)

        def done(piece: Piece) -> None:
            files = int(piece.start == 0) if isinstance(piece, Region) else len(piece.files)
            self._advance(files, todo.bytes_of(piece))

        self._share_out(todo, pieces, tree_fd, done, verify=True)

    def _share_out(
        self,
        todo: Plan,
        pieces: list[Piece],
        tree_fd: int,
        done: Callable[[Piece], None],
        *,
        verify: bool,
    ) -> None:
        region = self._journal.region

        @contextmanager
        def worker(umask: int) -> Iterator[Callable[[Piece], None]]:
            with closing(self._copier(tree_fd, umask)) as copier:
                yield copier.verify if verify else copier.copy

        def cost(piece: Piece) -> int:
            # A process is given one region at a time, or small files of as many bytes at most.
            if isinstance(piece, Region):
                return workers.BATCH
            return workers.cost_of(piece) + workers.BATCH * todo.bytes_of(piece) // region

        useful = -(-sum(map(cost, pieces)) // workers.BATCH)
        count = min(self._options.processes(), useful)
        workers.do_all(count, worker, pieces, done, cost)

    def _begin(self, doing: str, todo: Plan, pieces: list[Piece]) -> None:
        if self._progress is not None:
            names = sum(len(piece.files) for piece in pieces if not isinstance(piece, Region))
            files = names + len({piece.key for piece in pieces if isinstance(piece, Region)})
            self._progress.begin(doing, files, sum(map(todo.bytes_of, pieces)))

    def _advance(self, files: int, size: int) -> None:
        if self._progress is not None:
            self._progress.advance(files, size)

    def _sync_at_times(self, tree_fd: int) -> None:
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            syscalls.syncfs(tree_fd)
            self._journal.add_synced()
            self._synced = time.monotonic()

"""`cowfs clone`: a plain reflink copy of a tree, a file or any other entry, without FUSE.

What `cp -a --reflink=always` does, by the ways of sealing: one walk, then clones on all cores.
The copy appears under its name when it is whole, or not at all.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Literal

from cowfs.system import mountinfo, remedy
from cowfs.system.errors import CowfsError
from cowfs.transfer import origin, staging
from cowfs.transfer.behind import Behind, MountedPair
from cowfs.transfer.staging import Staging
from cowfs.trees import cloning, filedata, workers
from cowfs.trees.cloning import Chunk, Cloner, Pair, Progress
from cowfs.trees.links import Links, Policy
from cowfs.trees.scan import (
    Directory,
    Place,
    Scanner,
    SourceChanged,
    warn_of_left_out,
    warn_of_links,
)

Reflink = Literal["always", "auto"]

_NO_REFLINK = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL)


Kind = Callable[[int, int, int, Links], Cloner]


class _PlainCloner(Cloner):
    """Clones, or gives up. `behind` has the data, if the source is in a mounted copy."""

    seals = False
    drops_marks = False

    def __init__(
        self,
        source_fd: int,
        tree_fd: int,
        umask: int,
        links: Links | None = None,
        behind: Behind | None = None,
    ) -> None:
        super().__init__(source_fd, tree_fd, umask, links)
        self._behind = behind

    def pair(self, directory: Directory) -> Pair:
        if self._behind is None:
            return super().pair(directory)
        return MountedPair(self, directory, self._behind)

    def clone_plain(self, source: int, target: int, names: list[str]) -> list[str]:
        return names if self._behind else super().clone_plain(source, target, names)


class _AnyCloner(_PlainCloner):
    """Clones what can be cloned, and copies the rest."""

    @cached_property
    def _mover(self) -> filedata.Mover:
        return filedata.Mover()

    def clone_plain(self, source: int, target: int, names: list[str]) -> list[str]:  # noqa: ARG002
        return names

    def copy_data(self, target: int, source: int, st: os.stat_result) -> None:
        self._mover.copy(target, source, st)


def clone(
    source: str,
    destination: str,
    *,
    reflink: Reflink,
    links: Policy = "auto",
    warn: Callable[[str], None],
    progress: Progress | None,
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
    doing: str = "clone",
) -> None:
    """Copy `source` to `destination`, which must not be there yet. CowfsError.

    A symlink is copied, not followed, unless its path ends in a slash or `links` says so. `warn`
    gets one line for each kind of thing that is left out, and one for links that lead out. In what
    `interruptible` encloses an exception may come at any moment. doing: what the user has called;
    a "commit" is of a mounted copy, or fails.
    """
    path = base = origin.canonical(source, follow=False)
    opened = partial(origin.open_tree, links=links, volumes=reflink == "auto")
    is_reached = True
    with Staging(destination, doing, path) as place:
        try:
            with interruptible():
                place.empty()  # what a crash has left
                is_tree = origin.is_directory(path)
                base = path if is_tree else os.path.dirname(path)
                with _behind(base, place) as behind, opened(base) as scanner:
                    is_reached = behind is not None
                    if doing == "commit" and not is_reached:
                        raise CowfsError(f"{base} is no copy any more that can be read: try again")
                    kind = partial(
                        _PlainCloner if reflink == "always" else _AnyCloner, behind=behind
                    )
                    if is_tree:
                        made = _tree(scanner, place, kind, warn, progress)
                    else:
                        made = _single(scanner, path, place, kind, warn)
            place.publish(made)
        except SourceChanged as change:
            raise CowfsError(
                f"source {os.path.join(base, change.path)} was changed while it was copied: stop "
                "what writes to it, and try again"
            ) from None
        except OSError as error:
            if reflink == "always" and error.errno in _NO_REFLINK:
                raise _no_reflink(path, place, links, is_reached) from None
            raise origin.failure(base, place.destination, error) from None
        finally:
            place.discard()


def _tree(
    scanner: Scanner,
    place: Staging,
    kind: Kind,
    warn: Callable[[str], None],
    progress: Progress | None,
) -> str:
    found = scanner.scan()
    os.mkdir(staging.TREE, 0o700, dir_fd=place.fd)
    tree_fd = os.open(staging.TREE, os.O_RDONLY | os.O_DIRECTORY, dir_fd=place.fd)
    try:

        def clone_all(pieces: list[Chunk], done: Callable[[Chunk], None]) -> None:
            count = workers.worth_starting(sum(piece.work() for piece in pieces))

            @contextmanager
            def worker(umask: int) -> Iterator[Callable[[Chunk], None]]:
                with closing(kind(scanner.fd, tree_fd, umask, scanner.links)) as cloner:
                    yield cloner.clone_chunk

            workers.do_all(count, worker, pieces, done, workers.cost_of)

        with closing(kind(scanner.fd, tree_fd, 0o777, scanner.links)) as cloner:
            cloning.fill(cloner, found, progress, clone_all)
    finally:
        os.close(tree_fd)
    warn_of_left_out(scanner.source, found, warn)
    warn_of_links(scanner, found.symlinks, "--links=follow", warn)
    return staging.TREE


def _single(
    scanner: Scanner, path: str, place: Staging, kind: Kind, warn: Callable[[str], None]
) -> str:
    """Copy one file, symlink, fifo or device; its name in the hidden directory."""
    name = os.path.basename(path)
    mode = os.stat(name, dir_fd=scanner.fd, follow_symlinks=False).st_mode
    if stat.S_ISSOCK(mode):
        raise CowfsError(f"source {path} is a socket, which belongs to a running program")
    directory = Directory()
    regular = stat.S_ISREG(mode)
    if stat.S_ISLNK(mode) and (target := scanner.links.target(scanner.fd, name, 0)) is not None:
        os.close(target)
        directory.follow(name)
        regular = True
    files, special = ([name], []) if regular else ([], [name])
    with closing(kind(scanner.fd, place.fd, 0o777, scanner.links)) as cloner:
        cloner.clone_chunk(Chunk(directory, files, special, whole=False))
    if stat.S_ISLNK(mode) and not regular:
        warn_of_links(scanner, [Place(directory, name)], "--links=follow", warn)
    return name


@contextmanager
def _behind(directory: str, place: Staging) -> Iterator[Behind | None]:
    """What is behind a directory of a mounted copy, from which something goes to a volume."""
    behind = None
    if os.lstat(directory).st_dev != place.device:
        behind = Behind.below(directory)
    with nullcontext() if behind is None else closing(behind):
        yield behind


def _no_reflink(source: str, place: Staging, links: Policy, is_reached: bool) -> CowfsError:
    """Why nothing could be cloned; is_reached: what is behind the copy that the source is in."""
    mount = mountinfo.holding(source)
    target = mountinfo.holding(os.path.dirname(place.destination))
    if os.lstat(source).st_dev == place.device:
        problem = f"the volume {target.mountpoint} ({target.fstype}) cannot clone files (FICLONE)"
    elif mount.is_cowfs and not is_reached:
        return CowfsError(
            f"the kernel clones nothing from the copy at {mount.mountpoint} to its volume: run "
            "cowfs as root, outside of containers, where it reaches the files behind the copy; or "
            "copy the data with --reflink=auto"
        )
    else:
        problem = f"{source} and {place.destination} are on different volumes, and clones"
        problem += " cannot cross them"
    command = remedy.command(
        "cowfs clone --reflink=auto", source, place.destination, options=origin.given(links)
    )
    return CowfsError(f"{problem}: copy the data with: {command}")

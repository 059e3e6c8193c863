"""Trees for overlayfs: each the clone of a template's, without the immutable flags.

    <store>/lowers/<id>/tree/   as <store>/templates/<id>/tree/

overlayfs takes the flags of a lower file over to its own: whoever wanted to write to it would get
EPERM. Taking them off the template would move the ctimes by which `cowfs check` knows that nobody
has changed it. So the first mount of a template by overlayfs makes these clones, which share its
blocks, and all later ones use them: one set of pages. Nobody opens anything in them for writing but
the one who makes them: overlayfs has its lower layers in a read-only mount of its own.

They can be thrown away whenever no copy is mounted on them, and are with their template.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator

from cowfs.store import templates
from cowfs.store.directory import StoreDirectory, lock_directory
from cowfs.store.templates import Template
from cowfs.system import directories, syscalls
from cowfs.trees import cloning, removal, workers
from cowfs.trees.cloning import Chunk, Cloner, Progress
from cowfs.trees.scan import Scanner, SourceChanged

TREE = templates.TREE

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _PlainCloner(Cloner):
    seals = False
    drops_marks = False


def opened(store: StoreDirectory, template: Template, progress: ProgressFactory) -> int:
    """A descriptor of `lowers/<id>`, made if need be; nobody removes it as long as it is open.

    For whoever has a copy of the template, so that this one stays. OSError.
    """
    while True:
        fd = lock_directory(store.lowers_fd, template.id, fcntl.LOCK_SH)
        if fd is not None:
            return fd
        with progress() as shown:
            _make(store, template, shown)


ProgressFactory = Callable[[], "contextlib.AbstractContextManager[Progress | None]"]


def trash(
    store: StoreDirectory, template_id: str, *, unless: Callable[[], bool] = lambda: False
) -> bool:
    """Move the clones of a template into the trash, if nobody is about to mount on them; whether
    there are none now. OSError.

    *unless* is asked when no new mount can begin any more: whether one is mounted on them already.
    """
    if not store.has_lowers():
        return True
    try:
        fd = lock_directory(store.lowers_fd, template_id, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except NotADirectoryError:
        return False  # not made by us
    if fd is None:
        return template_id not in directories.names(store.lowers_fd)
    try:
        if unless():
            return False
        store.trash(store.lowers_fd, template_id)
    finally:
        os.close(fd)
    return True


def trash_orphans(store: StoreDirectory) -> None:
    """Trash those whose template was removed by a version that knows nothing of them. OSError."""
    if store.has_lowers():
        kept = set(directories.names(store.templates_fd))
        for orphan in set(directories.names(store.lowers_fd)) - kept:
            trash(store, orphan)


def _make(store: StoreDirectory, template: Template, progress: Progress | None) -> None:
    name = f"lower-{template.id}"
    with store.partial(name) as fd:
        with contextlib.suppress(FileNotFoundError):
            os.stat(template.id, dir_fd=store.lowers_fd, follow_symlinks=False)
            return  # made by whoever had the lock before us
        removal.clear(fd, store.trash_fd)
        os.mkdir(TREE, 0o700, dir_fd=fd)
        tree_fd = os.open(TREE, _DIRECTORY, dir_fd=fd)
        try:
            _fill(store, template, tree_fd, progress)
        finally:
            os.close(tree_fd)
        syscalls.renameat2(
            store.partial_fd,
            os.fsencode(name),
            store.lowers_fd,
            os.fsencode(template.id),
            syscalls.RENAME_NOREPLACE,
        )


def _fill(
    store: StoreDirectory, template: Template, tree_fd: int, progress: Progress | None
) -> None:
    path = os.path.join(os.path.realpath(store.path), "templates", template.id, templates.TREE)
    with Scanner(path, None) as scanner:
        # The path may lead elsewhere by now; the store's own descriptors do not.
        ours = os.stat(f"{template.id}/{templates.TREE}", dir_fd=store.templates_fd)
        if not os.path.samestat(os.fstat(scanner.fd), ours):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        source_fd = scanner.fd
        try:
            found = scanner.scan()

            def clone_all(pieces: list[Chunk], done: Callable[[Chunk], None]) -> None:
                count = workers.worth_starting(sum(piece.work() for piece in pieces))

                @contextlib.contextmanager
                def worker(umask: int) -> Iterator[Callable[[Chunk], None]]:
                    with contextlib.closing(_PlainCloner(source_fd, tree_fd, umask)) as cloner:
                        yield cloner.clone_chunk

                workers.do_all(count, worker, pieces, done, workers.cost_of)

            with contextlib.closing(_PlainCloner(source_fd, tree_fd, 0o777)) as cloner:
                cloning.fill(cloner, found, progress, clone_all)
        except SourceChanged as change:
            raise OSError(errno.ESTALE, "a sealed template changes", change.path) from None

"""The typed face of the channel's extension module.

Node ids are the numbers that pyfuse3 calls inodes. Every `OSError` carries the errno of the system
call that failed.
"""

from typing import Final, TypedDict, final

SHARED: Final[int]
"""Backed by a template's file: read-only, cached after the last release, and later opens for
reading are answered by the channel itself."""

PRIVATE: Final[int]
"""Backed by the copy's own file."""

CACHED: Final[int]
"""Read by way of the channel, in pages of FUSE's own."""

PASSTHROUGH: Final[int]
"""Read by the kernel itself from the backing file."""

BYPASS: Final[int]
"""Read by way of the channel straight into the reader's memory; only mappings have pages."""

FOREVER: Final[int]
"""Seconds for which the kernel may keep what only a change through the mount makes untrue."""

UNNAMED: Final[bytes]
"""The name in a CREATE that is an O_TMPFILE. It begins with a slash, like all that follow, where
the kernel never puts one; of a user's the channel lets none through."""

TAKES_SETGID: Final[bytes]
"""Before the name of an ACL in a SETXATTR that takes setgid away."""

STATX: Final[bytes]
"""The attribute in a GETXATTR that is a STATX; its value is the answer."""

AGAIN: Final[bytes]
"""Before a new name, and before the name to be removed, in a rename before both: the kernel has
sent the request again, since the daemon that read it has ended without an answer."""

ATTRIBUTE_AGAIN: Final[bytes]
"""The same before the name of an attribute. In a SETXATTR it stands for XATTR_CREATE, which the
channel takes out: pyfuse3 would look by itself whether the attribute is there."""

EXCHANGE_NUMBER: Final[bytes]
"""Before the number of an exchange, as the kernel first sent it: "/<decimal>/<old name>"."""

@final
class Channel:
    """The native end of one mount.

    The order of a life: `mount`, `start` (or `resume`), `pyfuse3.init` with
    `/dev/fd/<daemon_fd>`, `drain` before every wait of the event loop; at the end
    `pyfuse3.terminate`, `pyfuse3.close`, `close`.

    All methods may be called from any thread. After `close` those about nodes and notifications
    do nothing (`attach` raises EBADF).
    """

    def __init__(
        self,
        *,
        passthrough: bool,
        root_ino: int,
        max_cached: int = 16384,
        ledger_fd: int = -1,
        private_mount_fd: int = -1,
    ) -> None:
        """Make the socket pair; nothing is mounted yet.

        `ledger_fd`: that of the daemon before, for `resume`; taken over. Raises OSError: EPROTO for
        the ledger of a version with another layout.

        `passthrough`: ask the kernel for it. `root_ino`: the inode number shown for node id 1.
        `max_cached`: how many SHARED backings stay open after their last release, while nobody else
        needs the descriptors. Of these there are as many as RLIMIT_NOFILE says now, so raise that
        limit first. `private_mount_fd`: a descriptor (no
        O_PATH) of another mount of the volume, taken over; PRIVATE files are passed through by way
        of it, so that its flags decide about access times.
        """

    def mount(self, source: bytes, mountpoint: bytes, flags: int, options: bytes) -> None:
        """Open /dev/fuse and mount(2) a filesystem of type "fuse.cowfs".

        `flags` are MS_* bits, `options` what follows in the data string (comma separated, may be
        empty); fd, rootmode, user_id and group_id are added here. Raises OSError of open(2) or
        mount(2), EBUSY when mounted already. `close` does not unmount.
        """

    def start(self) -> None:
        """Agree on the protocol with the kernel, hand libfuse its INIT, start the threads.

        Call it before `pyfuse3.init`: libfuse finds its INIT waiting. Raises OSError: EPROTO for a
        kernel before 3.15, ETIMEDOUT when no INIT comes.
        """

    def resume(self, dev_fd: int, volume_fd: int) -> int:
        """Go on with the connection of a daemon that is gone, in the place of `mount` and `start`.

        Opens the files again that the ledger says are open (file handles, see open_by_handle_at(2);
        `volume_fd` is a descriptor of the volume, no O_PATH), and has the kernel send every request
        again that was not answered. The first fsync asks `volume_fd` for errors of the volume
        (syncfs(2)) that nobody may have noted: so it has to be older than the mount, one open file
        description for all daemons. Takes `dev_fd` over. Returns how many open files could not be
        opened: what passthrough does not cover is answered with EIO for them. Raises OSError:
        EPROTO when this version cannot serve what was agreed on with the kernel (`check_ledger`
        says why), EINVAL when the kernel has no FUSE_NOTIFY_RESEND (before Linux 6.9).
        """

    @property
    def dev_fd(self) -> int:
        """/dev/fuse; -1 before `mount`. Whoever has a duplicate keeps the connection alive."""

    @property
    def ledger_fd(self) -> int:
        """The memory that the next daemon has to have."""

    @property
    def daemon_fd(self) -> int:
        """libfuse's end of the socket pair. Belongs to libfuse once it runs: `pyfuse3.close`
        closes it."""

    @property
    def closed_fd(self) -> int:
        """Becomes readable when the kernel's end is gone (unmounted, aborted, or `close`), or
        cannot be read (`read_error`). Stays open as long as this object lives."""

    @property
    def read_error(self) -> int:
        """Why nothing can be read from /dev/fuse though the connection may go on: an errno that the
        kernel does not have for its end. 0: there is no such reason."""

    @property
    def passthrough(self) -> bool:
        """What was agreed with the kernel; False before `start`."""

    @property
    def resends(self) -> bool:
        """Whether the kernel has FUSE_NOTIFY_RESEND (Linux 6.9), without which nobody can go on
        with the connection; False before `start`."""

    @property
    def max_stack_depth(self) -> int:
        """How many filesystems may be stacked, as agreed with the kernel: always 1. A backing file
        on overlayfs gives ELOOP."""

    def drain(self) -> int:
        """Complete every reply that libfuse has written so far and pass it to the kernel.

        Never blocks; without a relayed request under way it makes no system call. Returns how many
        messages there were.
        """

    def open(self, nodeid: int, writing: bool, uid: int = 0) -> bool:
        """Count one more open, by the user `uid`, if something backs the node, and say so.

        OSError ENFILE when as many descriptors are held for this user as are left for all others;
        a node is counted for its first opener.

        `writing` is about the access mode alone (O_WRONLY or O_RDWR), as RELEASE will tell it.
        Call `open` or `attach` before answering the OPEN or CREATE with success; the channel takes
        the count back if the kernel does not take the reply. `unopen` is for every other answer.
        """

    def unopen(self, nodeid: int, writing: bool) -> None:
        """Take back what `open` or `attach` has counted: the request gets an error after all."""

    def attach(
        self, nodeid: int, fd: int, kind: int, reading: int, writing: bool, uid: int = 0
    ) -> None:
        """Back the node by `fd` and count one open by the user `uid`.

        `reading` is CACHED, PASSTHROUGH or BYPASS, which is for two nodes of one file.

        Takes `fd` over and closes it on every error: EEXIST when something backs the node already,
        ENFILE as `open`, or what the kernel says to the registration of a backing id (EPERM, ELOOP,
        EOPNOTSUPP, ...).
        """

    def is_scarce(self) -> bool:
        """Whether few descriptors are left, so that it matters for whom one is held. If not,
        0xFFFFFFFF will do for a user who is not known."""

    def require_room(self, uid: int) -> None:
        """OSError ENFILE if the user could not have one more descriptor held."""

    def hold(self, nodeid: int, uid: int) -> None:
        """Count a descriptor of a node without a name, which is held outside of the channel, for
        the user who removed it; until `let` or `forget`. OSError ENFILE as `open`."""

    def let(self, nodeid: int) -> None:
        """The end of `hold`."""

    def switch(self, nodeid: int, fd: int) -> bool:
        """Replace the SHARED descriptor of an open node by a private one; counts no open.

        False when the node is not open any more, OSError EINVAL when it is PRIVATE or passed
        through: then `fd` stays the caller's, else it is taken over.
        """

    def revoke(self, nodeid: int) -> tuple[int, int, int, bool] | None:
        """From now on the channel relays every OPEN of this node, until a new `attach`.

        A backing without opens is closed in the same step. Returns what is open at this moment,
        (kind, readers, writers, passthrough), or None when nothing is.
        """

    def writers(self, nodeid: int) -> int:
        """How many opens of the node allow writing."""

    def mark_mappable(self, nodeid: int) -> None:
        """A mapping may change the node's file from now on, also when nobody has it open; until
        `forget`. To be called while something backs the node; without effect when that is not
        passed through, as the kernel knows of every store then."""

    def is_volatile(self, nodeid: int) -> bool:
        """Whether the file may change unseen by FUSE: it is open for writing with passthrough, or
        was marked mappable."""

    def is_shared(self, nodeid: int) -> bool:
        """Whether the node is backed by a template's file: open, or cached for the next open."""

    def backing_fd(self, nodeid: int) -> int:
        """A duplicate of the descriptor that backs the node. OSError: EBADF when nothing does."""

    def knows(self, nodeid: int) -> bool:
        """Whether the kernel holds the node. It asks for the attributes again, as a side effect."""

    def oldest(self) -> float:
        """The age in seconds of the oldest request that libfuse has not answered; 0.0: none."""

    def forget(self, nodeid: int) -> None:
        """Python has dropped the node: close its backing.

        Should a RELEASE still be on its way (threads may handle FORGET first) the backing goes
        with that.
        """

    def prime(
        self, parent: int, dir_fd: int, names: list[bytes]
    ) -> tuple[list[tuple[bytes, int]], list[int]]:
        """Answer the next LOOKUP of each name in node `parent` without asking Python.

        The names are looked up in the directory `dir_fd`; the node id is st_ino, and the kernel may
        keep name and attributes for ever. Left out: directories, files with several names, names
        that are not there, files that are offered. Returns (name, st_ino) of the rest: for each
        the kernel will be given one lookup count, or `unprime` takes it back; and the node ids of
        those answers, the oldest ones, that were given up for them.
        """

    def unprime(self, parent: int, name: bytes) -> bool:
        """Take a primed name back. False: its answer has been given out, or there was none."""

    def offer(
        self,
        directory: int,
        upper_fd: int,
        tree_fd: int,
        work_fd: int,
        path: bytes,
        listing: bytes,
    ) -> int:
        """Let the channel answer changes of mode and owner of the files in node `directory`.

        They are the plain files of the directory `path` (b"" is the root) of the template `tree_fd`
        that show through `upper_fd`; `work_fd` is any directory of the copy's volume. The channel
        copies them up as Python would, and leaves to Python what has extended attributes or several
        names, is large, or fails; and every change that was sent again, or comes from an ordinary
        user. `upper_fd` is duplicated; the other two have to stay open until `close`. Those files
        are offered again that were taken back. Returns how many there are. Raises OSError of
        open(2), ENOMEM.

        `listing` is the names in the order in which the copy lists them, with a NUL between two
        (b"" if it is not known). While somebody changes one file after the other in this order, or
        in that of the names, the channel makes clones of the next files beforehand; they get their
        names when their changes come.
        """

    def withdraw(self, nodeid: int) -> None:
        """Take the offer of a file back, or of all files in a directory. Waits for the end of a
        change that is under way."""

    def take_touched(self) -> list[tuple[int, bool]] | None:
        """The nodes that were copied up since the last call, None if there is none; and of each
        whether a primed answer about it was thrown away, which had one lookup count. A node is in
        the list before the kernel has the reply."""

    def hold_touches(self) -> None:
        """Wait for the end of a change that is under way, and let no other begin until the same
        thread calls `let_touches`. May be nested."""

    def let_touches(self) -> None:
        """The end of `hold_touches`."""

    def keep_times(self, directory: int) -> None:
        """Note the times of an open directory of the upper layer, of which a copy-up is about to
        change a name, so that this or the next daemon sets them back. Between `hold_touches` and
        `let_touches`, one at a time. Raises OSError of fstat(2)."""

    def set_times_back(self, directory: int) -> None:
        """The end of `keep_times`, whether the change was made or not."""

    def drop_idle_clones(self) -> None:
        """Close the clones that were made ahead of a walk, if it has not gone on since the last
        call."""

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Have the kernel forget a name. Queued: the kernel may wait for the directory's lock.

        Raises OSError EINVAL for what cannot be a name.
        """

    def invalidate_attr(self, nodeid: int) -> None:
        """Have the kernel ask for the attributes again. Sent at once; cached data stays."""

    def invalidate_listing(self, nodeid: int) -> None:
        """The same for a directory and its cached listing. To be called from the handler of a
        request that keeps everybody else from reading the directory, such as its rename."""

    def counters(self) -> dict[str, dict[str, int]]:
        """For each opcode that ever came, by the name of the kernel's header without FUSE_: count,
        errors (answers with an errno), answered_here (without Python), total_ns and max_ns
        (from reading the request to writing the reply). Requests without a reply are only
        counted."""

    def count_copy_up(self, took_ns: int, /) -> None:
        """A regular file has become private, of a clone that took so long."""

    def note_nodes(self, count: int, /) -> None:
        """How many nodes there are, for `read_counts`."""

    def close(self) -> None:
        """Stop the threads, answer EIO to whatever waits, close every descriptor and backing id.

        Let pyfuse3 end first: it takes the end of the socket for an error. Does not unmount; the
        kernel ends the connection when nobody else holds its descriptor. May be called twice.
        """

def check_ledger(fd: int, passthrough: bool, /) -> None:
    """Look at the ledger of a mount that another version serves, with passthrough if it may.

    ValueError says why this version cannot go on with it: the layout, or what was agreed on with
    the kernel. OSError."""

class Counts(TypedDict):
    """What is counted of one mount, over all daemons that it has had.

    lives: these daemons. passthrough: what was agreed with the kernel. files: nodes that are open;
    handles: how often, together; passed: those whose file the kernel reads by itself. requests: as
    `Channel.counters`. tally: the words of tally.h by their names; what the daemon does not
    know yet, as it is older, is 0.
    """

    lives: int
    passthrough: bool
    files: int
    handles: int
    passed: int
    requests: dict[str, dict[str, int]]
    tally: dict[str, int]

def read_counts(fd: int, /) -> Counts:
    """Read them out of a ledger, of whichever process; who serves has no part in it.

    ValueError: it is no ledger, or that of a version with another layout. OSError."""

def lost_privileges(mode: int, in_group: bool) -> int:
    """Which of S_ISUID and S_ISGID a change of data or owner takes from a file of that mode.

    `in_group`: the caller, who has no CAP_FSETID, is in the group of the file. inode(7).
    """

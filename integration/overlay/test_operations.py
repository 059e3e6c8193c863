"""What programs do to a directory comes out in a copy as it does on XFS itself."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from cowfs.system import syscalls
from integration.mounts import MountCopy
from integration.oracle import Oracle

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))


@pytest.mark.quick
def test_copy_equals_its_source(oracle: Oracle) -> None:
    oracle.assert_same_trees(times=True)


def test_new_file_is_written_and_read_back(oracle: Oracle) -> None:
    def act(root: Path) -> bytes:
        (root / "new").write_bytes(b"a" * 100_000)
        return (root / "new").read_bytes()

    assert len(oracle.same(act)) == 100_000


@pytest.mark.quick
@pytest.mark.parametrize("name", ["weights.bin", "config.json", "hard1", "tokenizer/hard2"])
@pytest.mark.parametrize("how", ["overwrite", "append", "truncate", "O_TRUNC", "extend", "mmap"])
def test_shared_file_is_changed(oracle: Oracle, name: str, how: str) -> None:
    def act(root: Path) -> bytes:
        path = root / name
        if how == "overwrite":
            with path.open("r+b") as file:
                file.seek(3)
                file.write(b"XYZ")
        elif how == "append":
            with path.open("ab") as file:
                file.write(b"tail")
        elif how == "truncate":
            os.truncate(path, 5)
        elif how == "O_TRUNC":
            path.write_bytes(b"new")
        elif how == "extend":
            os.truncate(path, 8 << 20)
        else:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                mapped[0:4] = b"MMAP"
        return path.read_bytes()

    oracle.same(act)


def test_file_is_written_through_one_descriptor_and_read_through_another(oracle: Oracle) -> None:
    def act(root: Path) -> list[bytes]:
        seen = []
        with (root / "small.bin").open("rb", buffering=0) as reader:
            seen.append(reader.read(4))
            with (root / "small.bin").open("r+b", buffering=0) as writer:
                writer.write(b"NEW!")
                seen.append(os.pread(reader.fileno(), 4, 0))
                writer.truncate(2)
                seen.append(os.pread(reader.fileno(), 4, 0))
        return seen

    assert oracle.same(act)[1:] == [b"NEW!", b"NE"]


@pytest.mark.quick
def test_names_come_and_go(oracle: Oracle) -> None:
    def act(root: Path) -> list[str]:
        (root / "dir").mkdir()
        (root / "dir" / "file").touch()
        (root / "symbolic").symlink_to("dir/file")
        os.link(root / "config.json", root / "dir" / "linked")
        os.mkfifo(root / "fifo")
        (root / "config.json").unlink()
        (root / "empty").unlink()
        (root / "empty").mkdir()
        (root / "tokenizer" / "deep" / "er" / "leaf").unlink()
        (root / "tokenizer" / "deep" / "er").rmdir()
        (root / "tokenizer" / "deep" / "er").mkdir()
        (root / "latest").unlink()
        (root / "latest").write_text("now a file")
        return sorted(os.listdir(root))

    oracle.same(act)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("config.json", "renamed.json"),
        ("config.json", "weights.bin"),
        ("config.json", "tokenizer/config.json"),
        ("hard1", "hard3"),
        ("tokenizer/hard2", "config.json"),
        ("latest", "newest"),
        ("tokenizer", "moved"),
        ("tokenizer/deep", "deep"),
        ("tokenizer/deep/er", "tokenizer/er"),
        ("config.json", "tokenizer"),
        ("tokenizer", "config.json"),
        ("tokenizer/deep", "tokenizer/deep/er/inside"),
        ("tokenizer/deep", "tokenizer"),
        ("absent", "present"),
        ("hard1", "tokenizer/hard2"),
    ],
)
@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
def test_rename(oracle: Oracle, old: str, new: str, flags: int) -> None:
    try:
        oracle.same(lambda root: rename(root / old, root / new, flags))
    except OSError as error:
        assert error.errno in (  # noqa: PT017 - the oracle has compared it with XFS
            errno.EEXIST,
            errno.EINVAL,
            errno.EISDIR,
            errno.ENOENT,
            errno.ENOTDIR,
            errno.ENOTEMPTY,
        )


# --- when a file was made -------------------------------------------------------------------------


def birth_time(path: Path) -> int:
    """stx_btime of statx(2) in nanoseconds; 0 when it is not told."""
    ns = syscalls.birth_time(os.fsencode(path), follow=False)
    return 0 if ns is None else ns


def test_birth_time_is_told_and_stays_over_changes_and_a_remount(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy(model, None, "copy=born")
    names = ["config.json", "weights.bin", "hard1", "tokenizer", "latest", "."]
    before = [birth_time(root / name) for name in names]
    assert all(ns > 0 for ns in before)
    for name in ("config.json", "weights.bin", "hard1"):
        with (root / name).open("ab") as file:
            file.write(b"tail")
    os.utime(root / "latest", ns=(1, 1), follow_symlinks=False)
    (root / "latest").rename(root / "tokenizer" / "latest")
    (root / "tokenizer").rename(root / "renamed")
    (root / "new").touch()
    names[3:5] = ["renamed", "renamed/latest"]
    assert [birth_time(root / name) for name in names] == before
    assert birth_time(root / "new") > max(before)
    mount_copy.unmount(root)
    mount_copy(model, root, "copy=born")
    assert [birth_time(root / name) for name in names] == before


@pytest.mark.parametrize("name", ["sparse.bin", "empty"])
def test_what_was_stored_in_a_hole_through_a_mapping_is_data(oracle: Oracle, name: str) -> None:
    """Whoever copies a file by its holes would lose it."""

    def act(root: Path) -> list[object]:
        (root / name).read_bytes()
        reader = os.open(root / name, os.O_RDONLY)
        fd = os.open(root / name, os.O_RDWR)
        os.ftruncate(fd, 8 << 20)
        with mmap.mmap(fd, 8 << 20) as mapped:
            os.close(fd)
            mapped[4 << 20 : (4 << 20) + 5] = b"bytes"
            again = os.open(root / name, os.O_RDONLY)
            seen = [os.lseek(again, 4 << 20, os.SEEK_DATA), os.pread(again, 5, 4 << 20)]
            seen.append(bytes(mapped[(4 << 20) - 1 : (4 << 20) + 6]))
            os.close(again)
        os.close(reader)
        return seen

    oracle.same(act)


# --- files without a name -------------------------------------------------------------------------

AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400


def link_open_file(fd: int, path: Path) -> None:
    """Give an O_TMPFILE file a name: open(2). Python's os.link does not follow the first path."""
    old = f"/proc/self/fd/{fd}".encode()
    if _libc.linkat(AT_FDCWD, old, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


@pytest.mark.parametrize("place", [".", "tokenizer", "setgid"])
def test_file_without_a_name_is_written_and_gets_names(oracle: Oracle, place: str) -> None:
    def act(root: Path) -> list[object]:
        (root / "setgid").mkdir()
        os.chown(root / "setgid", 0, 1234)
        (root / "setgid").chmod(0o2777)
        (root / "removed").write_text("removed")
        (root / "removed").unlink()
        seen: list[object] = []
        umask = os.umask(0o027)
        fd = os.open(root / place, os.O_TMPFILE | os.O_RDWR, 0o666)
        try:
            os.write(fd, b"unnamed")
            seen += [os.fstat(fd).st_nlink, os.fstat(fd).st_size, sorted(os.listdir(root / place))]
            os.fchmod(fd, 0o604)
            os.setxattr(fd, "user.a", b"b")
            os.ftruncate(fd, 4)
            ino = os.fstat(fd).st_ino
            link_open_file(fd, root / place / "named")
            link_open_file(fd, root / "tokenizer" / "again")
            os.link(root / place / "named", root / "removed")
            os.pwrite(fd, b"tail", 4)
            seen += [os.fstat(fd).st_nlink, (root / "removed").read_bytes()]
            seen.append((root / place / "named").stat().st_ino == ino)
            try:
                link_open_file(fd, root / "config.json")
            except FileExistsError as error:
                seen.append(error.errno)
        finally:
            os.close(fd)
            os.umask(umask)
        (root / "removed").unlink()
        seen.append((root / place / "named").stat().st_nlink)
        return seen

    oracle.same(act)


def test_file_without_a_name_goes_with_its_last_descriptor(oracle: Oracle) -> None:
    def act(root: Path) -> list[object]:
        fd = os.open(root, os.O_TMPFILE | os.O_WRONLY, 0o600)
        os.write(fd, bytes(1 << 20))
        st = os.fstat(fd)
        os.close(fd)
        exclusive = os.open(root, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
        try:
            link_open_file(exclusive, root / "never")
        except FileNotFoundError as error:
            return [st.st_nlink, st.st_size, stat.S_IMODE(st.st_mode), error.errno]
        finally:
            os.close(exclusive)
        return []

    assert oracle.same(act)[0] == 0


def test_hard_links_are_found_in_a_directory_that_came_back_below_a_new_one(
    mount_copy: MountCopy, xfs: Path
) -> None:
    source = xfs / "source"
    (source / "top/case/dir").mkdir(parents=True)
    (source / "top/case/hard1").write_text("two names")
    os.link(source / "top/case/hard1", source / "top/case/dir/hard2")
    root = mount_copy(source)
    (root / "top").rename(root / "old")
    (root / "top").mkdir()
    (root / "old/case").rename(root / "top/case")
    (root / "top/case/hard1").write_text("changed")
    assert (root / "top/case/dir/hard2").read_text() == "changed"
    assert (root / "top/case/dir/hard2").stat().st_nlink == 2


def test_directory_is_renamed_changed_and_renamed_back(oracle: Oracle) -> None:
    def act(root: Path) -> None:
        (root / "tokenizer").rename(root / "a")
        (root / "a" / "vocab.txt").write_text("changed")
        (root / "a" / "deep").rename(root / "b")
        (root / "tokenizer").mkdir()
        (root / "tokenizer" / "fresh").touch()
        (root / "a").rename(root / "tokenizer" / "a")
        (root / "b" / "er" / "leaf").unlink()
        (root / "b").rename(root / "tokenizer" / "a" / "deep")

    oracle.same(act)


def test_directory_replaces_an_empty_one_that_was_full(oracle: Oracle) -> None:
    def act(root: Path) -> None:
        shutil.rmtree(root / "tokenizer" / "deep")
        (root / "tokenizer" / "deep").mkdir()
        (root / "tokenizer" / "hard2").unlink()
        (root / "tokenizer" / "vocab.txt").unlink()
        (root / "tokenizer" / "deep").rmdir()
        (root / "other").mkdir()
        (root / "other" / "inside").touch()
        (root / "other").rename(root / "tokenizer")

    oracle.same(act)


@pytest.mark.quick
def test_tree_is_removed_and_made_again(oracle: Oracle) -> None:
    def act(root: Path) -> None:
        shutil.rmtree(root / "tokenizer")
        (root / "tokenizer" / "deep").mkdir(parents=True)
        (root / "tokenizer" / "deep" / "only").touch()

    oracle.same(act)


@pytest.mark.quick
def test_modes_owners_times_and_attributes(oracle: Oracle) -> None:
    def act(root: Path) -> list[int]:
        for name in ("weights.bin", "config.json", "tokenizer", "hard1"):
            path = root / name
            path.chmod(0o2750)
            os.chown(path, 1234, 4321)
            os.setxattr(path, "user.note", name.encode())
            os.utime(path, ns=(1_000_000_000_123_456_789, 1_600_000_000_987_654_321))
        os.removexattr(root / "config.json", "user.origin")
        os.lchown(root / "latest", 7, 8)
        os.utime(root / "latest", ns=(1, 2), follow_symlinks=False)
        return [os.lstat(root / n).st_mtime_ns for n in ("weights.bin", "tokenizer", "latest")]

    oracle.same(act)


def test_reading_descriptor_survives_a_change_of_mode(oracle: Oracle) -> None:
    def act(root: Path) -> tuple[bytes, int]:
        with (root / "weights.bin").open("rb") as reader:
            os.fchmod(reader.fileno(), 0o600)
            return reader.read(100), stat.S_IMODE(os.fstat(reader.fileno()).st_mode)

    oracle.same(act)


def test_removed_file_lives_as_long_as_it_is_open(oracle: Oracle) -> None:
    def act(root: Path) -> list[object]:
        seen: list[object] = []
        for name in ("weights.bin", "config.json", "hard1"):
            with (root / name).open("rb") as reader:
                (root / name).unlink()
                data = reader.read()
                seen += [len(data), data[:20], os.fstat(reader.fileno()).st_nlink]
        with (root / "gone").open("w+b") as file:
            (root / "gone").unlink()
            file.write(b"still here")
            file.seek(0)
            seen += [file.read(), os.fstat(file.fileno()).st_size]
        return seen

    oracle.same(act)


def test_holes_and_allocation(oracle: Oracle) -> None:
    def act(root: Path) -> list[int]:
        fd = os.open(root / "sparse.bin", os.O_RDWR)
        try:
            seen = [
                os.lseek(fd, 0, os.SEEK_DATA),
                os.lseek(fd, 0, os.SEEK_HOLE),
                os.lseek(fd, 33 << 20, os.SEEK_HOLE),
            ]
            os.posix_fallocate(fd, 64 << 20, 1 << 20)
            seen += [os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_END)]
        finally:
            os.close(fd)
        return seen

    assert oracle.same(act)[3] == 65 << 20


def test_copy_file_range_inside_a_copy(oracle: Oracle) -> None:
    def act(root: Path) -> int:
        with (root / "weights.bin").open("rb") as source, (root / "out").open("wb") as target:
            done = 0
            while n := os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
                done += n
        return done

    assert oracle.same(act) == 4 << 20


def test_append_and_direct_io(oracle: Oracle) -> None:
    def act(root: Path) -> bytes:
        fd = os.open(root / "small.bin", os.O_RDWR | os.O_APPEND)
        os.write(fd, b"one")
        os.write(fd, b"two")
        os.close(fd)
        fd = os.open(root / "weights.bin", os.O_RDWR | os.O_DIRECT)
        block = mmap.mmap(-1, 4096)
        block.write(b"D" * 4096)
        os.pwritev(fd, [block], 8192)
        os.preadv(fd, [block], 4096)
        os.close(fd)
        return bytes(block)[:16] + (root / "small.bin").read_bytes()[-6:]

    oracle.same(act)


def test_program_is_run_from_a_copy(oracle: Oracle) -> None:
    def act(root: Path) -> str:
        return subprocess.run(
            [root / "script.sh"], capture_output=True, text=True, check=True
        ).stdout

    assert oracle.same(act) == "hello\n"


def test_setuid_bit_goes_when_a_user_writes(oracle: Oracle) -> None:
    def act(root: Path) -> list[int]:
        seen = []
        for name in ("config.json", "weights.bin"):
            path = root / name
            os.chown(path, 1000, 1000)
            path.chmod(0o6777)
            script = f"printf x >> '{path}'"
            subprocess.run(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
                            "sh", "-c", script], check=True)  # fmt: skip
            seen.append(path.stat().st_mode)
            path.chmod(0o6777)
            subprocess.run(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
                            "truncate", "-s", "1", path], check=True)  # fmt: skip
            seen.append(path.stat().st_mode)
        return seen

    oracle.same(act)


def test_users_own_what_they_create(oracle: Oracle) -> None:
    def act(root: Path) -> None:
        (root / "shared").mkdir()
        os.chown(root / "shared", 0, 2000)
        (root / "shared").chmod(0o2777)
        (root / "open").mkdir()
        (root / "open").chmod(0o777)
        script = """
            umask 027
            for dir in shared open; do
                cd "$1/$dir"
                echo x > file; mkdir dir; ln -s file link; mkfifo fifo
                rm file; mkdir file; rmdir dir; echo y > dir
            done
        """
        subprocess.run(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
                        "sh", "-ec", script, "sh", root], check=True)  # fmt: skip

    oracle.same(act)


def test_default_acl_is_handed_down(oracle: Oracle) -> None:
    def act(root: Path) -> None:
        acl = "u:1000:rwx,d:u:1000:rwx,d:g::r-x,d:o::-"
        subprocess.run(["setfacl", "-m", acl, root / "tokenizer"], check=True)
        script = "umask 077; cd $1/tokenizer; echo x > f; mkdir d; echo y > d/g; rm f; mkdir f"
        subprocess.run(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
                        "sh", "-ec", script, "sh", root], check=True)  # fmt: skip

    oracle.same(act)


def test_internal_attributes_are_hidden_and_refused(oracle: Oracle) -> None:
    copy = oracle.copy
    (copy / "tokenizer").rename(copy / "moved")
    (copy / "config.json").write_text("private")
    for name in ("moved", "config.json", "."):
        assert not [n for n in os.listxattr(copy / name) if n.startswith("trusted.")]
    for name in ("trusted.overlay.opaque", "trusted.cowfs.ino"):
        with pytest.raises(PermissionError):
            os.setxattr(copy / "moved", name, b"y")
        with pytest.raises(OSError, match="No data"):
            os.getxattr(copy / "moved", name)
    with pytest.raises(PermissionError):
        os.mknod(copy / "whiteout", stat.S_IFCHR, 0)


def test_no_user_reaches_an_attribute_by_another_name(oracle: Oracle) -> None:
    path = oracle.copy / "config.json"
    path.chmod(0o666)
    os.setxattr(path, "trusted.secret", b"x")
    for name in ("trusted.secret", "/trusted.secret", "//trusted.secret"):
        script = "import os, sys; os.removexattr(*sys.argv[1:])"
        done = subprocess.run(
            ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
             "/usr/bin/python3", "-c", script, path, name],
            check=False, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 1, name
    assert os.getxattr(path, "trusted.secret") == b"x"


def test_inode_number_stays_over_copy_up(oracle: Oracle) -> None:
    names = ("weights.bin", "config.json", "tokenizer", "hard1", "latest")
    before = [os.lstat(oracle.copy / name).st_ino for name in names]
    (oracle.copy / "weights.bin").chmod(0o600)
    (oracle.copy / "config.json").write_text("x")
    (oracle.copy / "tokenizer").chmod(0o700)
    (oracle.copy / "hard1").write_text("y")
    os.lchown(oracle.copy / "latest", 1, 1)
    assert [os.lstat(oracle.copy / name).st_ino for name in names] == before
    assert os.lstat(oracle.copy / "tokenizer/hard2").st_ino == before[3]
    assert len({os.lstat(p).st_ino for p in oracle.copy.rglob("*")}) == len(
        {os.lstat(p).st_ino for p in oracle.native.rglob("*")}
    )


def test_listing_goes_on_while_names_come_and_go(oracle: Oracle) -> None:
    directory = oracle.copy / "crowd"
    directory.mkdir()
    for n in range(3000):
        (directory / f"{n:05}").touch()
    seen = set()
    with os.scandir(directory) as entries:
        for place, entry in enumerate(entries):
            assert entry.name not in seen
            seen.add(entry.name)
            if place % 3 == 0:
                (directory / entry.name).unlink()
                (directory / f"new{place}").touch()
    assert {f"{n:05}" for n in range(3000)} <= seen


def test_locks_hold_between_processes(oracle: Oracle) -> None:
    with (oracle.copy / "config.json").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        path = oracle.copy / "config.json"
        other = subprocess.run(["flock", "-n", path, "true"], check=False)
        assert other.returncode == 1
        fcntl.flock(file, fcntl.LOCK_UN)
        subprocess.run(["flock", "-n", path, "true"], check=True)


def test_free_space_is_that_of_the_volume(oracle: Oracle) -> None:
    copy, native = os.statvfs(oracle.copy), os.statvfs(oracle.native)
    assert (copy.f_blocks, copy.f_files, copy.f_namemax) == (
        native.f_blocks,
        native.f_files,
        native.f_namemax,
    )


def test_lookups_that_were_prepared_say_the_truth(oracle: Oracle) -> None:
    """After a few lookups by name the channel knows the answers for the other names too."""

    def act(root: Path) -> list[object]:
        directory = root / "many"
        seen: list[object] = [(directory / f"f{n:03}").stat().st_size for n in range(50)]
        listed = {e.name: e.stat().st_mode for e in os.scandir(directory)}  # a second way to know
        for n in range(100, 200):
            path = directory / f"f{n:03}"
            if n % 5 == 0:
                path.chmod(0o640)
            elif n % 5 == 1:
                path.write_text("longer than before")
            elif n % 5 == 2:
                path.unlink()
            elif n % 5 == 3:
                path.rename(directory / f"g{n:03}")
            else:
                (directory / "f050").rename(path) if n == 104 else os.truncate(path, 1)
        for prefix in "fg":
            for n in range(300):
                try:
                    st = (directory / f"{prefix}{n:03}").lstat()
                except FileNotFoundError:
                    seen.append(None)
                else:
                    seen.append((st.st_size, st.st_mode, st.st_nlink))
        return [*seen, sorted(listed.items())]

    oracle.same(act)

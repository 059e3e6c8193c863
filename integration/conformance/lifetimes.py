"""What lives on without a name, and numbers that stay."""

from __future__ import annotations

import os

from integration.conformance.cases import case, equal, exists, fails, get, put


@case
def removed_files_live_as_long_as_they_are_open() -> object:
    seen: list[object] = []
    for path in ("file", "big", "hard1"):
        fd = os.open(path, os.O_RDWR)
        number = os.fstat(fd).st_ino
        os.unlink(path)
        os.pwrite(fd, b"after", 0)
        os.ftruncate(fd, 7)
        os.fchmod(fd, 0o640)
        os.fchown(fd, 3, 4)
        os.utime(fd, ns=(5, 6))
        st = os.fstat(fd)
        equal(st.st_ino, number)
        equal(st.st_nlink, 1 if path == "hard1" else 0)
        equal(os.pread(fd, 5, 0), b"after")
        with open(f"/proc/self/fd/{fd}", "rb") as again:
            equal(again.read(5), b"after")
        put(path, b"new")
        equal(os.fstat(fd).st_size, 7)
        seen.append((st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_size))
        os.close(fd)
    return [*seen, get("dir/hard2")]


@case
def working_directory_follows_its_directory() -> list[str]:
    home = os.getcwd()
    os.chdir("dir/sub")
    equal(os.getcwd(), f"{home}/dir/sub")
    os.rename(f"{home}/dir", f"{home}/void/moved")
    equal(os.getcwd(), f"{home}/void/moved/sub")
    put("made", b"here")
    equal(get(f"{home}/void/moved/sub/made"), b"here")
    equal(os.stat("..").st_ino, os.stat(f"{home}/void/moved").st_ino)
    os.unlink("made")
    os.rmdir(f"{home}/void/moved/sub")
    fails("ENOENT", os.getcwd)
    fails("ENOENT", put, "made")
    fails("ENOENT", os.mkdir, "made")
    equal(os.listdir("."), [])
    equal(os.stat(".").st_nlink, 0)
    return sorted(os.listdir(f"{home}/void/moved"))


@case
def directory_descriptor_outlives_the_directory() -> None:
    fd = os.open("void", os.O_RDONLY)
    number = os.fstat(fd).st_ino
    os.rmdir("void")
    os.mkdir("void")
    put("void/new")
    equal(os.listdir(fd), [])
    equal(os.fstat(fd).st_ino, number)
    assert os.stat("void").st_ino != number
    os.fchmod(fd, 0o700)
    os.fsync(fd)
    fails("ENOENT", os.symlink, "x", "new", dir_fd=fd)
    fails("ENOENT", os.rename, "file", "new", dst_dir_fd=fd)
    fails("ENOENT", os.link, "file", "new", dst_dir_fd=fd, follow_symlinks=False)
    os.close(fd)
    assert exists("file")


@case
def numbers_stay_over_every_change() -> None:
    for path in ("file", "big", "hard1", "dir", "link", "fifo", "null"):
        number = os.lstat(path).st_ino
        os.lchown(path, 1, 2)
        equal(os.lstat(path).st_ino, number)
        os.utime(path, ns=(1, 2), follow_symlinks=False)
        equal(os.lstat(path).st_ino, number)
        if path in ("file", "big", "hard1"):
            put(path, b"other bytes")
            os.truncate(path, 3)
            os.chmod(path, 0o600)
        os.rename(path, "void/moved")
        equal(os.lstat("void/moved").st_ino, number)
        os.rename("void/moved", path)
        equal(os.lstat(path).st_ino, number)
    equal(os.stat("hard1").st_ino, os.stat("dir/hard2").st_ino)


@case
def everything_is_on_one_device_with_numbers_of_its_own() -> int:
    numbers: dict[int, set[str]] = {}
    for directory, directories, files in os.walk("."):
        for name in (*directories, *files):
            st = os.lstat(os.path.join(directory, name))
            equal(st.st_dev, os.stat(".").st_dev)
            numbers.setdefault(st.st_ino, set()).add(name)
    shared = [names for names in numbers.values() if len(names) > 1]
    equal(shared, [{"hard1", "hard2"}])
    return len(numbers)


@case
def space_of_the_volume() -> object:
    seen = []
    for path in (".", "file", "dir", "fifo"):
        volume = os.statvfs(path)
        assert volume.f_bavail <= volume.f_bfree <= volume.f_blocks
        assert volume.f_ffree <= volume.f_files
        seen.append((volume.f_bsize, volume.f_frsize, volume.f_blocks, volume.f_namemax))
    fails("ENOENT", os.statvfs, "none")
    return list(seen)

"""Programs that know nothing of cowfs: they do in a copy just what they do on XFS.

Each shell script runs in a copy and in a reflink copy beside it. What it prints, its exit code and
the tree that it leaves must be the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.command import Result, run
from integration.effort import EFFORT
from integration.mounts import MountCopy
from integration.oracle import Oracle
from integration.trees import tree_state

#: Entries of the large directory.
ENTRIES = 3000 * EFFORT

_DATE = "2024-05-06T07:08:09Z"
_PAST = 1_700_000_000
ENVIRONMENT = {
    "LC_ALL": "C",
    "TZ": "UTC",
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_NAME": "Somebody" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "some@body" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": _DATE for who in ("AUTHOR", "COMMITTER")},
}


def shell(script: str) -> Callable[[Path], Result]:
    """Runs `script` in a directory, which ends at its first error, and shows that as ROOT."""

    def act(root: Path) -> Result:
        result = run(
            *("bash", "-euo", "pipefail", "-c", script), cwd=root, env=ENVIRONMENT, check=False
        )
        output, errors = (text.replace(str(root), "ROOT") for text in result[1:])
        return Result(result.returncode, output, errors)

    return act


def same(oracle: Oracle, script: str, *, trees: bool = True) -> Result:
    """Runs a script that must succeed in both."""
    result = oracle.same(shell(script), trees=trees)
    assert result.returncode == 0, f"on XFS too: {result}"
    return result


# --- small tools ----------------------------------------------------------------------------------

SCRIPTS = {
    "copying": """
        cp -a --reflink=auto weights.bin auto.bin
        cp -a --sparse=always sparse.bin holes.bin
        cp --sparse=never small.bin whole.bin
        cp -al tokenizer linked
        cp -a tokenizer copied
        cp --preserve=all,xattr config.json config.copy
        cp -f script.sh config.json
        cp --backup=numbered script.sh small.bin
        install -D -m 2750 -o 1000 -g 1001 script.sh new/deep/tool
        install -b -m 600 small.bin script.sh
        cmp weights.bin auto.bin
        cmp sparse.bin holes.bin
        dd if=weights.bin of=small.bin bs=512 count=3 seek=2 conv=notrunc status=none
        dd if=/dev/zero of=weights.bin bs=4096 count=2 seek=100 conv=notrunc,fsync status=none
        truncate -s 3M weights.bin
        split -b 1M weights.bin part.
        cat part.* | cmp - weights.bin
    """,
    "naming": """
        mv tokenizer/deep tokenizer/renamed
        mv tokenizer words
        mkdir tokenizer
        mv words/renamed tokenizer/back
        mv -n config.json small.bin
        mv -b config.json small.bin
        mv -T many several
        ln hard1 hard3
        ln words/hard2 tokenizer/hard4
        ln -sr weights.bin tokenizer/relative
        ln -sfn several latest
        ls -l latest/f001 | cut -c 1-10
        stat -c '%h %n' hard1 hard3 words/hard2 tokenizer/hard4
        rm -r several words
        rmdir tokenizer/back/er 2>&1 || true
        mkdir -p a/b/c/d
        rmdir -p a/b/c/d
        file=$(mktemp -p . tmp.XXXXXX)
        directory=$(mktemp -d -p . tmp.XXXXXX)
        stat -c '%A %s' "$file"
        stat -c '%A' "$directory"
        rm -r "$file" "$directory"
        unlink dangling
        mkfifo pipe
        (echo through > pipe) & cat pipe
        wait
    """,
    "attributes": """
        chmod -R u=rwX,go=rX .
        chown -R 1000:1001 tokenizer
        chown -hR 1002 many
        chgrp 1003 weights.bin
        chmod 4755 script.sh
        chmod g+s,o+t tokenizer
        touch -r hard1 config.json
        touch -d @1000000000.123456789 weights.bin latest
        touch -hd @1000000000 latest
        stat -c '%n %.9Y' config.json weights.bin | tail -1
        setfattr -n user.one -v 1 weights.bin tokenizer
        setfattr -n trusted.two -v 2 weights.bin
        setfattr -x user.origin config.json
        setfacl -R -m u:1005:rwX,d:u:1006:rX tokenizer
        touch tokenizer/inherits
        find tokenizer | sort | xargs getfacl
        getfattr -d -m - weights.bin
        find . -newer weights.bin -type f | wc -l
        find . -perm -4000 -o -user 1002 -name 'f00*' -o -links +1 -type f | sort
    """,
    "editing": """
        sed -i s/384/768/ config.json
        sed -i.bak --follow-symlinks 1,500d tokenizer/vocab.txt
        perl -i.orig -pe 's/token/word/' tokenizer/vocab.txt
        perl -i -ne 'print unless /7/' tokenizer/vocab.txt
        sort -r -o tokenizer/vocab.txt tokenizer/vocab.txt
        printf -- '--- hard1\\n+++ hard1\\n@@ -1 +1,2 @@\\n one inode, two names\\n+a line\\n' |
            patch -b
        printf -- '--- config.json\\n+++ config.json\\n@@ -1 +0,0 @@\\n-{"hidden_size": 768}\\n' |
            patch -E
        gzip weights.bin
        gzip -l weights.bin.gz
        gunzip weights.bin.gz
        echo more >> small.bin
        tee -a script.sh <<< 'echo more'
        ./script.sh
        dd if=/dev/urandom bs=1M count=1 of=many/f007 status=none
        rm many/f007
        rev tokenizer/deep/er/leaf > turned
        chmod 640 script.sh
        chown 1000 script.sh
        vim.tiny -Nnu NONE -es -c 'set backup backupcopy=no' -c '%s/hello/edited/' -c wq script.sh
        vim.tiny -Nnu NONE -es -c 'set backupcopy=yes' -c '%s/one/1/' -c wq tokenizer/hard2
        cat script.sh script.sh~ hard1
    """,
    "looking": """
        find . -type d -printf '%p %m %n %U %G\\n' -o -printf '%p %m %n %s %b %U %G %T@ %y %l\\n' |
            sort
        du -a --block-size=512 many/f* tokenizer/vocab.txt sparse.bin weights.bin
        ls -lRn --time-style=+%s | grep -v -e ^d -e ^total
        ls -U | wc -l
        ls many | md5sum
        wc -c weights.bin small.bin
        tail -c 7 tokenizer/vocab.txt
        grep -rlc 199 many
        test -x script.sh
        test ! -e dangling
        readlink -f latest
        realpath --relative-to=many tokenizer/deep/../vocab.txt
        (cd tokenizer/deep/er && pwd -P && cd ../.. && ls)
    """,
    "removing": """
        cp -a . ../tree.tmp.$$
        mv ../tree.tmp.$$ inside 2>&1 | head -c 0
        rm -rf inside/many inside/tokenizer
        find inside -type f -delete
        rm -rf inside
        find many -name 'f1*' -delete
        rm -f many/f00?
        ls many | wc -l
        rm -rf tokenizer
        mkdir tokenizer
        ls -A tokenizer
        rm -rf ./* ./.[!.]*
        ls -A
    """,
}


@pytest.mark.parametrize("subject", SCRIPTS)
def test_small_tools_do_the_same_in_a_copy_as_on_xfs(oracle: Oracle, subject: str) -> None:
    same(oracle, SCRIPTS[subject])


# --- archives and rsync ---------------------------------------------------------------------------


def test_archives_of_a_copy_are_those_of_xfs_and_unpack_to_the_same(oracle: Oracle) -> None:
    same(
        oracle,
        """
        setfacl -m u:1005:rw small.bin
        ls -A > .names
        tar --create --file all.tar --format=posix --sparse --xattrs --xattrs-include='*' --acls \
            --sort=name --numeric-owner --pax-option=delete=atime,delete=ctime --mtime=@1700000000 \
            --verbatim-files-from --files-from .names
        mkdir unpacked
        tar --extract --file all.tar --xattrs --xattrs-include='*' --acls --sparse -C unpacked -p
        tar --compare --file all.tar -C unpacked
        stat -c '%b %n' unpacked/sparse.bin
        tar --list --verbose --file all.tar
        rm all.tar  # it has a process id in it
        find many tokenizer latest | sort |
            cpio --quiet --create --format=newc --device-independent > all.cpio
        mkdir cpio
        cd cpio
        cpio --quiet --extract --make-directories --preserve-modification-time < ../all.cpio
        """,
    )


def test_a_debian_package_is_built_and_unpacked_in_a_copy(oracle: Oracle) -> None:
    same(
        oracle,
        """
        mkdir -p package/DEBIAN package/opt
        cp -a tokenizer script.sh latest package/opt
        printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: m\\nDescription: d\\n' \
            > package/DEBIAN/control
        find package -exec touch -h -d @1700000000 {} +
        SOURCE_DATE_EPOCH=1700000000 dpkg-deb -Zgzip --build package p.deb
        dpkg-deb -x p.deb out
        dpkg-deb -e p.deb out/control
        dpkg-deb --contents p.deb
        """,
    )


@pytest.mark.parametrize("how", ["--inplace --no-whole-file", "--whole-file"])
def test_rsync_brings_trees_over_exactly_and_a_second_run_finds_nothing_to_do(
    oracle: Oracle, xfs: Path, model: Path, how: str
) -> None:
    changed = xfs / "changed"
    run("cp", "-a", "--reflink=always", model, changed)
    shell(
        """
        dd if=/dev/zero of=weights.bin bs=4096 count=2 seek=100 conv=notrunc status=none
        rm many/f1*
        mv tokenizer/deep deep
        ln small.bin small.link
        setfacl -m u:1005:rw small.bin
        setfattr -n user.new -v 1 tokenizer
        chown 1000 script.sh
        find . -exec touch -hd @1700000000 {} +  # rsync takes times in the same second for equal
        """
    )(changed)
    rsync = f"rsync -aHAX --numeric-ids --delete --itemize-changes {how}"
    first = same(oracle, f"{rsync} {changed}/ . | sort")
    assert "weights.bin" in first.stdout
    assert tree_state(oracle.copy) == tree_state(changed)
    assert same(oracle, f"{rsync} {changed}/ .").stdout == ""
    back = xfs / "back"
    run("bash", "-c", f"{rsync} {oracle.copy}/ {back}/")
    assert tree_state(back) == tree_state(changed)
    assert run("bash", "-c", f"{rsync} --checksum {oracle.copy}/ {back}/").stdout == ""


# --- git ------------------------------------------------------------------------------------------


@pytest.fixture
def repository(model: Path) -> Path:
    """The model with a history, as the source of copies."""
    shell(
        """
        git init -q -b main
        git add .
        git commit -qm one
        git tag v1
        seq 1000 > numbers
        git add numbers
        git commit -qm two
        """
    )(model)
    return model


def test_git_works_in_a_copy_of_a_repository(
    mount_copy: MountCopy, repository: Path, xfs: Path
) -> None:
    oracle = Oracle.beside(mount_copy(repository), repository, xfs / "native")
    same(
        oracle,
        """
        git status --porcelain
        git checkout -q -b topic
        echo more >> config.json
        git rm -q many/f0*
        git mv tokenizer words
        git commit -qam three
        git checkout -q main
        echo other > other
        git add other
        git stash -q
        git merge -q --no-edit topic
        git stash pop -q
        git commit -qm four
        git gc -q --prune=now
        git fsck --full --strict
        git clone -q --local . clone
        find clone/.git/objects -type f -links 2 | wc -l
        git -C clone fsck --full --strict
        git -C clone checkout -q v1
        git -C clone status --porcelain
        git worktree add -q ../$(basename $PWD)/tree v1
        git -C tree status --porcelain
        git reset -q --hard v1
        git clean -qfdx
        git status --porcelain
        git log --all --format='%H %s'
        git count-objects -v
        """,
        trees=False,  # an index holds times and inode numbers
    )


def test_a_remount_changes_nothing_that_git_has_in_its_index(
    mount_copy: MountCopy, repository: Path
) -> None:
    copy = mount_copy(repository)
    for name in ("config.json", "many/f001"):
        (copy / name).write_text("private")
        os.utime(copy / name, (_PAST, _PAST))  # older than the index, or git reads the file itself
    (copy / "script.sh").chmod(0o700)
    os.utime(copy / "numbers", (_PAST, _PAST))
    refresh = shell("git add .; git update-index --really-refresh; git diff-files")
    assert refresh(copy).stdout == ""
    assert shell("git ls-files --stage | wc -l")(copy).stdout.strip() > "200"
    index = (copy / ".git" / "index").read_bytes()
    mount_copy.unmount(copy)
    mount_copy(repository, copy)
    # diff-files names what has other times, size or inode number, and does not write the index.
    assert shell("git diff-files --name-only")(copy) == Result(0, "", "")
    assert (copy / ".git" / "index").read_bytes() == index


# --- programs -------------------------------------------------------------------------------------

_MAIN_C = '#include <stdio.h>\nint f(void);\nint main(void) { return !printf("%d\\n", f()); }\n'
_MAKEFILE = """
CFLAGS = -g0
prog: main.o f.o
\tcc -o $@ $^
"""


def test_a_program_is_built_and_run_in_a_copy(oracle: Oracle) -> None:
    for root in (oracle.copy, oracle.native):
        (root / "Makefile").write_text(_MAKEFILE)
        (root / "main.c").write_text(_MAIN_C)
        (root / "f.c").write_text("int f(void) { return 41; }\n")
    same(
        oracle,
        """
        make -sj2
        ./prog
        make
        sed -i s/41/42/ f.c
        touch -d @$(($(stat -c %Y prog) + 2)) f.c
        make 2>/dev/null  # it warns of a time in the future
        ./prog
        """,
    )

    def overwrite(root: Path) -> None:
        with subprocess.Popen([root / "sleep", "60"]) as process:
            try:
                with (root / "sleep").open("r+b"):
                    raise AssertionError("a running program can be written")
            finally:
                process.kill()

    same(oracle, "cp /bin/sleep .")
    with pytest.raises(OSError, match="busy") as caught:
        oracle.same(overwrite)
    assert caught.value.errno == errno.ETXTBSY


def test_a_virtual_environment_in_a_copy_takes_and_gives_up_a_wheel(
    mount_copy: MountCopy, model: Path
) -> None:
    copy = mount_copy(model)
    with zipfile.ZipFile(copy / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/__init__.py", "print('tiny at work')\n")
        info = "tiny-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    # With a pip of its own each environment would take many seconds.
    run(sys.executable, "-m", "venv", "--without-pip", copy / "env")
    python = copy / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-cache-dir", "--no-index", *copy.glob("tiny*.whl"))
    assert run(python, "-c", "import tiny").stdout == "tiny at work\n"
    assert "No broken requirements" in run(*pip, "check").stdout
    (site,) = (copy / "env" / "lib").glob("python*/site-packages")
    before = tree_state(site)
    run(*pip, "uninstall", "--quiet", "--yes", "tiny")
    assert set(tree_state(site)) == {name for name in before if not name.startswith("tiny")}


# --- a large directory ----------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = _libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
_libc.readdir64.argtypes = _libc.telldir.argtypes = _libc.closedir.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def _read_name(stream: int) -> bytes:
    entry = _libc.readdir64(stream)
    return ctypes.string_at(entry + 19) if entry else b""


def test_a_large_directory_is_listed_sought_and_removed(mount_copy: MountCopy, model: Path) -> None:
    for number in range(0, ENTRIES, 2):
        (model / "many" / f"n{number}").touch()
    directory = mount_copy(model) / "many"
    for number in range(1, ENTRIES, 2):
        (directory / f"n{number}").touch()
    expected = {f"f{n:03}" for n in range(200)} | {f"n{n}" for n in range(ENTRIES)}
    names = os.listdir(directory)
    assert len(names) == len(expected)
    assert set(names) == expected

    stream = _libc.opendir(os.fsencode(directory))
    places = {}
    while (place := _libc.telldir(stream), name := _read_name(stream)) and name:
        places[place] = name
    for place in list(places)[:: max(1, len(places) // 50)]:
        _libc.seekdir(stream, place)
        assert _read_name(stream) == places[place]
    # What is removed while it is listed leaves nothing out.
    _libc.seekdir(stream, next(iter(places)))
    while name := _read_name(stream):
        if name not in (b".", b".."):
            os.unlink(os.fsencode(directory) + b"/" + name)
    _libc.closedir(stream)
    assert os.listdir(directory) == []
    directory.rmdir()

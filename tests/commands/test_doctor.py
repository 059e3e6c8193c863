"""The doctor's verdicts, with the machine's answers given by the test."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cowfs.commands import doctor
from cowfs.commands.doctor import Finding
from cowfs.mount import preflight, privileges, probes
from cowfs.system import mountinfo, syscalls
from cowfs.system.errors import SystemFailure, UsageError
from cowfs.system.mountinfo import Mount


@pytest.fixture(autouse=True)
def good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where everything works; each test breaks something."""
    monkeypatch.setattr(preflight, "require_privilege", lambda: None)
    monkeypatch.setattr(privileges, "missing", lambda _: [])
    monkeypatch.setattr(preflight, "require_fuse_device", lambda: None)
    monkeypatch.setattr(preflight, "has_capability", lambda _: True)
    monkeypatch.setattr(syscalls, "has_filesystem", lambda _: True)
    monkeypatch.setattr(probes, "passthrough", lambda _: None)
    monkeypatch.setattr(probes, "fuse", lambda: probes.Fuse(45, (1 << 64) - 1))
    monkeypatch.setattr(probes, "reflink", lambda _: None)
    release = os.uname_result(("Linux", "host", "6.18.0-test", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: release)
    monkeypatch.setattr(doctor, "_libraries", lambda: iter(()))


def finding(name: str, path: str | None = "/") -> Finding:
    [found] = [found for found in doctor.examine(path) if found.name == name]
    return found


def refusing(code: int) -> object:
    def refuse(_: str) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_very_old_kernel_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, status in (("6.9.1", "ok"), ("5.10.0-34-amd64", "ok"), ("5.4.0", "failed")):
        monkeypatch.setattr(os, "uname", lambda r=release: os.uname_result(("", "", r, "", "")))
        assert finding("kernel").status == status


def test_what_the_fuse_of_a_kernel_lacks_is_told_in_one_line_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {finding(name).status for name in ("survival", "calls")} == {"ok"}
    debian_11 = os.uname_result(("", "", "5.10.0-34-amd64", "", ""))
    monkeypatch.setattr(os, "uname", lambda: debian_11)
    monkeypatch.setattr(probes, "fuse", lambda: probes.Fuse(32, 0))
    survival = finding("survival")
    assert survival.status == "degraded"
    assert "answers ENOTCONN" in survival.detail
    assert "Linux 6.9" in str(survival.remedy)
    calls = finding("calls")
    assert calls.status == "degraded"
    for name in ("O_TMPFILE", "birth times", "FALLOC_FL_ZERO_RANGE", "ACL"):
        assert name in calls.detail
    assert doctor.would_mount([survival, calls])


def test_what_the_overlayfs_of_a_kernel_lacks_is_told_where_it_lacks_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for release, told in (
        ("5.10.0-46-amd64", ("O_TMPFILE (6.10)", "RWF_APPEND (6.7)", "ETXTBSY")),
        ("6.8.0-151-generic", ("O_TMPFILE (6.10)",)),
        ("6.12.118-amd64", ()),
    ):
        monkeypatch.setattr(os, "uname", lambda r=release: os.uname_result(("", "", r, "", "")))
        found = [one for one in doctor.examine("/") if one.name == "overlayfs calls"]
        assert [one.status for one in found] == ["degraded"] * bool(told)
        assert [one.detail.count("(") for one in found] == [len(told)] * bool(told)
        assert all(name in one.detail for one in found for name in told)
    monkeypatch.setattr(syscalls, "has_filesystem", lambda _: False)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", "5.10.0", "", "")))
    assert "overlayfs calls" not in {one.name for one in doctor.examine("/")}


def test_missing_privileges_stop_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UsageError("no permission to mount: run it as root")

    monkeypatch.setattr(preflight, "require_privilege", refuse)
    found = finding("privileges")
    assert (found.status, found.detail) == ("failed", "no permission to mount")
    assert found.remedy == "run it as root"
    assert not doctor.would_mount([found])


def test_a_missing_lesser_capability_stops_a_mount_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "missing", lambda _: ["LINUX_IMMUTABLE"])
    found = finding("privileges")
    assert found.status == "failed"
    assert "CAP_LINUX_IMMUTABLE" in str(found.remedy)
    assert "--cap-add LINUX_IMMUTABLE" in str(found.remedy)


def test_one_engine_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SystemFailure("cannot open /dev/fuse (No such device): modprobe fuse")

    assert {finding(name).status for name in ("/dev/fuse", "overlayfs")} == {"ok"}
    monkeypatch.setattr(preflight, "require_fuse_device", refuse)
    device = finding("/dev/fuse")
    assert device.status == "degraded"
    assert "copies are served by the kernel's overlayfs" in device.detail
    assert device.remedy == "modprobe fuse"
    monkeypatch.setattr(syscalls, "has_filesystem", lambda _: False)
    assert {finding(name).status for name in ("/dev/fuse", "overlayfs")} == {"failed"}
    monkeypatch.setattr(preflight, "require_fuse_device", lambda: None)
    overlayfs = finding("overlayfs")
    assert overlayfs.status == "degraded"
    assert "engine=overlay is refused" in overlayfs.detail
    assert "modprobe overlay" in str(overlayfs.remedy)
    assert doctor.would_mount(doctor.examine("/"))
    monkeypatch.setattr(syscalls, "has_filesystem", refusing(errno.EPERM))
    assert finding("overlayfs").status == "unknown"


def test_without_passthrough_a_mount_works_but_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "passthrough", lambda _: "this kernel does not have it")
    found = finding("passthrough")
    assert found.status == "degraded"
    assert "this kernel does not have it" in found.detail
    assert found.remedy is not None
    assert doctor.would_mount([found])


def test_passthrough_that_cannot_be_tried_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "passthrough", refusing(errno.ENODEV))
    found = finding("passthrough")
    assert found.status == "degraded"
    assert "cannot be tried" in found.detail
    monkeypatch.setattr(probes, "passthrough", refusing(errno.EPERM))
    found = finding("passthrough")
    assert found == Finding(
        "passthrough", "unknown", "not tried: Operation not permitted", "become root to try it"
    )


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EOPNOTSUPP, "mkfs.xfs -m reflink=1"),
        (errno.EROFS, "remount,rw"),
    ],
)
def test_a_volume_that_does_not_clone_stops_a_mount(
    monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    monkeypatch.setattr(probes, "reflink", refusing(code))
    found = finding("reflink")
    assert found.status == "failed"
    assert remedy in str(found.remedy)


@pytest.mark.parametrize("path", ["/", None])
def test_a_volume_that_this_user_may_not_write_to_is_not_called_unfit(
    monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.setattr(mountinfo, "read", lambda: [Mount(3, "8:3", "/", "xfs", "c")])
    monkeypatch.setattr(probes, "reflink", refusing(errno.EACCES))
    found = finding("reflink", path)
    assert (found.status, found.remedy) == ("unknown", "become root to try it")


def test_without_a_path_one_volume_that_clones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        Mount(1, "8:1", "/", "ext4", "a"),
        Mount(2, "8:2", "/old", "xfs", "b"),
        Mount(3, "8:3", "/data", "xfs", "c"),
    ]
    monkeypatch.setattr(mountinfo, "read", lambda: mounts)
    monkeypatch.setattr(
        probes,
        "reflink",
        lambda path: None if path == "/data" else refusing(errno.EOPNOTSUPP)(path),
    )
    found = finding("reflink", None)
    assert (found.status, found.detail) == ("ok", "on /data")
    mounts.pop()
    assert finding("reflink", None).status == "failed"


def test_a_path_that_does_not_exist_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none does not exist"):
        doctor.examine(str(tmp_path / "none"))


def test_a_file_stands_for_its_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    tried: list[str] = []
    monkeypatch.setattr(probes, "reflink", tried.append)
    doctor.examine(str(tmp_path / "file"))
    assert tried == [os.path.realpath(tmp_path)]


def test_lines_put_the_remedy_below_what_is_wrong() -> None:
    lines = list(
        doctor.as_lines([Finding("kernel", "ok", "x"), Finding("reflink", "failed", "y", "do z")])
    )
    before = " " * 19
    assert lines == [
        ("kernel   ok        x", before),
        ("reflink  failed    y", before),
        (f"{before}-> do z", f"{before}   "),
    ]


def test_json_has_the_verdict_and_every_check() -> None:
    value = doctor.as_json([Finding("a", "degraded", "b", "c")])
    assert json.loads(json.dumps(value)) == {
        "ok": True,
        "checks": [{"name": "a", "status": "degraded", "detail": "b", "remedy": "c"}],
    }


def test_a_library_that_cannot_be_loaded_is_a_finding_and_no_crash() -> None:
    def missing() -> str:
        raise ImportError("libfuse3.so.3: cannot open shared object file")

    found = doctor._library("libfuse", missing)
    assert found.status == "failed"
    assert "libfuse3.so.3" in found.detail

"""-o strings: what they mean, and that whatever is wrong in them is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.mount import options
from cowfs.mount.options import MIB, Options, parse, parse_size, split
from cowfs.system.errors import UsageError
from cowfs.system.syscalls import (
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_STRICTATIME,
)
from cowfs.trees.links import POLICIES


def test_without_options_a_mount_is_writable_and_trusts_no_setuid_bit_or_device() -> None:
    parsed = parse([])
    assert parsed == Options()
    assert parsed.mount_flags == MS_NOSUID | MS_NODEV
    assert not parsed.read_only
    assert (parsed.clone, parsed.passthrough, parsed.share_min) == ("auto", "auto", MIB)
    assert parsed.copy is None
    assert parsed.store is None
    assert not parsed.ephemeral


def test_patterns_of_files_that_are_changed_in_place_are_separated_by_colons() -> None:
    assert parse([]).in_place == ()
    assert parse(["inplace=*.h5:events-*"]).in_place == ("*.h5", "events-*")
    assert Options.from_dict(parse(["inplace=*.h5"]).to_dict()).in_place == ("*.h5",)
    for empty in ("inplace=", "inplace=*.h5:"):
        with pytest.raises(UsageError, match="empty pattern"):
            parse([empty])


def test_every_option_of_cowfs_arrives_in_its_field() -> None:
    parsed = parse(
        ["copy=job,ephemeral,store=/vol/.cowfs", "clone=open,passthrough=off,share_min=64k"]
    )
    assert parsed.copy == "job"
    assert parsed.ephemeral
    assert parsed.store == "/vol/.cowfs"
    assert parsed.clone == "open"
    assert parsed.passthrough == "off"
    assert parsed.share_min == 64 << 10


def test_ro_tells_the_kernel_and_the_daemon() -> None:
    parsed = parse(["ro"])
    assert parsed.read_only
    assert parsed.mount_flags & MS_RDONLY


def test_the_last_of_two_options_counts() -> None:
    assert not parse(["ro", "rw"]).read_only
    assert parse(["rw,ro"]).read_only
    assert parse(["copy=a", "copy=b"]).copy == "b"
    assert parse(["noatime,relatime"]).mount_flags & (MS_NOATIME | MS_RELATIME) == MS_RELATIME
    assert parse(["relatime,noatime"]).mount_flags & (MS_NOATIME | MS_RELATIME) == MS_NOATIME
    assert not parse(["strictatime,nostrictatime"]).mount_flags & MS_STRICTATIME


def test_suid_and_dev_take_the_defaults_away() -> None:
    assert parse(["suid"]).mount_flags == MS_NODEV
    assert parse(["dev"]).mount_flags == MS_NOSUID
    assert parse(["suid,dev,noexec"]).mount_flags == MS_NOEXEC


def test_words_of_fstab_that_are_not_about_the_mount_change_nothing() -> None:
    parsed = parse(["defaults,noauto,nofail,_netdev,x-systemd.automount,comment=mine,X-a=b"])
    assert parsed.mount_flags == options.DEFAULT_MOUNT_FLAGS
    parsed = parse(["auto,user,users,nouser,user=me,owner,group,uhelper=cowfs"])
    assert parsed.mount_flags == options.DEFAULT_MOUNT_FLAGS


def test_what_the_kernel_shows_of_a_copy_may_stand_in_fstab() -> None:
    shown = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other"
    assert parse([shown]).mount_flags == parse(["relatime"]).mount_flags


def test_empty_items_are_harmless() -> None:
    assert parse(["", ",ro,,noexec,"]) == parse(["ro,noexec"])


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ["a", "b"]),
        (r"copy=a\,b,ro", ["copy=a,b", "ro"]),
        (r"copy=a\\,ro", ["copy=a\\", "ro"]),
        (r"copy=mnt-my\x2dcopy", [r"copy=mnt-my\x2dcopy"]),
        ("copy=end\\", ["copy=end\\"]),
        ("", [""]),
    ],
)
def test_a_backslash_protects_only_commas_and_backslashes(text: str, items: list[str]) -> None:
    assert split(text) == items


@given(st.lists(st.text(), min_size=1))
def test_escaped_items_come_out_as_they_were(items: list[str]) -> None:
    escaped = ",".join(item.replace("\\", "\\\\").replace(",", "\\,") for item in items)
    assert split(escaped) == items


@given(st.lists(st.text(), min_size=1))
def test_joined_items_are_split_again(items: list[str]) -> None:
    assert split(options.join(items)) == items


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64k", 64 << 10),
        ("64K", 64 << 10),
        ("1M", MIB),
        ("1MiB", MIB),
        ("2G", 2 << 30),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size("share_min", text) == size


@pytest.mark.parametrize(
    "text", ["", "k", "-1", "1.5M", "1MB", "1 M", "1m ", "0x10", "1e3", "٣", "9" * 30, "9999999T"]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a size") as failure:
        parse([f"share_min={text}"])
    assert "share_min" in str(failure.value)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("bogus", None),
        ("bogus=1", None),
        ("Copy=a", "copy=NAME"),
        ("RO", "ro"),
        ("user_id=7", None),
        ("copyx=a", "copy=NAME"),
        ("share-min=1M", "share_min=SIZE"),
        ("noxec", "noexec"),
    ],
)
def test_an_unknown_option_is_named_with_what_may_be_meant(option: str, meant: str | None) -> None:
    with pytest.raises(UsageError) as failure:
        parse(["ro", option])
    message = str(failure.value)
    assert message.startswith(f"unknown option {option!r}: ")
    assert message.endswith("ee cowfs(5), or cowfs mount --help")
    assert ("did you mean" in message) == (meant is not None)
    assert f"did you mean {meant}" in message or meant is None


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("copy", "copy=NAME"),
        ("store", "store=DIR"),
        ("store=", "store=DIR"),
        ("clone", "clone=auto|write|open"),
        ("clone=never", "clone=auto|write|open"),
        ("passthrough=", "passthrough=auto|on|off"),
        ("passthrough=yes", "passthrough=auto|on|off"),
        ("share_min", "share_min=SIZE"),
        ("ephemeral=1", "takes no value"),
        ("ro=1", "takes no value"),
        ("remount", "unmount"),
        ("bind", "mount(8)"),
    ],
)
def test_a_malformed_option_is_named_with_its_right_form(option: str, says: str) -> None:
    with pytest.raises(UsageError) as failure:
        parse([option])
    assert option.partition("=")[0] in str(failure.value)
    assert says in str(failure.value)
    assert "\n" not in str(failure.value)


def test_sloppy_passes_over_what_is_unknown_and_nothing_else() -> None:
    parsed = parse(["bogus,ro,Copy=a", "copy=x"], sloppy=True)
    assert (parsed.read_only, parsed.copy, parsed.given) == (True, "x", ("ro", "copy=x"))
    for wrong in ("clone=never", "ro=1", "share_min=x"):
        with pytest.raises(UsageError):
            parse([wrong], sloppy=True)


def test_every_form_and_choice_of_an_option_is_described() -> None:
    for text in options.DESCRIPTIONS.values():
        assert text.endswith(".")
    assert options.CHOICES == {
        "engine": ("auto", "fuse", "overlay"),
        "clone": ("auto", "write", "open"),
        "links": ("auto", "follow", "keep"),
        "passthrough": ("auto", "on", "off"),
    }
    assert options.CHOICES["links"] == POLICIES


def test_an_empty_copy_name_is_left_to_the_store_to_refuse() -> None:
    assert parse(["copy="]).copy == ""


def test_options_survive_json() -> None:
    parsed = parse([r"ro,copy=a\,b" + "\udcff", "store=/v/.cowfs,share_min=1G"])
    assert Options.from_dict(json.loads(json.dumps(parsed.to_dict()))) == parsed


def test_what_another_version_knows_more_or_less_is_no_obstacle() -> None:
    """A mount moves from one version to the next and back."""
    values = {**Options(read_only=True).to_dict(), "compress": True}
    del values["watchdog"]
    assert Options.from_dict(values) == Options(read_only=True)


def test_what_the_user_wrote_is_kept_for_display() -> None:
    assert parse(["ro,noexec", "copy=x"]).given == ("ro", "noexec", "copy=x")

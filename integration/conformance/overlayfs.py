"""Which cases come out differently in a copy that the kernel's overlayfs serves, where, and why.

docs/semantics.md has the reasons. Each of these is expected: one that comes out as on XFS is an
error, as is one that is not named here and does not. Seen on Linux 6.18.
"""

from __future__ import annotations

_OLD = ("shared", "private", "moved")
_LOWER = ("shared", "moved")  # what the copy has no file of its own of

#: The names of one file of the template part when one of them is changed.
_PARTED = {
    "lifetimes-numbers_stay_over_every_change": _OLD,
    "lifetimes-everything_is_on_one_device_with_numbers_of_its_own": ("private",),
    "lifetimes-removed_files_live_as_long_as_they_are_open": _OLD,
    "links-link_gives_every_kind_another_name": _OLD,
    "links-linked_names_show_one_file": _OLD,
    "links-unlink_lowers_the_count_and_moves_the_ctime": _OLD,
    "locks-every_name_has_the_locks_of_the_file": _OLD,
    "modes-chmod_sets_every_bit_of_every_kind": _OLD,
    "modes-chown_sets_what_it_is_told": _OLD,
    "opening-o_trunc_empties_files": _OLD,
    "renaming-descriptors_do_not_mind": ("private",),
    "renaming-name_is_free_after_a_rename": ("private",),
    "renaming-nothing_happens_between_names_of_one_file": _OLD,
    "renaming-object_stays_itself": _OLD,
    "renaming-replaced_file_loses_the_name": _OLD,
    "renaming-tree_moves_with_all_that_is_in_it": _OLD,
    "sizes-truncate_cuts_and_extends_with_zeros": _OLD,
    "times-names_that_come_and_go_move_their_directory": _OLD,
    "times-times_are_kept_to_the_nanosecond": _OLD,
    "times-what_only_changes_the_inode_moves_ctime": ("private",),
    "xattrs-attributes_are_set_read_listed_and_removed": _OLD,
    "xattrs-create_and_replace": _OLD,
}

#: st_nlink of a directory that the template has is 1, also when it is removed.
_COUNTS = {
    "directories-mkdir_and_rmdir_keep_the_link_counts": _OLD,
    "directories-removed_directory_lists_nothing": _OLD,
    "lifetimes-working_directory_follows_its_directory": _OLD,
    "lifetimes-directory_descriptor_outlives_the_directory": _LOWER,
    "renaming-counts_follow_a_directory": _OLD,
    "renaming-every_kind_over_every_kind": _OLD,
    "renaming-exchange_swaps_every_kind": _LOWER,
}

#: Character devices 0:0 are refused, as by cowfs.
_WHITEOUTS = {"specials-device_zero": (*_OLD, "new")}

#: Copying up counts as writing, for a process whose RLIMIT_FSIZE is smaller than the file.
_LIMITED = {"sizes-limit_of_file_size_is_kept": _LOWER}

DIFFERENT: dict[str, tuple[str, ...]] = {**_PARTED, **_COUNTS, **_WHITEOUTS, **_LIMITED}

#: The same with a handler for SIGXFSZ: open(2) is begun again and again, and never returns.
ENDLESS = {"sizes-limit_of_file_size_sends_sigxfsz": _LOWER}

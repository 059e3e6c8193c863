"""Which mountpoint a copy belongs to."""

from __future__ import annotations

import pytest

from cowfs.store.copies import CopyRecord
from cowfs.store.naming import belongs, possible


@pytest.mark.parametrize(
    ("name", "named_after", "mountpoint", "is_its"),
    [
        ("mnt-job-42", "/mnt/job-42", "/mnt/job-42", True),
        ("mnt-job-42", "/mnt/job/42", "/mnt/job-42", False),
        # a user chose the name
        ("mnt-job", "", "/mnt/job", False),
        # an earlier version, which wrote down nothing but the name
        ("mnt-job", None, "/mnt/job", True),
        ("mnt-job", None, "/mnt-job", False),
        (r"mnt\x2djob", None, "/mnt-job", True),
        (r"mnt-job\x2d42", None, "/mnt/job-42", True),
        ("mnt-job-42", None, "/mnt/job-42", False),
        ("mnt-job-42", None, "/mnt/job/42", True),
    ],
)
def test_a_copy_belongs_to_the_mountpoint_that_it_has_its_name_from(
    name: str, named_after: str | None, mountpoint: str, is_its: bool
) -> None:
    record = CopyRecord(name, "/data/model", "0" * 32, True, 0.0, named_after)
    assert belongs(record, mountpoint) is is_its


def test_the_old_name_is_looked_for_first_and_none_twice() -> None:
    assert possible("/mnt/job-42")[:2] == [r"mnt-job\x2d42", "mnt-job-42"]
    assert len(possible("/mnt/job")) == len(set(possible("/mnt/job"))) == 3

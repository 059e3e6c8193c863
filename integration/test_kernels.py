"""The package on the kernel of Debian 12; `python -m integration.kernels` knows others."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.effort import EFFORT
from integration.kernels.matrix import try_kernel

#: What depends on the kernel; the whole takes too long for every run of the tests.
_GROUPS = ("doctor", "model", "keep", "killed daemon", "mount -t", "check")
#: What is tried on a kernel like that in mount/test_without_resend.py, too.
_MORE_GROUPS = ("killed keeper", "upgrade", "update")
_SECONDS = 1200  # 250 for all of them on two idle processors


@pytest.mark.timeout(_SECONDS + 300)  # the kernel and the tree are fetched first
def test_package_works_on_the_kernel_of_debian_12(
    package: Path, newer_package: Path, tmp_path: Path
) -> None:
    groups = (*_GROUPS, *(_MORE_GROUPS if EFFORT > 1 else ()))
    outcome = try_kernel(
        "6.1", package, newer_package, tmp_path / "machine", groups=groups, patience=_SECONDS
    )
    assert outcome.release.startswith("6.1.")
    assert len(outcome.verdicts) > len(groups)
    assert not outcome.faults, "\n".join(f"{v.check}: {v.why}" for v in outcome.faults)

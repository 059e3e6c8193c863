"""The package on the kernel of Debian 12; `python -m integration.kernels` knows others."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.kernels.matrix import try_kernel

#: What depends on the kernel; the whole takes too long for every run of the tests.
_GROUPS = (
    *("doctor", "model", "keep", "killed daemon", "killed keeper", "upgrade", "update"),
    *("mount -t", "check"),
)
_SECONDS = 1200  # 250 on two idle processors


# QEMU without KVM keeps two processors busy: what others measure would be wrong meanwhile.
@pytest.mark.alone
@pytest.mark.timeout(_SECONDS + 300)  # the kernel and the tree are fetched first
def test_package_works_on_the_kernel_of_debian_12(
    package: Path, newer_package: Path, tmp_path: Path
) -> None:
    outcome = try_kernel(
        "6.1", package, newer_package, tmp_path / "machine", groups=_GROUPS, patience=_SECONDS
    )
    assert outcome.release.startswith("6.1.")
    assert len(outcome.verdicts) > len(_GROUPS)
    assert not outcome.faults, "\n".join(f"{v.check}: {v.why}" for v in outcome.faults)

"""The driver is killed at any moment and started again, and calls come again, in any order."""

from __future__ import annotations

import random
import time
from typing import Any

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.csi.kubelet import NOT_FINAL, Kubelet, capability, volume_of
from integration.effort import CHANCE, EFFORT

# What is sent: whether it is a call of a pod's own volume, of which pod, and what is done.
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "unpublish", "stage", "unstage", "create", "delete", "kill"]),
        st.integers(0, 1),
        st.booleans(),
    ),
    min_size=4,
    max_size=10,
)


def until_final(node: Kubelet, method: str, **fields: Any) -> grpc.StatusCode:
    """Call as the kubelet does: again, as long as the answer is not final."""
    for _ in range(200):
        call = node.begin(method, **fields)
        assert "this is a bug" not in str(call.details()), node.log.read_text()
        code: grpc.StatusCode = call.code()
        if code not in NOT_FINAL:
            return code
        time.sleep(0.1)
    raise AssertionError(f"{method} never ends: {node.log.read_text()}")


def test_driver_that_is_killed_within_a_call_goes_on_with_it(node: Kubelet) -> None:
    """Each call is cut off after some time of what it takes, and sent again."""
    chance = random.Random(CHANCE)
    fields = node.inline("pod-1")
    leave = {"volume_id": "csi-pod-1", "target_path": fields["target_path"]}
    for _ in range(2 * EFFORT):
        for method, sent in (("NodePublishVolume", fields), ("NodeUnpublishVolume", leave)):
            node.begin(method, **sent)
            time.sleep(chance.uniform(0, 0.6))
            node.kill()
            node.start()
            assert until_final(node, method, **sent) is grpc.StatusCode.OK
            if method == "NodePublishVolume":
                assert (volume_of(fields) / "config.json").exists()
    node.nothing_is_left()


def test_any_calls_in_any_order_leave_nothing_behind(node: Kubelet) -> None:
    """No crash, no answer that is a bug, and in the end nothing that was not there before."""
    volume_id = node.create("pvc").volume_id
    staging = {"volume_id": volume_id, "staging_target_path": str(node.staging(volume_id))}

    def fields(pod: int, *, inline: bool) -> dict[str, Any]:
        if inline:
            return node.inline(f"pod-{pod}")
        return {
            **staging,
            "target_path": str(node.target(f"pod-{pod}", "pvc")),
            "volume_capability": capability(),
            "volume_context": node.context(f"pod-{pod}", inline=False),
        }

    def step(what: str, pod: int, *, inline: bool) -> None:
        sent = fields(pod, inline=inline)
        target = {name: sent[name] for name in ("volume_id", "target_path")}
        if what == "kill":
            node.kill()
            node.start()
        elif what == "publish":
            until_final(node, "NodePublishVolume", **sent)
        elif what == "unpublish":
            assert until_final(node, "NodeUnpublishVolume", **target) is grpc.StatusCode.OK
        elif what == "stage":
            until_final(node, "NodeStageVolume", volume_capability=capability(), **staging)
        elif what == "unstage":
            assert until_final(node, "NodeUnstageVolume", **staging) is grpc.StatusCode.OK
        elif what == "create":
            node.create("pvc")
        else:
            until_final(node, "DeleteVolume", volume_id=volume_id)

    @settings(
        max_examples=2 * EFFORT,
        deadline=None,
        derandomize=EFFORT == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_STEPS)
    def run(steps: list[tuple[str, int, bool]]) -> None:
        for what, pod, inline in steps:
            step(what, pod, inline=inline)
        for pod in range(2):
            for inline in (True, False):
                step("unpublish", pod, inline=inline)
        step("unstage", 0, inline=False)
        assert until_final(node, "DeleteVolume", volume_id=volume_id) is grpc.StatusCode.OK
        node.nothing_is_left()

    run()

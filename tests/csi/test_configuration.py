"""Which sources a configuration allows, and to whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cowfs.csi import configuration
from cowfs.csi.calls import Refused
from cowfs.csi.configuration import Configuration


def read(tmp_path: Path, **value: Any) -> Configuration:
    path = tmp_path / "csi.json"
    path.write_text(json.dumps({"roots": [str(tmp_path)], **value}))
    return configuration.read(str(path))


def test_first_pattern_that_matches_a_source_says_who_may_have_it(tmp_path: Path) -> None:
    rules = {"llama-*": {"namespaces": ["team-*"]}, "*": {"namespaces": ["default"]}}
    settings = read(tmp_path, sources=rules)
    settings.require("llama-70b", "team-a")
    settings.require("gpt2", "default")
    for source, namespace in (("llama-70b", "default"), ("gpt2", "team-a"), ("gpt2", "")):
        with pytest.raises(Refused, match=f"{source} is not allowed"):
            settings.require(source, namespace)


def test_source_is_below_the_first_root_that_has_it(tmp_path: Path) -> None:
    for name in ("one", "two/deep", "one/both", "two/both"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "two" / "out").symlink_to(tmp_path)
    roots = [str(tmp_path / name) for name in ("gone", "one", "two")]
    settings = read(tmp_path, roots=roots, sources={"*": {"namespaces": ["*"]}})
    assert settings.source("deep") == str(tmp_path / "two/deep")
    assert settings.source("both") == str(tmp_path / "one/both")
    for name in ("out", "out/one", "../one", "/", ".", "a//b", "", "nobody"):
        with pytest.raises(Refused):
            settings.source(name)


@pytest.mark.parametrize(
    "value",
    [
        {"roots": []},
        {"roots": ["relative"]},
        {"root": ["/data"]},
        {"sources": {"a": {}}},
        {"sources": {"a": {"namespaces": "default"}}},
        {"store": "relative"},
        {"pod_info": 1},
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(tmp_path: Path, value: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="configuration"):
        read(tmp_path, **value)

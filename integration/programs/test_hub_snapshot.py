"""What loads a model loads it from every copy of a Hugging Face cache, offline.

transformers itself is not installed for this: without a framework of several hundred megabytes it
loads no model. What it reads files with is: huggingface_hub, safetensors and tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from integration.command import cowfs, run
from integration.mounts import MountCopy
from integration.programs.test_hub import MAIN, REPOSITORY, TOP, add

SHAPE = (512, 768)
CONFIG = {"hidden_size": 768}
WORDS = {"[UNK]": 0, "copy": 1, "on": 2, "write": 3}

#: A program that is given a model's directory, or a whole cache, and says what it has loaded.
LOADER = """
import json, sys
from pathlib import Path
import huggingface_hub
from safetensors import safe_open
from tokenizers import Tokenizer

class Model(huggingface_hub.ModelHubMixin):
    @classmethod
    def _from_pretrained(cls, *, model_id, **kwargs):
        model = cls()
        with safe_open(Path(model_id, "model.safetensors"), framework="numpy") as file:
            model.sum = float(file.get_tensor("weights").sum())
        return model

path, repository = sys.argv[1:]
if repository:
    found = huggingface_hub.snapshot_download(repository, cache_dir=path, local_files_only=True)
    assert Path(found).is_relative_to(path)
    for name in ("config.json", "model.safetensors"):
        file = huggingface_hub.hf_hub_download(
            repository, name, cache_dir=path, local_files_only=True
        )
        assert Path(file).resolve().is_relative_to(path)
    assert not huggingface_hub.scan_cache_dir(path).warnings
    path = found
config = json.loads(Path(path, "config.json").read_text())
tokenizer = Tokenizer.from_file(str(Path(path, "tokenizer.json")))
model = Model.from_pretrained(path)
print(json.dumps([config, tokenizer.encode("copy on write").ids, model.sum]))
"""


@pytest.fixture
def cache(xfs: Path) -> Path:
    """A cache with a model of which the weights are in the store that models share."""
    weights = numpy.arange(SHAPE[0] * SHAPE[1], dtype=numpy.float32).reshape(SHAPE)
    tokenizer = Tokenizer(WordLevel(WORDS, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": save({"weights": weights}),
        "tokenizer.json": tokenizer.to_str().encode(),
    }
    hub = xfs / "hub"
    add(hub, MAIN, files)
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    blob = hub / TOP / "blobs" / digest
    shared = hub / "blobs" / digest[:2] / digest
    shared.parent.mkdir(parents=True)
    (hub / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    blob.rename(shared)
    blob.symlink_to(f"../../blobs/{digest[:2]}/{digest}")
    shared.with_name(f"{digest}.refs").write_text(f"{TOP}/blobs/{digest}\n")
    return hub


def loaded(path: Path, repository: str = "") -> object:
    offline = {"HF_HUB_OFFLINE": "1"}
    return json.loads(run(sys.executable, "-c", LOADER, path, repository, env=offline).stdout)


EXPECTED = [CONFIG, [1, 2, 3], float(numpy.arange(SHAPE[0] * SHAPE[1], dtype=numpy.float32).sum())]


@pytest.fixture
def snapshot(cache: Path) -> Path:
    return cache / TOP / "snapshots" / MAIN


def test_the_cache_that_is_copied_is_one_that_programs_load_from(
    cache: Path, snapshot: Path
) -> None:
    assert loaded(snapshot) == EXPECTED
    assert loaded(cache, REPOSITORY) == EXPECTED


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_a_model_loads_from_a_copy_of_its_snapshot(
    snapshot: Path, mount_plain: MountCopy, engine: str
) -> None:
    assert loaded(mount_plain(snapshot, None, f"engine={engine}")) == EXPECTED


def test_a_model_loads_from_a_copy_of_the_whole_cache(cache: Path, mount_plain: MountCopy) -> None:
    copy = mount_plain(cache)
    assert loaded(copy, REPOSITORY) == EXPECTED
    assert loaded(copy / TOP / "snapshots" / MAIN) == EXPECTED


def test_a_model_loads_from_a_copy_of_its_directory(cache: Path, mount_plain: MountCopy) -> None:
    copy = mount_plain(cache / TOP)
    assert loaded(copy / "snapshots" / MAIN) == EXPECTED


@pytest.mark.parametrize("tool", ["clone", "import"])
def test_a_model_loads_from_a_plain_copy(snapshot: Path, xfs: Path, tool: str) -> None:
    cowfs(tool, snapshot, xfs / "plain")
    assert loaded(xfs / "plain") == EXPECTED

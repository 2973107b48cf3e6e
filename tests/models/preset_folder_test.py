"""A folder is what its manifest says, or it is refused."""

import json
import os

import pytest

from keras_switch.files import MANIFEST, CheckpointError, manifest_of
from keras_switch.models.preset_folder import PresetFolder, is_part


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "model.weights.h5").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("not a part")
    names = ["config.json", "model.weights.h5"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest_of(tmp_path, names)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("config.json", True),
        ("assets/tokenizer/vocabulary.spm", True),
        ("model_00012.weights.h5", True),
        ("model_12.weights.h5", False),
        ("model_00012.weights.h5\n", False),
        ("../config.json", False),
        ("/config.json", False),
        ("assets\\tokenizer\\vocabulary.spm", False),
        ("a.py", False),
        (MANIFEST, False),
    ],
)
def test_what_may_be_part_of_a_preset(name, answer):
    assert is_part(name) is answer


def test_a_true_manifest(folder):
    preset = PresetFolder(folder)
    assert preset.json("config.json") == {"a": 1}
    assert preset.bytes("model.weights.h5", 10) == b"weights"
    assert preset.path("model.weights.h5").read_bytes() == b"weights"
    assert preset.has("config.json") and not preset.has("task.json")
    with pytest.raises(CheckpointError, match="at most 3 bytes"):
        preset.bytes("model.weights.h5", 3)


def test_digests_are_compared_when_a_file_is_read(folder):
    (folder / "model.weights.h5").write_bytes(b"weightz")
    preset = PresetFolder(folder)  # sizes are right
    for read in (lambda n: preset.bytes(n, 99), preset.path):
        with pytest.raises(CheckpointError, match="of SHA-256 .*, by manif"):
            read("model.weights.h5")
    assert preset.json("config.json") == {"a": 1}


def test_sizes_and_the_list_are_compared_at_once(folder):
    (folder / "model.weights.h5").write_bytes(b"weight")
    with pytest.raises(CheckpointError, match="7 bytes, by .*; received 6"):
        PresetFolder(folder)
    (folder / "model.weights.h5").unlink()
    with pytest.raises(CheckpointError, match="file must be there"):
        PresetFolder(folder)


def test_a_part_that_the_manifest_does_not_know(folder):
    (folder / "task.json").write_text("{}")
    with pytest.raises(CheckpointError, match="nothing of task.json"):
        PresetFolder(folder)


def test_no_manifest(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="allow_unverified=True loads"):
        PresetFolder(folder)
    with pytest.warns(UserWarning, match="it is loaded unverified"):
        preset = PresetFolder(folder, allow_unverified=True)
    assert preset.json("config.json") == {"a": 1}
    with pytest.raises(CheckpointError, match="file must be there"):
        preset.json("task.json")


@pytest.mark.filterwarnings("error")
def test_a_trusted_folder_needs_none(folder):
    (folder / MANIFEST).unlink()
    assert PresetFolder(folder, trusted=True).has("config.json")


def test_permission_to_be_unverified_is_none_to_be_wrong(folder):
    (folder / "config.json").write_text('{"a": 2}')
    preset = PresetFolder(folder, allow_unverified=True)
    with pytest.raises(CheckpointError, match="of SHA-256"):
        preset.json("config.json")


@pytest.mark.parametrize("name", ["config.json", MANIFEST])
def test_links_out_and_pipes(folder, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / name
    outside.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match="in its folder; received a way"):
        PresetFolder(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="a file; received something"):
        PresetFolder(folder)

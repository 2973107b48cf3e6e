"""What is written replaces what is no longer true, and nothing else."""

import json
import os

import pytest

from keras_switch.files import MANIFEST
from keras_switch.models.preset_folder import PresetFolder
from keras_switch.models.preset_writer import preset_to_write


def write(folder, part, *names):
    with preset_to_write(folder, part) as temporary:
        for name in names:
            path = os.path.join(temporary, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(f"{part} {name}")
    PresetFolder(folder)  # the manifest is true


def files(folder):
    return sorted(json.loads((folder / MANIFEST).read_text())["files"])


VOCABULARY = "assets/tokenizer/vocabulary.spm"


def test_parts_come_together(tmp_path):
    folder = tmp_path / "preset"
    write(folder, "backbone", "config.json", "model.weights.h5")
    assert files(folder) == ["config.json", "model.weights.h5"]
    write(folder, "tokenizer", "tokenizer.json", VOCABULARY)
    assert files(folder) == [
        VOCABULARY,
        "config.json",
        "model.weights.h5",
        "tokenizer.json",
    ]
    assert (folder / "config.json").read_text() == "backbone config.json"


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("backbone", {"config.json", "model_00000.weights.h5", "task.json"}),
        ("tokenizer", {"tokenizer.json", "preprocessor.json", "task.json"}),
        ("preprocessor", {"tokenizer.json", "preprocessor.json", "task.json"}),
        (
            "task",
            {
                "config.json",
                "model_00000.weights.h5",
                "task.json",
                "tokenizer.json",
                "preprocessor.json",
            },
        ),
    ],
)
def test_what_is_no_longer_true_goes(tmp_path, part, gone):
    everything = {
        "config.json",
        "model_00000.weights.h5",
        "task.json",
        "tokenizer.json",
        "preprocessor.json",
    }
    write(tmp_path / "preset", "task", *everything)
    write(tmp_path / "preset", part, "metadata.json")
    left = set(files(tmp_path / "preset")) - {"metadata.json"}
    assert left == everything - gone


def test_files_of_others_stay(tmp_path):
    folder = tmp_path / "preset"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "a.txt").write_text("mine")
    (folder / "README.md").write_text("mine")
    (folder / "link").symlink_to("README.md")
    write(folder, "backbone", "config.json")
    assert (folder / "logs" / "a.txt").read_text() == "mine"
    assert (folder / "link").is_symlink()
    assert (folder / "README.md").read_text() == "mine"
    assert files(folder) == ["config.json"]


def test_a_link_to_a_preset_stays_one(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "latest").symlink_to("first")
    write(tmp_path / "latest", "backbone", "config.json")
    assert (tmp_path / "latest").is_symlink()
    assert files(tmp_path / "first") == ["config.json"]


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no links here")

    (tmp_path / "README.md").write_text("mine")
    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path, "backbone", "config.json")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_interrupted_save_leaves_the_old_preset(tmp_path):
    folder = tmp_path / "preset"
    write(folder, "backbone", "config.json")
    with pytest.raises(KeyboardInterrupt):
        with preset_to_write(folder, "backbone") as temporary:
            with open(os.path.join(temporary, "config.json"), "w") as file:
                file.write("half")
            raise KeyboardInterrupt
    assert (folder / "config.json").read_text() == "backbone config.json"
    PresetFolder(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_parts_of_a_task_are_saved_into_the_same_folder(tmp_path):
    folder = tmp_path / "preset"
    with preset_to_write(folder, "task") as outer:
        with preset_to_write(outer, "backbone") as inner:
            assert inner == outer
            with open(os.path.join(inner, "config.json"), "w") as file:
                file.write("{}")
        assert not folder.exists()
    assert files(folder) == ["config.json"]

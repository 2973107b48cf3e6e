"""Links, and what is no file."""

import os

import pytest

from keras_switch.files import CheckpointError, file_inside


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("abc")
    (tmp_path / "secret").write_text("secret")
    return folder


def test_a_file_and_a_link_inside(folder):
    (folder / "link").symlink_to("a")
    for name in ("a", "link"):
        assert file_inside(folder, name) == ((folder / "a").resolve(), 3)


@pytest.mark.parametrize("name", ["../secret", "out", "deep/secret"])
def test_no_way_leads_out(folder, name):
    (folder / "out").symlink_to(folder.parent / "secret")
    (folder / "deep").symlink_to(folder.parent, target_is_directory=True)
    with pytest.raises(CheckpointError, match="in its folder; received a way"):
        file_inside(folder, name)


def test_an_absolute_name(folder):
    with pytest.raises(CheckpointError, match="in its folder"):
        file_inside(folder, str(folder.parent / "secret"))


def test_a_neighbour_whose_name_begins_alike(folder):
    (folder.parent / "folder2").mkdir()
    (folder.parent / "folder2" / "a").write_text("")
    with pytest.raises(CheckpointError, match="in its folder"):
        file_inside(folder, "../folder2/a")


def test_what_is_no_file(folder):
    os.mkfifo(folder / "pipe")
    (folder / "inner").mkdir()
    for name in ("pipe", "inner"):
        with pytest.raises(CheckpointError, match="a file; received somethi"):
            file_inside(folder, name)
    with pytest.raises(CheckpointError, match="there; received No such file"):
        file_inside(folder, "none")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="file must be there"):
        file_inside(folder, "loop")


def test_a_snapshot_of_the_hub_s_cache_is_made_of_links(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("abc")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "out").symlink_to("../../../secret")
    (tmp_path / "secret").write_text("")
    path, size = file_inside(snapshot, "config.json")
    assert (path.name, size) == ("1", 3)
    with pytest.raises(CheckpointError, match="in its folder"):
        file_inside(snapshot, "out")

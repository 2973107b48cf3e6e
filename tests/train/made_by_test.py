"""Output folders that know their command."""

import json

import pytest
from absl import flags as absl_flags

from keras_switch_train import flags, made_by

pytestmark = pytest.mark.any_backend


@pytest.fixture(autouse=True)
def parsed():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])


def test_a_folder_tells_the_same_command_from_another(tmp_path, capsys):
    output = str(tmp_path / "out")
    preset = tmp_path / "preset"
    preset.mkdir()
    (preset / "manifest.json").write_text("{}")
    wanted = made_by.settings("compress", str(preset), quantize="int8")
    made_by.check_output(output)
    assert not made_by.is_done(output, wanted)
    with made_by.folder(output, wanted) as temporary:
        (temporary / "model").write_text("weights")
    made_by.check_output(output)
    assert made_by.is_done(output, wanted)
    assert "nothing is left to do" in capsys.readouterr().out
    for other in (
        made_by.settings("export", str(preset), quantize="int8"),
        made_by.settings("compress", str(preset), quantize="int4"),
        made_by.settings("compress", str(preset), prune_experts=2),
    ):
        with pytest.raises(flags.UsageError, match="made with another"):
            made_by.is_done(output, other)
    (preset / "manifest.json").write_text('{"later": 1}')
    later = made_by.settings("compress", str(preset), quantize="int8")
    with pytest.raises(flags.UsageError, match="made with another manifest"):
        made_by.is_done(output, later)
    assert json.loads((tmp_path / "out" / "made_by.json").read_text()) == wanted


def test_what_others_have_made_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    made_by.check_output(str(tmp_path / "empty"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name in ("full", "full/mine.txt"):
        with pytest.raises(flags.UsageError, match="new folder, or empty"):
            made_by.check_output(str(tmp_path / name))


def test_a_folder_that_fails_is_not_there(tmp_path):
    with pytest.raises(flags.UsageError, match="--output: no"):
        with made_by.folder(str(tmp_path / "out"), {}):
            raise OSError("no")
    assert not list(tmp_path.iterdir())

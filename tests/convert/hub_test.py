"""The calls to the hub's client, answered by a local folder."""

import keras
import pytest

from keras_switch.convert import hub
from keras_switch.models import SwitchBackbone
from tests.models import tiny

client = pytest.importorskip("huggingface_hub")


@pytest.fixture
def calls(tmp_path, monkeypatch):
    found = []

    class Api:
        def model_info(self, name, revision=None):
            found.append(("info", name, revision))
            return type("Info", (), {"sha": "a1b2"})

    def one_file(name, file, revision=None):
        found.append(("file", name, file, revision))
        return str(tmp_path / file)

    def snapshot(name, revision=None, allow_patterns=None):
        found.append(("all", name, revision, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(client, "HfApi", Api)
    monkeypatch.setattr(client, "hf_hub_download", one_file)
    monkeypatch.setattr(client, "snapshot_download", snapshot)
    return found


@pytest.mark.parametrize(
    ("config", "wanted"),
    [('{"model_type": "t5"}', "*.safetensors"), ("{}", "*.weights.h5")],
)
def test_one_commit_and_no_code(calls, tmp_path, config, wanted):
    (tmp_path / "config.json").write_text(config)
    assert hub.download("hf://org/name@main") == str(tmp_path)
    assert calls[:2] == [
        ("info", "org/name", "main"),
        ("file", "org/name", "config.json", "a1b2"),
    ]
    (last,) = calls[2:]
    assert last[:3] == ("all", "org/name", "a1b2")
    assert wanted in last[3]
    assert not any(
        word in pattern
        for pattern in last[3]
        for word in ("bin", "py", "pkl", "pt")
    )


def test_a_keras_preset_behind_a_handle(calls, tmp_path):
    keras.utils.set_random_seed(1)
    tiny.backbone(num_encoder_layers=1).save_to_preset(tmp_path)
    again = SwitchBackbone.from_preset("hf://org/name")
    assert again.num_encoder_layers == 1
    assert calls[0] == ("info", "org/name", None)

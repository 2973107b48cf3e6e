import json

import numpy as np

from keras_switch_train import report
from tests.models import tiny


class HeldOut:
    """Two batches of the tiny model's inputs."""

    def __len__(self):
        return 2

    def batch(self, index):
        return tiny.inputs(np.random.default_rng(index)), None, None


def test_routing_json_is_whole_or_absent(tmp_path, broken_rename, capsys):
    backbone, tokenizer = tiny.backbone(), tiny.preprocessor().tokenizer
    path = tmp_path / "routing.json"
    path.write_text("old")
    with broken_rename():
        report.write(backbone, HeldOut(), tokenizer, str(tmp_path))
    assert path.read_text() == "old"
    written = report.write(backbone, HeldOut(), tokenizer, str(tmp_path))
    layers = json.loads(path.read_text())
    names = [layer.name for layer in written.layers]
    assert [layer["name"] for layer in layers] == names
    assert layers[0]["load"] == written.layers[0].load.tolist()
    assert "dropped in" in capsys.readouterr().out

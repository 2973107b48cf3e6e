"""The conversion binary: there, back, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from keras import ops

from keras_switch import SwitchSeq2SeqLM
from keras_switch.layers.routing_stats import STATISTICS
from keras_switch_train import convert
from keras_switch_train import flags as shared
from tests.models import tiny

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    tiny.lm(tiny.preprocessor()).save_to_preset(folder)
    return str(folder)


def run(**values):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    with flagsaver.flagsaver(**values):
        convert.main()


def test_there_and_back(preset, tmp_path, capsys):
    pytest.importorskip("transformers")
    there, back = str(tmp_path / "hf"), str(tmp_path / "keras")
    run(
        source=preset,
        target=there,
        to="huggingface",
        against_transformers=True,
    )
    printed = capsys.readouterr().out
    assert "is a keras checkpoint of" in printed
    assert "to the target, by transformers" in printed
    run(source=there, target=back)
    x = tiny.inputs(np.random.default_rng(0))
    first, last = (SwitchSeq2SeqLM.from_preset(f) for f in (preset, back))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(tiny.logits(first, x)),
        ops.convert_to_numpy(tiny.logits(last, x)),
    )
    ids = [lm.preprocessor.tokenizer(tiny.TEXTS[0]) for lm in (first, last)]
    np.testing.assert_array_equal(*ids)


def test_a_dry_run_writes_nothing(preset, tmp_path, capsys):
    run(source=preset, target=str(tmp_path / "a"), dry_run=True)
    printed = capsys.readouterr().out
    assert "encoder_layer_1/feed_forward/experts/wi/kernel [4x16x32]" in printed
    assert "experts.expert_0.wi.weight ... (4 tensors), transposed" in printed
    count = sum(int(np.prod(w.shape)) for w in tiny.backbone().weights)
    # Of two sparse layers, in no checkpoint.
    statistics = 2 * (len(STATISTICS) + 1)
    assert f"of {count - statistics:,} parameters" in printed
    assert not list(tmp_path.iterdir())


def test_a_difference_is_an_error(preset, tmp_path, monkeypatch):
    real = convert._logits
    noise = iter([0.0, 1.0])
    monkeypatch.setattr(
        convert, "_logits", lambda lm, x: real(lm, x) + next(noise)
    )
    with pytest.raises(SystemExit, match="do not use the target"):
        run(source=preset, target=str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "nowhere"}, "--source must be a folder"),
        ({"target": None}, "--target must be given"),
        ({"target": "SOURCE"}, "--target must be a new folder"),
        ({"source": "EMPTY"}, "--source: folder must hold config.json"),
    ],
)
def test_bad_flags(preset, tmp_path, values, message):
    places = {"SOURCE": preset, "EMPTY": str(tmp_path)}
    given = {"source": preset, "target": str(tmp_path / "a"), **values}
    given = {name: places.get(v, v) for name, v in given.items()}
    with pytest.raises(shared.UsageError, match=message):
        run(**given)


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "keras_switch_train.convert"]
    result = subprocess.run(
        [*command, "--source=nowhere", "--target=a"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr

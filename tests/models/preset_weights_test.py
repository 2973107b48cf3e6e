"""Weights into a model: where Keras keeps them, and every one or none."""

import h5py
import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.files import CheckpointError
from keras_switch.layers import Router
from keras_switch.models.preset_arrays import WeightFiles
from keras_switch.models.preset_folder import PresetFolder
from keras_switch.models.preset_weights import load_weights
from tests.models import tiny


@keras.saving.register_keras_serializable(package="tests")
class NestedRouter(Router):
    """A router that keeps layers in lists, dicts and attributes."""

    def build(self, tokens_shape):
        super().build(tokens_shape)
        self.first = keras.layers.Dense(2, name="a")
        self._hidden = keras.layers.Dense(3, name="b")
        self.listed = [
            keras.layers.Dense(2, name="c"),
            [keras.layers.Dense(4, name="d")],
        ]
        self.named = {"b": keras.layers.Dense(2, name="e"), "a": self.first}
        for layer in (
            self.first,
            self._hidden,
            self.listed[0],
            self.listed[1][0],
            self.named["b"],
        ):
            layer.build((None, 3))

    def choose(self, probs, scores, training=None):
        best = ops.expand_dims(ops.argmax(scores, -1), -1)
        return best, ops.take_along_axis(probs, best, axis=-1)


SMALL = {"num_encoder_layers": 1, "num_decoder_layers": 1}
MODELS = {
    "sparse": {"encoder_sparse_step": 1, "num_decoder_layers": 1},
    "dense and gated": {
        **SMALL,
        "activation": "gated-gelu",
        "tie_embedding_weights": False,
    },
    "a router of many layers": {
        **SMALL,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 0,
        "router": NestedRouter(),
    },
    "half precision": {**SMALL, "dtype": "bfloat16"},
}


def files_of(folder):
    return WeightFiles(PresetFolder(folder, trusted=True))


def numpy(variable):
    return ops.convert_to_numpy(ops.cast(variable, "float32"))


def assert_equal(one, other):
    wanted = {weight.path: weight for weight in other.weights}
    assert len(wanted) == len(other.weights) == len(one.weights)
    for weight in one.weights:
        if "routing_stats" not in weight.path:
            np.testing.assert_array_equal(
                numpy(weight), numpy(wanted[weight.path]), weight.path
            )


@pytest.mark.parametrize("name", MODELS)
def test_what_keras_writes_is_found_where_it_is(tmp_path, name):
    written = tiny.backbone(**MODELS[name])
    written.save_weights(tmp_path / "model.weights.h5")
    again = tiny.backbone(**MODELS[name])
    files = files_of(tmp_path)
    load_weights(again, files)
    files.close()
    assert_equal(again, written)


def test_experts_by_the_name_they_once_had(tmp_path):
    written = tiny.backbone(**MODELS["sparse"])
    written.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        new = []
        file.visit(lambda name: new.append(name))
        new = [name for name in new if name.endswith("/expert_dense")]
        assert new
        for name in new:
            file.move(name, name.replace("expert_dense", "einsum_dense"))
    again = tiny.backbone(**MODELS["sparse"])
    files = files_of(tmp_path)
    load_weights(again, files)
    files.close()
    assert_equal(again, written)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantized_weights(tmp_path, mode):
    written = tiny.backbone(**SMALL, encoder_sparse_step=1)
    written.quantize(mode)
    written.save_weights(tmp_path / "model.weights.h5")
    again = type(written).from_config(written.get_config())
    files = files_of(tmp_path)
    load_weights(again, files)
    files.close()
    assert_equal(again, written)


@pytest.fixture
def spoilt(tmp_path):
    """`spoilt(function)`: the error for weights of which the last array was
    replaced by `function(values)`, or by nothing."""

    def run(function, **arguments):
        tiny.backbone(**SMALL).save_weights(tmp_path / "model.weights.h5")
        with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
            key = "layers/token_embedding/vars/0"
            key = key if key in file else "layers/reversible_embedding/vars/0"
            values = file[key][()]
            del file[key]
            changed = function(values)
            for name, value in (changed or {}).items():
                file[key.replace("vars/0", name)] = value
        files = files_of(tmp_path)
        with pytest.raises(CheckpointError) as caught:
            load_weights(tiny.backbone(**SMALL, **arguments), files)
        files.close()
        assert "embedding" in caught.value.field
        return str(caught.value)

    return run


def poked(values, value):
    values[-1, -1] = value
    return {"vars/0": values}


def test_what_is_not_the_models_own(spoilt):
    assert "nothing; 1 arrays are missing" in spoilt(lambda v: {})
    assert "no place for" in spoilt(lambda v: {"vars/0": v, "vars/1": v})
    assert "missing" in spoilt(lambda v: {"vars/1": v})
    assert "of shape (150, 16); received (16, 150)" in spoilt(
        lambda v: {"vars/0": np.ascontiguousarray(v.T)}
    )
    assert "of a dtype like float32; received int8" in spoilt(
        lambda v: {"vars/0": v.astype("int8")}
    )


def test_values_that_are_not_finite(spoilt):
    for value in (np.nan, np.inf, -np.inf):
        assert "NaN or infinite" in spoilt(lambda v, x=value: poked(v, x))
    message = spoilt(lambda v: poked(v, 1e6), dtype="float16")
    assert "finite everywhere in float16" in message

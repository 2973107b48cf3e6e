"""Broken and hostile folders: one clear error, and the model as it was."""

import json
import shutil

import numpy as np
import pytest
from keras import ops

from keras_switch.convert import rules
from keras_switch.convert.huggingface import _assign, load_backbone
from keras_switch.convert.huggingface_config import read_configuration
from keras_switch.convert.safetensors_files import Tensors
from keras_switch.files import CheckpointError

pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")
from tests.convert import huggingface_models as hf  # noqa: E402

WI = "encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight"
WO = "encoder.block.1.layer.1.mlp.experts.expert_2.wo.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder in two shards, never changed."""
    folder = tmp_path_factory.mktemp("good")
    return hf.save(hf.switch(), folder, max_shard_size="60KB")


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


@pytest.fixture(scope="module")
def backbone(good):
    return load_backbone(good)


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def edit(folder, change):
    """Applies a change to the tensors of the shard that holds `WI`."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"][WI]
    tensors = safetensors.load_file(path)
    change(tensors)
    safetensors.save_file(tensors, path)


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def truncate(folder):
    path = shards(folder)[0]
    path.write_bytes(path.read_bytes()[:-100])


def swap(folder):
    def change(tensors):
        tensors[WI], tensors[WO] = tensors[WO], tensors[WI]

    edit(folder, change)


def add(folder):
    def change(tensors):
        tensors["extra.weight"] = tensors[WI]

    edit(folder, change)


def add_to_index_too(folder):
    add(folder)

    def change(index):
        index["weight_map"]["extra.weight"] = index["weight_map"][WI]

    edit_index(folder, change)


def spoil(value):
    def fault(folder):
        def change(tensors):
            tensors[WI] = tensors[WI].copy()
            tensors[WI][3, 5] = value

        edit(folder, change)

    return fault


def make_int(folder):
    def change(tensors):
        tensors[WI] = tensors[WI].astype("int32")

    edit(folder, change)


def make_double(folder):
    def change(tensors):
        tensors[WI] = tensors[WI].astype("float64")

    edit(folder, change)


def leave_out(folder):
    edit(folder, lambda tensors: tensors.pop(WI))
    edit_index(folder, lambda index: index["weight_map"].pop(WI))


def point_to(name):
    def fault(folder):
        def change(index):
            index["weight_map"][WI] = name

        edit_index(folder, change)

    return fault


def pickle_only(folder):
    for path in (*shards(folder), folder / "model.safetensors.index.json"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n.")


def no_shard(folder):
    shards(folder)[1].unlink()


def lying_header(folder):
    path = shards(folder)[0]
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])


def copy_that_differs(folder):
    """An embedding of a tied model that is not the shared one."""

    def change(tensors):
        tensors["lm_head.weight"] = np.ones((60, 16), "float32")

    edit(folder, change)

    def change_index(index):
        index["weight_map"]["lm_head.weight"] = index["weight_map"][WI]

    edit_index(folder, change_index)


def configure(**fields):
    def fault(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return fault


def text(content):
    def fault(folder):
        (folder / "config.json").write_text(content)

    return fault


# What is wrong, and what the message says.
WEIGHTS = {
    "a truncated shard": (truncate, "must be a whole safetensors file"),
    "a swapped tensor": (swap, r"expert_2.w[io].weight must be of shape"),
    "an extra tensor": (add, "in the file and in its index alike"),
    "an extra tensor, indexed": (
        add_to_index_too,
        "extra.weight must be a tensor of this model; received 1 tensor",
    ),
    "a NaN": (spoil(np.nan), f"{WI} must be finite everywhere"),
    "an infinity": (spoil(-np.inf), f"{WI} must be finite everywhere"),
    "whole numbers": (make_int, f"{WI} must be one of float32"),
    "doubles": (make_double, f"{WI} must be one of float32"),
    "a missing tensor": (
        leave_out,
        f"{WI} must be there; received 1 missing tensor",
    ),
    "a path out of the folder": (
        point_to("../../etc/passwd"),
        "must be in a file called",
    ),
    "an absolute path": (point_to("/etc/passwd"), "must be in a file called"),
    "a shard that is no name": (point_to(7), "must be in a file called"),
    "a pickle": (pickle_only, "a pickle can run code and is never opened"),
    "a missing shard": (no_shard, "must be there; received no such file"),
    "a header that lies": (lying_header, "must be a whole safetensors file"),
    "a tied copy that differs": (
        copy_that_differs,
        "lm_head.weight must be equal to shared.weight",
    ),
}
CONFIGURATIONS = {
    "no JSON": (text("{"), "content must be JSON"),
    "a list": (text("[1]"), "content must be JSON|a JSON object"),
    "nested": (text('{"a":' * 40 + "1" + "}" * 40), "at most 32 deep"),
    "a key twice": (
        text('{"model_type": "t5", "model_type": "t5"}'),
        "model_type must be there once",
    ),
    "NaN": (
        text('{"model_type": "t5", "d_ff": NaN}'),
        "without NaN and infinities",
    ),
    "too large": (
        text('{"model_type": "t5", "a": "' + "x" * (1 << 20) + '"}'),
        "at most 1048576 bytes",
    ),
    "another model": (configure(model_type="bert"), "model_type must be one"),
    "a bool for an int": (configure(num_layers=True), "num_layers must be"),
    "a negative size": (configure(d_model=-1), "d_model must be at least 1"),
    "a string": (configure(d_ff="24"), "d_ff must be a int; received '24'"),
    "a router bias": (configure(router_bias=True), "router_bias must be"),
    "another activation": (
        configure(dense_act_fn="gelu"),
        "dense_act_fn must be",
    ),
    "another start": (
        configure(decoder_start_token_id=5),
        "decoder_start_token_id must be 0",
    ),
    "other sizes": (configure(d_ff=25), "must be of shape"),
    "fewer layers": (
        configure(num_layers=2, num_sparse_encoder_layers=1),
        "must be a tensor of this model",
    ),
    "more experts": (configure(num_experts=5), "must be there"),
}
FAULTS = WEIGHTS | CONFIGURATIONS


@pytest.mark.parametrize("name", FAULTS)
def test_one_clear_error(folder, name):
    fault, message = FAULTS[name]
    fault(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load_backbone(folder)
    assert str(folder) in str(error.value)
    assert error.value.file and error.value.field


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_model_is_as_before(folder, backbone, name):
    """Into a model that is there already: bit-equal after the error."""
    fault, message = WEIGHTS[name]
    fault(folder)
    before = weights(backbone)
    with pytest.raises(CheckpointError, match=message):
        configuration = read_configuration(folder / "config.json")
        _assign(backbone, configuration, Tensors(folder))
    for path, values in weights(backbone).items():
        np.testing.assert_array_equal(values, before[path])


def weights(backbone):
    return {
        variable.path: np.array(ops.convert_to_numpy(variable))
        for variable in rules.variables(backbone)
    }


def test_untied_tables_that_differ(tmp_path):
    """Our stacks share an embedding; a model with two cannot be ours."""
    model = hf.switch("untied")
    model.decoder.embed_tokens.weight.data.add_(1.0)
    hf.save(model, tmp_path)
    match = "decoder.embed_tokens.weight must be equal to shared.weight"
    with pytest.raises(CheckpointError, match=match):
        load_backbone(tmp_path)

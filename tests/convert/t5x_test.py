"""A backbone through a T5X folder and back, bit for bit."""

import time

import numpy as np
import pytest
import tensorstore
from keras import ops

from keras_switch.convert import t5x
from keras_switch.convert.t5x import T5XCheckpoint, load_t5x, read_arguments
from keras_switch.files import CheckpointError
from tests.convert import t5x_writer
from tests.models import tiny

DEEP = {"num_encoder_layers": 4, "num_decoder_layers": 2}
GATED = {"activation": "gated-gelu", "tie_embedding_weights": False}
TABLE = "encoder/relpos_bias/rel_embedding"


@pytest.fixture(scope="module")
def backbone():
    return tiny.backbone(**DEEP)


@pytest.fixture(scope="module")
def parameters(backbone):
    return t5x_writer.parameters_of(backbone)


@pytest.fixture
def opened(monkeypatch):
    """Paths that tensorstore opened, one for each time."""
    paths, real = [], tensorstore.open

    def record(spec, **options):
        paths.append(spec["kvstore"]["path"])
        return real(spec, **options)

    monkeypatch.setattr(tensorstore, "open", record)
    return paths


def outputs(backbone):
    x = tiny.inputs(np.random.default_rng(0))
    return ops.convert_to_numpy(backbone(x)["decoder_sequence_output"])


def assert_same(loaded, backbone):
    for ours, wanted in zip(loaded.weights, backbone.weights, strict=True):
        if "routing_stats" not in ours.path:
            assert ours.path == wanted.path
            np.testing.assert_array_equal(
                *map(ops.convert_to_numpy, (ours, wanted))
            )
    np.testing.assert_array_equal(outputs(loaded), outputs(backbone))


def refused(folder, *words, **arguments):
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_t5x(folder, **arguments)
    assert time.process_time() - start < 5  # with a backbone, maybe
    for word in (str(folder), *words):
        assert word in str(caught.value)


# === Unscanned ===


@pytest.mark.parametrize("compressor", ["gzip", "blosc", None])
def test_round_trip(backbone, parameters, tmp_path, compressor):
    t5x_writer.write(tmp_path, parameters, compressor=compressor)
    assert_same(load_t5x(tmp_path, dropout=0.0), backbone)


@pytest.mark.parametrize(
    "arguments",
    [
        GATED,
        {"encoder_sparse_step": 0, "decoder_sparse_step": 0},
        {"encoder_sparse_step": 1, "decoder_sparse_step": [0], **GATED},
        {"extra_feed_forward": True, **GATED},
    ],
    ids=["gated and untied", "dense", "mixed", "st-moe"],
)
def test_round_trip_of_other_models(tmp_path, arguments):
    backbone = tiny.backbone(**arguments)
    t5x_writer.write(tmp_path, t5x_writer.parameters_of(backbone))
    assert_same(load_t5x(tmp_path, dropout=0.0), backbone)


def test_chunks_that_do_not_divide(backbone, parameters, tmp_path):
    target = {
        name: t5x_writer.stored(tmp_path, name, a, chunks=[5] * a.ndim)
        if min(a.shape) > 4
        else t5x_writer.packed(a)
        for name, a in parameters.items()
    }
    t5x_writer.pack(tmp_path, target)
    assert len(list(tmp_path.glob("target.token_embedder.*/[0-9]*"))) == 120
    assert_same(load_t5x(tmp_path, dropout=0.0), backbone)


def test_half_precision(parameters, tmp_path):
    dtype = tensorstore.bfloat16.numpy_dtype
    halves = {name: a.astype(dtype) for name, a in parameters.items()}
    halves[TABLE] = parameters[TABLE].astype("float16")
    t5x_writer.write(tmp_path, halves)
    checkpoint = T5XCheckpoint(tmp_path)
    assert checkpoint.dtypes[TABLE] == "float16"
    assert checkpoint.dtypes["encoder/encoder_norm/scale"] == "bfloat16"
    for name, a in halves.items():
        values = checkpoint.read(name)
        assert values.dtype == "float32"
        np.testing.assert_array_equal(values, a.astype("float32"))
    load_t5x(tmp_path)


def test_names_shapes_and_places():
    """By hand, from what Flaxformer's own tests expect of names and shapes."""
    backbone = tiny.backbone()
    parameters = t5x_writer.parameters_of(backbone)
    table = backbone.encoder_relative_attention_bias.embeddings
    np.testing.assert_array_equal(
        parameters[TABLE], ops.convert_to_numpy(table).T
    )
    shapes = {name: a.shape for name, a in parameters.items()}
    assert len(shapes) == 3 + 2 * 1 + 2 * 6 + 2 * 11 + 2 * (2 + 3)
    assert shapes[TABLE] == (2, 32)
    for name, shape in {
        "token_embedder/embedding": (150, 16),
        "decoder/decoder_norm/scale": (16,),
        "encoder/layers_0/pre_attention_layer_norm/scale": (16,),
        "encoder/layers_0/mlp/wi/kernel": (16, 32),
        "encoder/layers_1/attention/query/kernel": (16, 12),
        "encoder/layers_1/attention/out/kernel": (12, 16),
        "encoder/layers_1/mlp/router/router_weights/w/kernel": (16, 4),
        "decoder/layers_0/pre_self_attention_layer_norm/scale": (16,),
        "decoder/layers_0/pre_cross_attention_layer_norm/scale": (16,),
        "decoder/layers_0/pre_mlp_layer_norm/scale": (16,),
        "decoder/layers_1/self_attention/value/kernel": (16, 12),
        "decoder/layers_1/encoder_decoder_attention/key/kernel": (16, 12),
        "decoder/layers_1/mlp/expert/wi/kernel": (4, 16, 32),
        "decoder/layers_1/mlp/expert/wo/kernel": (4, 32, 16),
    }.items():
        assert shapes[name] == shape


def test_step_and_left_out_optimizer(parameters, tmp_path):
    t5x_writer.write(tmp_path, parameters)
    checkpoint = T5XCheckpoint(str(tmp_path))
    assert checkpoint.step == 7
    assert checkpoint.shapes == {n: a.shape for n, a in parameters.items()}


# === Scanned ===


def test_scanned(backbone, parameters, tmp_path, opened):
    scanned = t5x_writer.scanned(parameters, {"encoder": 2, "decoder": 2})
    stack = "encoder/encoder/subblock_1"
    assert scanned[f"{stack}/attention/query/kernel"].shape == (16, 2, 12)
    assert scanned[f"{stack}/mlp/expert/wi/kernel"].shape == (4, 2, 16, 32)
    assert scanned[f"{stack}/relpos_bias/rel_embedding"].shape == (2, 2, 32)
    t5x_writer.write(tmp_path, scanned)
    opened.clear()
    assert_same(load_t5x(tmp_path, dropout=0.0), backbone)
    # Once to check the values and once to assign them, whatever the layers.
    assert {opened.count(path) for path in opened} == {2}
    assert len(set(opened)) == len(list(tmp_path.glob("target.*")))


@pytest.mark.parametrize("share_tables", [False, True])
@pytest.mark.parametrize("step", [0, 1])
def test_scanned_without_subblocks(tmp_path, step, share_tables):
    """Layers of one kind make blocks of one; dense T5 names no subblock."""
    backbone = tiny.backbone(encoder_sparse_step=step)
    scanned = t5x_writer.scanned(
        t5x_writer.parameters_of(backbone), {"encoder": 1}, share_tables
    )
    if step == 0:
        scanned = {
            name.replace("subblock_0/", ""): a for name, a in scanned.items()
        }
    t5x_writer.write(tmp_path, scanned)
    assert_same(load_t5x(tmp_path, dropout=0.0), backbone)


def test_only_one_array_is_held(parameters, tmp_path, opened):
    scanned = t5x_writer.scanned(parameters, {"encoder": 2})
    checkpoint = T5XCheckpoint(t5x_writer.write(tmp_path, scanned))
    opened.clear()
    name = "encoder/layers_{}/attention/{}/kernel"
    for layer, kernel in ((0, "key"), (2, "key"), (0, "value"), (0, "key")):
        values = checkpoint.read(name.format(layer, kernel))
        np.testing.assert_array_equal(
            values, parameters[name.format(layer, kernel)]
        )
    kernels = [path.split(".")[-2] for path in opened]
    assert kernels == ["key", "value", "key"]


def test_scanned_along_another_axis(parameters, tmp_path):
    scanned = t5x_writer.scanned(parameters, {"encoder": 2})
    for name, a in scanned.items():
        if "/subblock_" in name:
            scanned[name] = np.ascontiguousarray(np.moveaxis(a, 1, 0))
    t5x_writer.write(tmp_path, scanned)
    refused(tmp_path, "encoder/encoder/subblock_", "stacked along axis 1")


def test_a_norm_tells_the_layers_from_the_width(tmp_path):
    """Nothing else would, where all arrays agree in their axis 1."""
    name = "encoder/encoder/subblock_0/pre_mlp_layer_norm/scale"
    parameters = {"encoder/encoder_norm/scale": np.ones(16, "float32")}
    parameters[name] = np.ones((2, 16), "float32")
    t5x_writer.write(tmp_path, parameters)
    refused(tmp_path, name, "stacked along axis 1", "(2, 16)")


def test_more_layers_than_there_can_be(tmp_path):
    """Each makes a name, of which a shape may claim millions."""
    name = "encoder/encoder/subblock_0/mlp/wi/kernel"
    t5x_writer.write(tmp_path, {name: np.ones((1, 1001, 1), "float32")})
    refused(tmp_path, name, "(1, 1001, 1)")


def test_scanned_with_tables_that_differ(parameters, tmp_path):
    scanned = t5x_writer.scanned(parameters, {"encoder": 2})
    name = "encoder/encoder/subblock_1/relpos_bias/rel_embedding"
    scanned[name] = scanned[name] + [[[0.0], [1e-6]]]
    scanned[name] = scanned[name].astype("float32")
    t5x_writer.write(tmp_path, scanned)
    refused(tmp_path, TABLE, name, "the same in every layer")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder/layers_1/mlp/wi/kernel": (16, 32)}, ("it twice",)),
        ({"encoder/encoder/subblock_5/a/kernel": (16, 2, 8)}, ("subblocks",)),
        ({"encoder/encoder/subblock_1/a/kernel": (16, 3, 8)}, ("axis 1",)),
        ({"encoder/encoder/subblock_1/a/scale": (16,)}, ("axis 1",)),
        (
            {"encoder/encoder/subblock_1/a/kernel": (16, 2, 8)},
            ("encoder/layers_1/a/kernel", "2 tensors"),
        ),
        (
            {"encoder/encoder/subblock_0/relpos_bias/rel_embedding": None},
            ("encoder/layers_1/relpos_bias", "every layer or in none"),
        ),
    ],
    ids=["both", "gap", "length", "rank", "left over", "table missing"],
)
def test_scanned_that_does_not_fit(parameters, tmp_path, change, words):
    dense = tiny.backbone(**DEEP, encoder_sparse_step=0)
    parameters = t5x_writer.parameters_of(dense)
    scanned = t5x_writer.scanned(parameters, {"encoder": 2})
    for name, shape in change.items():
        scanned[name] = np.zeros(shape or (), "float32")
        if shape is None:
            del scanned[name]
    t5x_writer.write(tmp_path, scanned)
    refused(tmp_path, *words)


# === Arguments ===


def test_the_dense_layers_of_st_moe(tmp_path):
    """Names as in Flaxformer's `SparseEncoderLayer`."""
    backbone = tiny.backbone(**DEEP, extra_feed_forward=True)
    parameters = t5x_writer.parameters_of(backbone)
    norm = "encoder/layers_3/pre_extra_mlp_layer_norm/scale"
    kernel = "decoder/layers_1/extra_mlp/wo/kernel"
    assert parameters[norm].shape == (16,)
    assert parameters[kernel].shape == (32, 16)
    blocks = {"encoder": 2, "decoder": 2}
    t5x_writer.write(tmp_path, t5x_writer.scanned(parameters, blocks))
    arguments = read_arguments(T5XCheckpoint(tmp_path))
    assert arguments["extra_feed_forward"]
    assert_same(load_t5x(tmp_path, dropout=0.0), backbone)


def test_a_dense_layer_beside_some_sparse_layers_only(tmp_path):
    backbone = tiny.backbone(**DEEP, extra_feed_forward=True)
    parameters = t5x_writer.parameters_of(backbone)
    del parameters["encoder/layers_3/extra_mlp/wi/kernel"]
    t5x_writer.write(tmp_path, parameters)
    refused(tmp_path, "encoder/layers_3/extra_mlp/wi/kernel", "nothing")


def test_arguments(parameters, tmp_path):
    t5x_writer.write(tmp_path, parameters)
    assert read_arguments(T5XCheckpoint(tmp_path)) == {
        "vocabulary_size": 150,
        "num_encoder_layers": 4,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "key_value_dim": 6,
        "num_experts": 4,
        "encoder_sparse_step": [1, 3],
        "decoder_sparse_step": [1],
        "activation": "relu",
        "relative_attention_num_buckets": 32,
        "tie_embedding_weights": True,
        "extra_feed_forward": False,
    }
    loaded = load_t5x(tmp_path, activation="relu", dropout=0.25)
    assert loaded.dropout == 0.25


def test_arguments_of_a_dense_gated_model(tmp_path):
    backbone = tiny.backbone(
        **GATED, encoder_sparse_step=0, decoder_sparse_step=0
    )
    t5x_writer.write(tmp_path, t5x_writer.parameters_of(backbone))
    arguments = read_arguments(T5XCheckpoint(tmp_path))
    assert arguments["num_experts"] is None
    assert arguments["encoder_sparse_step"] == []
    assert arguments["activation"] == "gated-gelu"
    assert not arguments["tie_embedding_weights"]


LAYER = "encoder/layers_2"


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (TABLE, (3, 32), ("decoder/relpos_bias", "of shape (3, 32)")),
        (TABLE, (2, 16), ("decoder/relpos_bias", "of shape (2, 16)")),
        (TABLE, (2, 2, 16), (TABLE, "of shape (N, B)")),
        (TABLE, None, (TABLE, "must be there; received nothing")),
        (f"{LAYER}/attention/query/kernel", (16, 8), ("of shape (16, 12)",)),
        (f"{LAYER}/attention/query/kernel", None, (LAYER, "must be there")),
        (f"{LAYER}/mlp/wi/kernel", (16, 64), ("(16, 32); received (16, 64)",)),
        (f"{LAYER}/mlp/wi_0/kernel", (16, 32), ("expert/wi_0", "nothing")),
        (f"{LAYER}/mlp/wo/kernel", (16, 32), ("of shape (32, 16)",)),
        (f"{LAYER}/mlp/wo/kernel", None, (f"{LAYER}/mlp/wo", "must be there")),
        (f"{LAYER}/extra_mlp/wi/kernel", (16, 32), ("a tensor of this",)),
        ("encoder/layers_5/mlp/wi/kernel", (16, 32), ("without a gap",)),
        ("token_embedder/embedding", None, ("token_embedder", "nothing")),
        ("token_embedder/embedding", (150, 12), ("query", "(12, N H)")),
        (
            "encoder/layers_1/mlp/router/router_weights/w/kernel",
            (16, 8),
            ("encoder/layers_3/mlp/router", "(16, 8)"),
        ),
        (
            "encoder/layers_1/mlp/router/router_weights/w/kernel",
            None,
            ("encoder/layers_1/mlp/wi/kernel", "must be there"),
        ),
    ],
)
def test_models_that_do_not_agree(parameters, tmp_path, name, shape, words):
    parameters = {**parameters, name: np.zeros(shape or (), "float32")}
    if shape is None:
        del parameters[name]
    t5x_writer.write(tmp_path, parameters)
    refused(tmp_path, *words)


def test_heads_that_do_not_divide(parameters, tmp_path):
    parameters = dict(parameters)
    for stack in ("encoder", "decoder"):
        name = f"{stack}/relpos_bias/rel_embedding"
        parameters[name] = np.zeros((5, 32), "float32")
    t5x_writer.write(tmp_path, parameters)
    refused(tmp_path, "query/kernel", "for 5 heads; received 12")


def test_no_giant_is_built(parameters, tmp_path, monkeypatch):
    """Thin arrays whose sizes, taken together, make kernels of terabytes."""
    parameters = dict(parameters)
    wide = 1 << 20
    parameters["token_embedder/embedding"] = np.zeros((1, wide), "float32")
    for name in parameters:
        if name.endswith("/query/kernel"):
            parameters[name] = np.zeros((1, wide), "float32")
    t5x_writer.write(tmp_path, parameters)
    monkeypatch.setattr(t5x, "SwitchBackbone", None)
    refused(tmp_path, "query/kernel", f"of shape ({wide}, N H)")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(parameters, tmp_path, value):
    name = "decoder/layers_1/mlp/expert/wo/kernel"
    broken = parameters[name].copy()
    broken[3, -1, -1] = value
    t5x_writer.write(tmp_path, {**parameters, name: broken})
    refused(tmp_path, name, "finite")

import keras
import numpy as np
import pytest

from keras_switch import SwitchLayer
from keras_switch.analysis import (
    chosen_experts,
    routing_report,
    sparse_layers,
)
from tests.models import tiny

EXPERTS = 3
VOCABULARY = 6


def make_model(**options):
    """Token `i` goes to expert `i % 3`, with logits 5, 0 and 0."""
    arguments = dict(
        num_experts=EXPERTS, intermediate_dim=2, min_capacity=1, **options
    )
    ids = keras.Input((None,), dtype="int32", name="encoder_token_ids")
    mask = keras.Input((None,), dtype="int32", name="encoder_padding_mask")
    embedding = keras.layers.Embedding(VOCABULARY, EXPERTS)
    layer = SwitchLayer(**arguments, name="sparse")
    model = keras.Model(
        {"encoder_token_ids": ids, "encoder_padding_mask": mask},
        layer(embedding(ids), padding_mask=mask),
    )
    embedding.embeddings.assign(np.tile(np.eye(EXPERTS), (2, 1)))
    layer.router.kernel.assign(5 * np.eye(EXPERTS))
    return model


def make_batch(rows, padding=()):
    """Rows of tokens, filled up with padding to `[2, 8]`.

    One shape for all tests: in eager mode JAX compiles every operation anew
    for a new shape. Columns in `padding` are padding too.
    """
    ids, mask = np.zeros((2, 2, 8), "int32")
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    mask[:, list(padding)] = 0
    return {"encoder_token_ids": ids, "encoder_padding_mask": mask}


def only(report):
    (layer,) = report.layers
    return layer


def test_load_and_tokens_by_hand():
    batches = [make_batch([[0, 0, 0, 1]]), make_batch([[3, 2, 0, 1]])]
    layer = only(routing_report(make_model(), batches))
    assert layer.name == "sparse"
    assert layer.num_tokens == 8
    np.testing.assert_allclose(layer.load, [5 / 8, 2 / 8, 1 / 8])
    assert layer.max_mean_load == pytest.approx(3 * 5 / 8)
    assert layer.max_violation == pytest.approx(3 * 5 / 8 - 1)
    assert layer.token_ids.tolist() == [0, 1, 2, 3]
    assert layer.tokens == ("0", "1", "2", "3")
    assert layer.token_count.tolist() == [4, 2, 1, 1]
    np.testing.assert_array_equal(
        layer.token_share, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    )
    assert layer.token_entropy == 0.0


def test_statistics_are_means_over_tokens():
    batches = [make_batch([[0, 1, 2]]), make_batch([[0, 0, 0], [0, 0, 1]])]
    layer = only(routing_report(make_model(), batches))
    probs = np.exp([5.0, 0, 0]) / np.exp([5.0, 0, 0]).sum()
    assert layer.router_confidence == pytest.approx(probs[0], rel=1e-5)
    entropy = -(probs * np.log(probs)).sum()
    assert layer.router_entropy == pytest.approx(entropy, rel=1e-5)
    # First batch: 3 tokens, balanced. Second: one group of 3 tokens collapsed,
    # one with loads 2, 1 and 0.
    collapsed = 3 * probs[0]
    mean = [(2 * probs[0] + probs[1]) / 3, (probs[0] + 2 * probs[1]) / 3]
    skewed = 3 * (2 / 3 * mean[0] + 1 / 3 * mean[1])
    assert layer.load_balancing_loss == pytest.approx(
        (3 * 1.0 + 6 * (collapsed + skewed) / 2) / 9, rel=1e-5
    )


@pytest.mark.parametrize(
    "options, dropped",
    [
        ({"capacity_factor": 0.75}, 2),
        ({"capacity_factor": 1.125}, 1),
        ({"capacity_factor": 0.75, "eval_capacity_factor": 8.0}, 2),
        ({"capacity": 3}, 1),
        ({"capacity_factor": 8.0}, 0),
    ],
)
@pytest.mark.parametrize("router", ["switch", "expert_choice"])
def test_drops_are_those_of_the_capacity_of_training(router, options, dropped):
    """Three experts and six tokens in eight places: 2 slots, or 3.

    Expert 0 is wanted by four. Where experts choose, it takes as many of them,
    and the others the first token beside their own.
    """
    model = make_model(router=router, **options)
    batch = make_batch([[0, 3, 0, 3, 1, 2]])
    layer = only(routing_report(model, [batch]))
    assert layer.dropped_fraction == pytest.approx(dropped / 6)
    (sparse,) = sparse_layers(model).values()
    sparse.router.exploration = "argmax"
    model(batch, training=True)
    statistics = keras.ops.convert_to_numpy(sparse.routing_stats.value)
    assert layer.dropped_fraction == pytest.approx(statistics[0])


def test_drops_are_means_over_the_tokens_of_batches():
    model = make_model(capacity_factor=0.75)
    batches = [make_batch([[0] * 6]), make_batch([[1, 2], [0, 1]])]
    layer = only(routing_report(model, batches))
    assert layer.dropped_fraction == pytest.approx(4 / 10)


def test_dropless_drops_nothing():
    model = make_model(dispatch="dropless")
    layer = only(routing_report(model, [make_batch([[0, 0, 0, 0]])]))
    assert layer.dropped_fraction == 0
    assert layer.max_mean_load == EXPERTS


def test_padding_is_left_out():
    batch = make_batch([[5, 0, 1, 4, 4]], padding=[0, 3, 4])
    layer = only(routing_report(make_model(), [batch]))
    assert layer.num_tokens == 2
    np.testing.assert_allclose(layer.load, [0.5, 0.5, 0])
    assert layer.token_ids.tolist() == [0, 1]


def test_group_size_does_not_move_tokens():
    rng = np.random.default_rng(0)
    batch = make_batch(rng.integers(0, VOCABULARY, size=(2, 7)))
    # The last group of five has four places that no token fills.
    reports = [
        only(routing_report(make_model(group_size=size), [batch]))
        for size in (None, 5)
    ]
    for name in ("load", "token_ids", "token_count", "token_share"):
        np.testing.assert_array_equal(
            getattr(reports[0], name), getattr(reports[1], name)
        )
    assert (reports[0].token_share.max(axis=1) == 1).all()


def test_top_k_edges_are_all_counted():
    model = make_model(router="top_k")
    layer = only(routing_report(model, [make_batch([[1, 1, 1, 1]])]))
    # Second choices are tied between experts 0 and 2: the lower index.
    np.testing.assert_allclose(layer.load, [0.5, 0.5, 0])
    assert layer.num_tokens == 4
    assert layer.token_count.tolist() == [8]
    assert layer.token_entropy == pytest.approx(np.log(2))


def test_top_tokens_leaves_out_common_ones():
    batch = make_batch([[0] * 4 + [0, 0, 1, 2], [3, 3]])
    layer = only(routing_report(make_model(), [batch], lambda i: f"<{i}>"))
    assert layer.top_tokens(0) == [("<0>", 1.0), ("<3>", 1.0)]
    assert layer.top_tokens(0, k=1) == [("<0>", 1.0)]
    assert layer.top_tokens(1) == [("<1>", 1.0)]
    shared = layer._replace(token_share=np.full((4, 3), 1 / 3))
    assert shared.top_tokens(0) == []


def test_num_tokens_limits_the_table():
    batch = make_batch([[0, 0, 0, 1, 1, 2]])
    layer = only(routing_report(make_model(), [batch], num_tokens=2))
    assert layer.token_ids.tolist() == [0, 1]
    assert layer.token_share.shape == (2, EXPERTS)


def test_model_is_as_before():
    model = make_model()
    batch = make_batch([[0, 1, 2, 3]])
    before = keras.ops.convert_to_numpy(model(batch))
    routing_report(model, [batch])
    (layer,) = sparse_layers(model).values()
    assert "call" not in vars(layer.router)
    np.testing.assert_array_equal(
        before, keras.ops.convert_to_numpy(model(batch))
    )


def test_plain_token_ids_are_a_batch_too():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 4)(ids)
    model = keras.Model(ids, SwitchLayer(2, 4)(x))
    batch = np.array([[0, 1, 5]] * 2, "int32")
    layer = only(routing_report(model, [batch]))
    assert sorted(layer.token_ids.tolist()) == [0, 1, 5]


def test_model_without_sparse_layer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="model must have a SwitchLayer"):
        routing_report(model, [np.zeros((1, 3))])


@pytest.mark.parametrize("batches", [[], [make_batch([])]])
def test_no_real_token(batches):
    with pytest.raises(ValueError, match="at least one real token"):
        routing_report(make_model(), batches)


def test_layers_of_a_decoder_alone_are_matched_with_its_tokens(rng):
    backbone = tiny.causal_backbone("glam")
    x = tiny.causal_inputs(rng)
    layer = only(routing_report(backbone, [x]))
    assert layer.name == "transformer_layer_0"
    real = x["token_ids"][x["padding_mask"] > 0]
    assert layer.num_tokens == len(real)
    counts = dict(zip(layer.token_ids, layer.token_count, strict=True))
    ids, wanted = np.unique(real, return_counts=True)
    # Each goes to two experts.
    assert counts == dict(zip(ids, 2 * wanted, strict=True))


def test_chosen_experts_by_hand():
    model = make_model()
    batch = make_batch([[0, 1, 2, 3], [5, 4]], padding=[1])
    (chosen,) = chosen_experts(model, batch).values()
    assert chosen.shape == (16, EXPERTS)
    wanted = np.zeros((2, 8, EXPERTS), bool)
    for row, column, expert in ((0, 0, 0), (0, 2, 2), (0, 3, 0), (1, 0, 2)):
        wanted[row, column, expert] = True
    np.testing.assert_array_equal(chosen.reshape(wanted.shape), wanted)

"""Hash routing alone; with experts it is held to the oracle."""

import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers import hash_tables
from tests import bridge

X = np.random.default_rng(0).normal(size=(2, 3, 6)).astype("float32")


def router(**kwargs):
    made = keras_switch.HashRouter(4, vocabulary_size=5, **kwargs)
    made.build((None, None, 6))
    return made


def route(router, token_ids, x=X, **kwargs):
    ids = ops.convert_to_tensor(np.array(token_ids, "int32"))
    return bridge.routes_to_numpy(router(x, token_ids=ids, **kwargs))


def test_the_table_says_the_expert():
    made = router()
    made.assign_table([[3, 0, 2, 0, 1]])
    routes = route(made, [[0, 1, 2], [4, 3, 6]])  # 6 is looked up at 1
    np.testing.assert_array_equal(routes.expert_index, [[3, 0, 2], [1, 0, 0]])
    np.testing.assert_array_equal(routes.slot_index, [[0, 0, 0], [0, 0, 1]])
    assert (routes.gate == 1).all()
    other = route(made, [[0, 1, 2], [4, 3, 6]], 9 * X, training=True)
    np.testing.assert_array_equal(other.expert_index, routes.expert_index)


def test_two_hashes_are_two_experts():
    made = router(num_hashes=2)
    made.assign_table([[3, 0, 2, 0, 1], [0, 1, 3, 2, 3]])
    routes = route(made, [[0, 1, 2], [4, 3, 0]])
    np.testing.assert_array_equal(
        routes.expert_index, [[0, 0, 2, 3, 1, 3], [1, 0, 0, 3, 2, 3]]
    )
    assert (routes.gate == 1).all()


def test_it_learns_nothing():
    made = router()
    assert not made.trainable_weights
    route(made, [[0, 1, 2], [4, 3, 0]], training=True)
    assert not made.losses
    stats = dict(
        zip(made.stats.names, bridge.numpy(made.stats.value), strict=False)
    )
    assert stats["router_confidence"] == 1
    assert stats["router_entropy"] == stats["router_z_loss"] == 0


def test_a_seed_is_a_table():
    first, second, other = (router(seed=seed) for seed in (1, 1, 2))
    tables = [bridge.numpy(made.table) for made in (first, second, other)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).any()
    wanted = hash_tables.random_table(5, 4, seed=1)
    np.testing.assert_array_equal(tables[0], wanted)
    assert str(tables[0].dtype) == "int32"


@pytest.mark.parametrize(
    "table,said",
    [
        ([[0, 1, 2, 3]], r"shape \(1, 5\)"),
        ([[0.0, 1, 2, 3, 0]], "float64"),
        ([[0, 1, 2, 3, 4]], "from 0 to 4"),
        ([[0, 1, 2, 3, -1]], "from -1 to 3"),
    ],
)
def test_what_is_no_table(table, said):
    with pytest.raises(ValueError, match=f"^table must .*{said}"):
        router().assign_table(table)


def test_one_expert_twice():
    with pytest.raises(ValueError, match="different experts"):
        router(num_hashes=2).assign_table([[0, 1, 2, 3, 0], [1, 2, 2, 0, 1]])


def test_token_ids_must_be_there():
    layer = keras_switch.SwitchLayer(4, 8, router="hash")
    with pytest.raises(ValueError, match="token_ids must be given.*HashRouter"):
        layer(X)
    with pytest.raises(ValueError, match="token_ids must have the shape"):
        layer(X, token_ids=np.zeros((2, 4), "int32"))


@pytest.mark.parametrize(
    "kwargs,name",
    [
        ({"vocabulary_size": 0}, "vocabulary_size"),
        ({"num_hashes": 0}, "num_hashes"),
        ({"num_hashes": 3, "num_experts": 2}, "num_hashes"),
    ],
)
def test_arguments_it_refuses(kwargs, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        keras_switch.HashRouter(**kwargs)


def test_the_id_alone_decides_in_groups_of_any_size(rng):
    """Groups are cut from the flattened batch, and ids with them."""
    layer = keras_switch.SwitchLayer(
        4, 8, router=keras_switch.HashRouter(vocabulary_size=9), group_size=4
    )
    ids = rng.integers(0, 9, (2, 3)).astype("int32")
    _, routes = layer(X, token_ids=ids, return_routing=True)
    table = bridge.numpy(layer.router.table)[0]
    flat = bridge.numpy(routes.expert_index).reshape(-1)
    np.testing.assert_array_equal(flat[:6], table[ids.reshape(-1)])
    assert (flat[6:] == 4).all()

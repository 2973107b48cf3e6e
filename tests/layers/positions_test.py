"""Absolute positions and the causal mask, by hand."""

import numpy as np
import pytest
from keras import ops

from keras_switch.layers.attention import MASKED
from keras_switch.layers.positions import (
    CausalBias,
    PositionEmbedding,
    places_in_segments,
)


def test_places_begin_anew_with_each_segment():
    segments = np.array([[0, 0, 1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    places = ops.convert_to_numpy(places_in_segments(segments))
    assert places.tolist() == [
        [0, 1, 0, 1, 2, 0, 1, 0],
        [0, 1, 2, 0, 1, 2, 3, 4],
    ]


def test_sinusoids_are_those_of_the_formula():
    layer = PositionEmbedding("sinusoidal")
    x = np.ones((1, 3, 6), "float32")
    y = ops.convert_to_numpy(layer(x, offset=4)) - 1
    for row, place in enumerate((4, 5, 6)):
        angles = [place / 10000 ** (i / 2) for i in range(3)]
        wanted = [*np.sin(angles), *np.cos(angles)]
        np.testing.assert_allclose(y[0, row], wanted, atol=1e-5)


def test_learned_positions_are_rows_of_the_table(rng):
    layer = PositionEmbedding("learned", max_length=5)
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    layer.build(x.shape)
    table = ops.convert_to_numpy(layer.embeddings)
    y = ops.convert_to_numpy(layer(x, offset=2))
    np.testing.assert_allclose(y, x + table[2:5], atol=1e-6)
    # On the left of the second row is padding.
    mask = np.array([[1, 1, 1], [0, 1, 1]])
    y = ops.convert_to_numpy(layer(x, padding_mask=mask))
    np.testing.assert_allclose(y[0], x[0] + table[:3], atol=1e-6)
    np.testing.assert_allclose(y[1, 1:], x[1, 1:] + table[:2], atol=1e-6)


def test_sequences_longer_than_the_table_are_refused():
    layer = PositionEmbedding("learned", max_length=2)
    with pytest.raises(ValueError, match="at most 2 tokens.*received 3"):
        layer(np.ones((1, 3, 4), "float32"))


def test_arguments():
    with pytest.raises(ValueError, match="kind must be one of"):
        PositionEmbedding("rotary")
    with pytest.raises(ValueError, match="max_length must be an int"):
        PositionEmbedding("learned")
    with pytest.raises(ValueError, match="hidden_dim must be even"):
        PositionEmbedding("sinusoidal").build((None, None, 5))


def test_config_round_trip():
    layer = PositionEmbedding("learned", max_length=5)
    again = PositionEmbedding.from_config(layer.get_config())
    assert (again.kind, again.max_length) == ("learned", 5)


def test_causal_bias_hides_later_keys():
    query, key = np.zeros((1, 2, 3)), np.zeros((1, 4, 3))
    bias = ops.convert_to_numpy(CausalBias()(query, key, offset=1))
    hidden = np.array([[0, 0, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(bias, hidden[None, None] * MASKED)

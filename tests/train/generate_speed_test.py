"""What the comparison of generation counts and refuses."""

import numpy as np
import pytest

from keras_switch.models import SwitchBackbone
from keras_switch_train import generate_speed


def test_bytes_of_a_step_are_those_of_the_weights_it_reads():
    shape = generate_speed.Shape(8, 128, 256, layers=2)
    backbone = SwitchBackbone(
        vocabulary_size=generate_speed.VOCABULARY,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        hidden_dim=128,
        intermediate_dim=256,
        num_experts=8,
        decoder_sparse_step=[],
        encoder_sparse_step=[],
    )
    read = [
        v
        for v in backbone.weights
        if v.path.split("/")[-1] in ("kernel", "embeddings")
        and ("decoder" in v.path or "token_embedding" in v.path)
        and "relative" not in v.path
        # The encoder's keys and values are in the cache.
        and not any(
            f"cross_attention/{name}" in v.path for name in ("key", "value")
        )
    ]
    expected = 4 * sum(int(np.prod(v.shape)) for v in read)
    assert generate_speed.bytes_of_step(shape) == expected


def test_different_tokens_are_no_comparison():
    answers = {"a": {"token_ids": [[1, 2]]}, "b": {"token_ids": [[1, 3]]}}
    with pytest.raises(RuntimeError, match="must generate the same tokens"):
        generate_speed._check_same(answers)


def test_rows_say_how_much_faster_and_how_fast_the_first_token():
    class Worker:
        def __init__(self, first, token):
            self.first, self.token = first, token

        def ask(self, encoder_token_ids, new_tokens):
            seconds = self.first + self.token * (new_tokens - 1)
            return {"seconds": seconds, "token_ids": [[0] * new_tokens]}

    shape = generate_speed.Shape(8, 768, 3072, new_tokens=11)
    sides = {"ours": Worker(0.1, 0.01), "transformers": Worker(0.2, 0.04)}
    ours, theirs = generate_speed._rows(sides, shape, (1, 4), repeats=3)
    assert (ours["s"], theirs["s"]) == (0.2, 0.6)
    assert (ours["times as fast"], theirs["times as fast"]) == (3.0, 1.0)
    assert (ours["first token s"], ours["ms a token"]) == (0.1, 10.0)
    read = generate_speed.bytes_of_step(shape)
    assert ours["weights GB/s"] == round(read / 0.01 / 1e9, 1)

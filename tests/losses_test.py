"""The auxiliary losses, by hand and against the oracle."""

import numpy as np
import pytest
from keras import ops

from keras_switch import losses
from tests import reference

G, S, E = 3, 7, 4


def scalar(value):
    value = ops.convert_to_tensor(value)
    assert value.dtype is not None and value.shape == ()
    return float(value)


def example(rng, scale=1.0):
    logits = scale * rng.normal(size=(G, S, E))
    probs = np.array([[reference.softmax(r) for r in g] for g in logits])
    return logits.astype("float32"), probs.astype("float32")


MASKS = {
    "none": None,
    "ragged": np.arange(S) < np.array([[7], [3], [1]]),
    "an empty group": np.arange(S) < np.array([[2], [0], [5]]),
    "segments": (np.arange(S) < np.array([[2], [4], [5]])) * 3,
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_losses_equal_oracle(name, scale, rng):
    logits, probs = example(rng, scale)
    mask = MASKS[name]
    valid = np.ones((G, S), bool) if mask is None else np.asarray(mask) != 0
    first = probs.argmax(-1)
    wanted = reference.load_balancing_loss(probs, first, valid)
    got = scalar(losses.load_balancing_loss(probs, first, mask))
    assert got == pytest.approx(wanted, rel=1e-5)
    got = scalar(losses.router_z_loss(logits, mask))
    wanted = reference.router_z_loss(logits.astype("float64"), valid)
    assert got == pytest.approx(wanted, rel=1e-5)


def test_importance_loss_equals_oracle(rng):
    gate = rng.random((G, S)).astype("float32")
    expert_index = rng.integers(0, E + 1, size=(G, S))  # E goes nowhere
    pairs = list(zip(gate.ravel(), expert_index.ravel(), strict=True))
    got = scalar(losses.importance_loss(gate, expert_index, E))
    assert got == pytest.approx(reference.importance_loss(pairs, E), rel=1e-5)


def test_load_balancing_loss_by_hand():
    """f counts choices, P averages probabilities: 2 (2/3 .6 + 1/3 .4)."""
    probs = np.array([[[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]])
    loss = losses.load_balancing_loss(probs, np.array([[0, 0, 1]]))
    assert scalar(loss) == pytest.approx(2 * (2 / 3 * 0.6 + 1 / 3 * 0.4))


@pytest.mark.parametrize("num_experts", [1, 2, 8, 64])
def test_collapse_reads_the_number_of_experts(num_experts):
    probs = np.zeros((2, 5, num_experts), "float32")
    probs[..., -1] = 1.0
    first = np.full((2, 5), num_experts - 1)
    loss = losses.load_balancing_loss(probs, first)
    assert scalar(loss) == pytest.approx(num_experts)
    importance = losses.importance_loss(
        np.ones((2, 5), "float32"), first, num_experts
    )
    assert scalar(importance) == pytest.approx(num_experts - 1)


def test_groups_collapsed_on_different_experts_do_not_cancel():
    probs = np.eye(E, dtype="float32")[:, None].repeat(S, 1)  # [E, S, E]
    loss = losses.load_balancing_loss(probs, probs.argmax(-1))
    assert scalar(loss) == pytest.approx(E)


def test_uniform_reads_one():
    probs = np.full((1, E, E), 1 / E, "float32")
    loss = losses.load_balancing_loss(probs, np.arange(E)[None])
    assert scalar(loss) == pytest.approx(1.0)
    gates = np.ones((1, E), "float32")
    loss = losses.importance_loss(gates, np.arange(E)[None], E)
    assert scalar(loss) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("shape", [(2, S), (0, S), (2, 0)])
def test_no_token_is_zero(shape):
    """All padding, an empty batch, an empty sequence: 0, never NaN."""
    mask = np.zeros(shape, "int32")
    probs = np.full((*shape, E), 1 / E, "float32")
    index = np.zeros(shape, "int32")
    assert scalar(losses.load_balancing_loss(probs, index, mask)) == 0
    assert scalar(losses.router_z_loss(probs, mask)) == 0
    nowhere = np.full(shape, E)
    gate = np.zeros(shape, "float32")
    assert scalar(losses.importance_loss(gate, nowhere, E)) == 0


@pytest.mark.parametrize("garbage", [7.0, np.nan, np.inf, -np.inf])
def test_what_padding_holds_does_not_matter(garbage, rng, gradients):
    logits, probs = example(rng)
    mask = MASKS["an empty group"]
    first = probs.argmax(-1)
    dirty_logits = np.where(mask[..., None], logits, garbage)
    dirty_probs = np.where(mask[..., None], probs, garbage)

    def both(logits, probs):
        return losses.router_z_loss(logits, mask) + losses.load_balancing_loss(
            probs, first, mask
        )

    clean, clean_grads, _ = gradients(both, [logits, probs])
    dirty, grads, _ = gradients(both, [dirty_logits, dirty_probs])
    assert dirty == clean
    for grad, clean_grad in zip(grads, clean_grads, strict=True):
        np.testing.assert_array_equal(grad, clean_grad)
        assert (grad[~mask] == 0).all()


def test_gradients(rng, gradients):
    """Of P only, of the z-loss's closed form, of CV squared by differences."""
    logits, probs = example(rng)
    mask = MASKS["an empty group"]
    first = probs.argmax(-1)
    spec = reference.Spec(E, load_balancing_loss_weight=1.0, z_loss_weight=1.0)
    from tests import reference_gradients

    cache = {
        "probs": probs.astype("float64"),
        "logits": logits.astype("float64"),
        "valid": mask,
        "first": first,
    }
    _, (grad,), _ = gradients(
        lambda p: losses.load_balancing_loss(p, first, mask), [probs]
    )
    wanted = reference_gradients.load_balancing_gradient(spec, cache)
    np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-6)
    _, (grad,), _ = gradients(lambda v: losses.router_z_loss(v, mask), [logits])
    wanted = reference_gradients.z_gradient(spec, cache)
    np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-6)
    gate = rng.random((G, S))
    index = rng.integers(0, E + 1, size=(G, S))
    _, (grad,), _ = gradients(
        lambda v: losses.importance_loss(v, index, E), [gate]
    )
    for g, m in [(0, 0), (1, 3), (2, 6)]:
        up, down = gate.copy(), gate.copy()
        up[g, m] += 1e-5
        down[g, m] -= 1e-5
        pair = [
            reference.importance_loss(
                list(zip(v.ravel(), index.ravel(), strict=True)), E
            )
            for v in (up, down)
        ]
        wanted = (pair[0] - pair[1]) / 2e-5
        np.testing.assert_allclose(grad[g, m], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_are_float32_whatever_comes(dtype):
    """1000 tokens: a count in half precision would be off."""
    logits = ops.zeros((1, 3001, 3), dtype=dtype)
    probs = ops.softmax(logits)
    index = np.arange(3001)[None] % 3
    gate = ops.ones((1, 3001), dtype=dtype)
    results = [
        (losses.load_balancing_loss(probs, index), 1.0),
        (losses.router_z_loss(logits), np.log(3) ** 2),
        (losses.importance_loss(gate, index, 3), 0.0),
    ]
    for loss, wanted in results:
        assert ops.convert_to_tensor(loss).dtype in (
            "float32",
            ops.ones((), "float32").dtype,
        )
        assert scalar(loss) == pytest.approx(wanted, rel=2e-3, abs=1e-6)


def test_load_loss_by_hand():
    """Two tokens, three experts, top-1; noise that the third does not have."""
    clean = np.array([[[1.0, 0.0, -9.0], [0.0, 1.0, -9.0]]], "float32")
    width = np.array([[[1.0, 2.0, 1e-9], [2.0, 1.0, 0.0]]], "float32")
    # 1 against 0: one deviation of the first, minus half of the second.
    likely, unlikely = 0.8413447, 0.3085375
    load = np.array([likely + unlikely, likely + unlikely, 0.0])
    wanted = load.var() / load.mean() ** 2
    loss = scalar(losses.load_loss(clean, clean, width, 1))
    assert loss == pytest.approx(wanted, rel=1e-5)


def test_load_loss_of_padding_and_of_nothing(rng):
    logits, _ = example(rng)
    width = np.abs(logits) + 0.1
    mask = MASKS["ragged"]
    loss = scalar(losses.load_loss(logits, logits, width, 2, mask))
    other = np.where(mask[..., None], logits, np.nan)
    again = losses.load_loss(other, other, width, 2, mask)
    assert scalar(again) == loss > 0
    assert scalar(losses.load_loss(logits, logits, width, 2, mask & False)) == 0
    even = np.zeros((G, S, E), "float32")
    assert scalar(losses.load_loss(even, even, width * 0 + 1, 2)) < 1e-12

"""One side's work, in this process: what it computes and says of it."""

import numpy as np
import pytest

from keras_switch_train import layer_speed, layer_worker

CELL = layer_speed.Cell(2, 32, 8, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("layer"))
    layer_speed.write(CELL, path)
    return path


def oracle(folder, kind):
    """Outputs and gradients, a token at a time."""
    with np.load(f"{folder}/data.npz") as file:
        data = {name: file[name].astype("float64") for name in file.files}
    x, dy, router = (data[name] for name in (kind, "dy", "router"))
    y, dx = np.zeros_like(x), np.zeros_like(x)
    for place in np.ndindex(x.shape[:2]):
        token, upstream = x[place], dy[place]
        exponents = np.exp(token @ router)
        probs = exponents / exponents.sum()
        best = int(probs.argmax())
        wi, wo = data["wi"][best], data["wo"][best]
        hidden = np.maximum(token @ wi, 0)
        out = hidden @ wo
        y[place] = probs[best] * out
        inner = (wo @ upstream) * (hidden > 0)
        # The softmax: d probs[best] / d logits.
        slope = probs[best] * ((np.arange(len(probs)) == best) - probs)
        dx[place] = probs[best] * (wi @ inner) + upstream @ out * router @ slope
    return y, dx


@pytest.mark.parametrize("side", ["ours", "transformers"])
def test_a_side_computes_what_it_says(side, folder):
    answer = layer_worker.make(side, folder)
    record = answer(do="work")
    assert record == {
        "tokens": 32,
        "kept": {"forward": 32, "training": 32},
        "FLOPs of a kept token": 2 * 2 * 8 * 24,
        "dtype": "float32",
    }
    y, dx = oracle(folder, "training")
    results = np.load(f"{folder}/{side}.npz")
    assert set(results.files) == {
        "forward y",
        "training y",
        "training gradient of x",
        "training gradient of router",
        "training gradient of wi",
        "training gradient of wo",
    }
    np.testing.assert_allclose(
        results["forward y"], oracle(folder, "forward")[0], atol=1e-5
    )
    np.testing.assert_allclose(results["training y"], y, atol=1e-5)
    np.testing.assert_allclose(results["training gradient of x"], dx, atol=1e-5)
    assert answer(do="training")["seconds"] > 0


def test_equal_active_flops_of_rivals_without_our_weights(folder):
    dense = layer_worker.make("dense", folder)(do="work")
    assert dense["FLOPs of a kept token"] == 2 * 2 * 8 * 24
    block = layer_worker.make("keras_hub", folder)(do="work")
    assert block["FLOPs of a kept token"] == 2 * 3 * 8 * 16
    assert list(block["kept"]) == ["forward"]


def test_einsum_is_a_rival_only_where_there_is_a_capacity(folder):
    einsum = layer_worker.make("einsum", folder)(do="work")
    assert einsum["kept"] == {"training": 32}

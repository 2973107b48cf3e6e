"""From a `reference.Spec` to a real SwitchLayer, and back to NumPy."""

import numpy as np
from keras import ops

import keras_switch
from keras_switch.layers.routing_stats import STATISTICS
from tests import reference, reference_routers

VOCABULARY = 20  # of hash tables
PATHS = {
    "kernel": "router/kernel",
    "scale": "router/scale",
    "noise_kernel": "router/noise_kernel",
    "wi": "experts/wi/kernel",
    "wi_0": "experts/wi_0/kernel",
    "wi_1": "experts/wi_1/kernel",
    "wo": "experts/wo/kernel",
    **{
        f"block_{i}_{name}": f"experts/block_{i}/{name}/kernel"
        for i in range(3)
        for name in ("wi", "wi_0", "wi_1", "wo")
    },
    "shared_wi": "shared_expert/wi/kernel",
    "shared_wi_0": "shared_expert/wi_0/kernel",
    "shared_wi_1": "shared_expert/wi_1/kernel",
    "shared_wo": "shared_expert/wo/kernel",
}


def make_router(spec, **kwargs):
    """The router of a Spec; it explores only if `kwargs` say so."""
    untrained = {
        "hash": lambda: keras_switch.HashRouter(
            vocabulary_size=VOCABULARY, num_hashes=spec.k
        ),
        "random": keras_switch.RandomRouter,
    }
    if spec.router in untrained:
        return untrained[spec.router](**kwargs)
    common = {
        "exploration": "argmax",
        "load_balancing_loss_weight": spec.load_balancing_loss_weight,
        "z_loss_weight": spec.z_loss_weight,
        "importance_loss_weight": spec.importance_loss_weight,
        **kwargs,
    }
    if spec.router == "expert_choice":
        return keras_switch.ExpertChoiceRouter(
            max_experts=spec.max_experts, **common
        )
    common["batch_prioritized"] = spec.batch_prioritized
    if spec.router == "base":
        return keras_switch.BaseRouter(z_loss_weight=spec.z_loss_weight)
    if spec.router in ("loss_free", "group_limited"):
        return _with_bias(spec, common)
    if spec.router == "no_token_left_behind":
        del common["batch_prioritized"]
        return keras_switch.NoTokenLeftBehindRouter(k=spec.k, **common)
    if spec.router == "noisy_top_k":
        for name in ("exploration", "load_balancing_loss_weight"):
            del common[name]
        return keras_switch.NoisyTopKRouter(
            k=spec.k, load_loss_weight=spec.load_loss_weight, **common
        )
    if spec.router == "switch":
        return keras_switch.SwitchRouter(**common)
    return keras_switch.TopKRouter(
        k=spec.k,
        second_policy=spec.second_policy,
        second_threshold=spec.second_threshold,
        **common,
    )


def _with_bias(spec, common):
    common = {"k": spec.k, "gate": spec.gate, "update_rate": 0.0, **common}
    if spec.router == "loss_free":
        return keras_switch.LossFreeRouter(**common)
    return keras_switch.GroupLimitedRouter(
        num_expert_groups=spec.num_expert_groups,
        group_limit=spec.group_limit,
        group_score=spec.group_score,
        renormalize=spec.renormalize,
        **common,
    )


def make_layer(spec, dim=6, intermediate_dim=5, router=None, **kwargs):
    """A built SwitchLayer with weights of ordinary size."""
    layer = keras_switch.SwitchLayer(
        num_experts=spec.num_experts,
        intermediate_dim=intermediate_dim,
        router=make_router(spec) if router is None else router,
        dispatch=spec.dispatch,
        capacity_factor=spec.capacity_factor,
        eval_capacity_factor=spec.eval_capacity_factor,
        min_capacity=spec.min_capacity,
        capacity=spec.capacity,
        group_size=spec.group_size,
        activation=spec.activation,
        **kwargs,
    )
    layer.build((None, None, dim))
    fill(layer)
    if hasattr(layer.router, "bias"):
        # Large enough to change choices.
        bias = np.linspace(-0.3, 0.3, layer.num_experts)
        layer.router.bias.assign(bias.astype("float32"))
    if spec.router == "base":  # precise enough to be the best
        layer.router._precision, layer.router._max_rounds = 1e-5, 20_000
    if hasattr(layer.router, "_draw"):
        layer.router._draw = lambda shape: ops.convert_to_tensor(
            reference_routers.draw(spec, shape), "float32"
        )
    return layer


def fill(layer, seed=3):
    """Replaces the 0.1-scaled start by N(0, 1/fan_in), the router by N(0, 1).

    The outputs are then of size one, so that a tolerance of 1e-5 says much.
    """
    rng = np.random.default_rng(seed)
    for name, variable in variables(layer).items():
        value = rng.normal(size=variable.shape)
        if name not in ("kernel", "scale"):
            value /= np.sqrt(variable.shape[-2])
        variable.assign(value.astype("float32"))


def fill_experts(layer):
    """Puts the experts back to what `fill` made them, not the router."""
    kernel = numpy(layer.router.kernel).copy()
    fill(layer)
    layer.router.kernel.assign(kernel)


def make_identity(layer):
    """Experts that return their input: relu(x) - relu(-x), so F = 2 D."""
    num_experts, dim, _ = variables(layer)["wi"].shape
    eye = np.eye(dim)
    both = np.concatenate([eye, -eye], axis=1)
    stack = np.tile(both, (num_experts, 1, 1)).astype("float32")
    variables(layer)["wi"].assign(stack)
    variables(layer)["wo"].assign(stack.transpose(0, 2, 1))


def rename_experts(layer, order):
    """Expert `order[i]` becomes expert `i`, in the bank and the router."""
    for name, variable in variables(layer).items():
        axis = 1 if name == "kernel" else 0
        variable.assign(np.take(numpy(variable), order, axis=axis))


def variables(layer):
    """The weights by the oracle's names, found by their public paths."""
    found = {}
    for name, path in PATHS.items():
        for variable in layer.trainable_variables:
            if variable.path.endswith("/" + path):
                found[name] = variable
    assert len(found) == len(layer.trainable_variables)
    return found


def weights(layer):
    """Float64 by the oracle's names, with what the router does not train."""
    found = {
        name: ops.convert_to_numpy(v).astype("float64")
        for name, v in variables(layer).items()
    }
    for name in ("kernel", "table", "bias"):
        if name not in found and hasattr(layer.router, name):
            found[name] = numpy(getattr(layer.router, name))
    return found


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def routes_to_numpy(routes):
    return type(routes)(*[numpy(field) for field in routes])


def assert_edges_equal(routes, edges, num_experts):
    """RouterIndices against the oracle's edges, one by one."""
    routes = routes_to_numpy(routes)
    assert routes.token_index.shape == (len(edges), len(edges[0]))
    for g, group in enumerate(edges):
        for m, edge in enumerate(group):
            where = f"group {g}, edge {m}: {edge}"
            assert routes.expert_index[g, m] == edge.expert, where
            if edge.expert == num_experts:
                continue
            assert routes.token_index[g, m] == edge.token, where
            assert routes.slot_index[g, m] == edge.slot, where
            assert abs(routes.gate[g, m] - edge.gate) < 1e-5, where


def assert_statistics_equal(layer, wanted):
    """The seven numbers of the last call; `wanted` is an oracle's Output."""
    values = {**wanted.statistics, **wanted.losses}
    assert layer.routing_stats.names == STATISTICS
    stats = numpy(layer.routing_stats.value)
    assert stats.shape == (len(STATISTICS) + 1,)
    for name, value in zip((*STATISTICS, "tokens"), stats, strict=True):
        np.testing.assert_allclose(
            value, values[name], rtol=2e-5, atol=2e-6, err_msg=name
        )


def run_oracle(spec, layer, x, padding_mask=None, token_ids=None):
    return reference.switch_layer(
        spec, x, weights(layer), padding_mask, token_ids
    )

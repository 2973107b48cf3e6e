"""What must hold of every SwitchLayer, whatever the numbers are.

Each function of `INVARIANTS` takes a `Case` and asserts one property of the
real layer. `invariants_test.py` runs them on random cases, and shows of each
that it fails when the layer has the fault it is there for.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

import keras_switch
from tests import bridge, reference

D, F = 4, 8  # F = 2 D, so that an expert can be the identity


class Config(NamedTuple):
    """A shape: few of them, because each is compiled once on JAX."""

    batch: int
    length: int
    num_experts: int
    capacity: int
    dispatch: str


CONFIGS = [
    Config(2, 8, 4, 1, "gather"),
    Config(2, 8, 4, 2, "gather"),
    Config(2, 8, 4, 2, "einsum"),
    Config(2, 8, 4, 8, "gather"),
    Config(2, 8, 1, 2, "gather"),
    Config(2, 3, 4, 1, "gather"),
]
REGIMES = ["normal", "ties", "one expert", "tiny", "large"]
MASKS = ["none", "right", "left", "holes", "all"]


@dataclasses.dataclass(frozen=True)
class Case:
    config: Config
    router: str  # "switch" or "top_k"
    regime: str
    mask: str
    seed: int

    @property
    def k(self):
        return min(2, self.config.num_experts) if self.router == "top_k" else 1

    def tokens(self, offset=0):
        rng = np.random.default_rng(self.seed + offset)
        x = rng.normal(size=(self.config.batch, self.config.length, D))
        if self.regime == "one expert":
            x = np.abs(x)
        return x.astype("float32")

    def kernel(self):
        experts = self.config.num_experts
        rng = np.random.default_rng(self.seed + 1)
        kernel = rng.normal(size=(D, experts))
        if self.regime == "ties":
            kernel = np.zeros((D, experts))
        elif self.regime == "one expert":
            kernel[:, rng.integers(experts)] += 5
        # Not so large that a probability underflows: that would be a tie.
        scale = {"tiny": 1e-2, "large": 4.0}.get(self.regime, 1.0)
        return (scale * kernel).astype("float32")

    def padding_mask(self):
        shape = self.config.batch, self.config.length
        rng = np.random.default_rng(self.seed + 2)
        places = np.arange(shape[1])
        lengths = rng.integers(0, shape[1] + 1, size=(shape[0], 1))
        return {
            "none": np.ones(shape, bool),
            "right": places < lengths,
            "left": places >= lengths,
            "holes": rng.random(shape) < 0.6,
            "all": np.zeros(shape, bool),
        }[self.mask].astype("int32")


_layers = {}


def make(case, dispatch=None, capacity=None, exploration="argmax"):
    """The real layer, made once for a configuration, with the case's kernel."""
    config = case.config
    dispatch = dispatch or config.dispatch
    capacity = capacity or config.capacity
    key = config, case.k, case.router, dispatch, capacity, exploration
    if key not in _layers:
        spec = reference.Spec(
            config.num_experts,
            router=case.router,
            k=case.k,
            dispatch=dispatch,
            capacity_factor=1e-3,
            min_capacity=capacity,
            load_balancing_loss_weight=1.0,
            z_loss_weight=1.0,
        )
        router = bridge.make_router(spec, exploration=exploration, jitter=0.5)
        _layers[key] = bridge.make_layer(spec, D, F, router=router)
    layer = _layers[key]
    layer.router.kernel.assign(case.kernel())
    bridge.fill_experts(layer)
    return layer


class Run(NamedTuple):
    y: np.ndarray
    routes: keras_switch.RouterIndices
    losses: tuple
    statistics: dict


def run(layer, x, mask, training=True):
    y, routes = layer(
        x, padding_mask=mask, training=training, return_routing=True
    )
    stats = bridge.numpy(layer.routing_stats.value).tolist()
    return Run(
        bridge.numpy(y),
        bridge.routes_to_numpy(routes),
        tuple(float(bridge.numpy(loss)) for loss in layer.losses),
        dict(zip(layer.routing_stats.names, stats, strict=False)),
    )


def probabilities(case, x):
    logits = x.astype("float64") @ case.kernel()
    return np.array([[reference.softmax(r) for r in g] for g in logits])


def wanted_experts(case, x):
    """[B, T, K] of plain NumPy, best first, the lowest index of tied ones."""
    return np.argsort(-probabilities(case, x), -1, kind="stable")[..., : case.k]


def kept_edges(case, routes):
    """[G, M] which edges got a slot."""
    wanted = routes.expert_index < case.config.num_experts
    return wanted & (routes.slot_index < case.config.capacity)


def close(got, wanted, tolerance=1e-5):
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------ the invariants


def each_slot_holds_one_edge(case):
    """An expert's queue is 0, 1, 2, ... and a token stands in it once."""
    routes = run(make(case), case.tokens(), case.padding_mask()).routes
    for g in range(case.config.batch):
        for e in range(case.config.num_experts):
            mine = routes.expert_index[g] == e
            slots = sorted(routes.slot_index[g, mine])
            assert slots == list(range(len(slots)))
            tokens = routes.token_index[g, mine]
            assert len(set(tokens)) == len(tokens)


def kept_is_the_load_or_the_capacity(case):
    """Seen from outside: tokens with an output, per expert."""
    x, mask = case.tokens(), case.padding_mask()
    result = run(make(case), x, mask)
    wanted = wanted_experts(case, x)
    kept = kept_edges(case, result.routes)
    for g in range(case.config.batch):
        for e in range(case.config.num_experts):
            load = (wanted[g, mask[g] == 1] == e).sum()
            got = (kept[g] & (result.routes.expert_index[g] == e)).sum()
            assert got == min(load, case.config.capacity)
    has_output = (np.abs(result.y) > 0).any(-1).sum()
    keepers = {
        (g, m % case.config.length)
        for g, m in zip(*kept.nonzero(), strict=True)
    }
    assert has_output == len(keepers)


def identity_experts_return_gate_times_x(case):
    """With gates of plain NumPy, so a wrong gate cannot hide."""
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case)
    bridge.make_identity(layer)
    result = run(layer, x, mask)
    probs, wanted = probabilities(case, x), wanted_experts(case, x)
    kept = kept_edges(case, result.routes).reshape(
        case.config.batch, case.k, case.config.length
    )
    for g, t in np.ndindex(mask.shape):
        p = probs[g, t, wanted[g, t]]
        gates = p / p.sum() if case.k > 1 else p
        total = (gates * kept[g, :, t]).sum()
        close(result.y[g, t], total * x[g, t])


def dropped_and_padding_rows_are_zero(case):
    x, mask = case.tokens(), case.padding_mask()
    result = run(make(case), x, mask)
    kept = kept_edges(case, result.routes).reshape(
        case.config.batch, case.k, case.config.length
    )
    nothing = ~kept.any(1) | (mask == 0)
    assert (result.y[nothing] == 0).all()


def dispatches_agree(case):
    x, mask = case.tokens(), case.padding_mask()
    first = run(make(case, "einsum"), x, mask)
    second = run(make(case, "gather"), x, mask)
    close(first.y, second.y)
    assert first.losses == second.losses


def room_for_all_is_dropless(case):
    x, mask = case.tokens(), case.padding_mask()
    roomy = run(make(case, capacity=case.config.length), x, mask)
    close(roomy.y, run(make(case, "dropless"), x, mask).y)
    assert roomy.statistics["dropped_fraction"] == 0


def ties_go_to_the_lowest_index(case):
    case = dataclasses.replace(case, regime="ties")
    routes = run(make(case), case.tokens(), case.padding_mask()).routes
    experts = routes.expert_index.reshape(case.config.batch, case.k, -1)
    real = case.padding_mask() == 1
    for choice in range(case.k):
        assert (experts[:, choice][real] == choice).all()


def moving_tokens_moves_outputs(case):
    """Without drops the order of tokens is nothing to the layer."""
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case, exploration="input_jitter")
    y = run(layer, x, mask, training=False).y
    order = np.random.default_rng(case.seed).permutation(case.config.length)
    moved = run(layer, x[:, order], mask[:, order], training=False).y
    close(moved, y[:, order])


def renaming_experts_changes_nothing(case):
    if case.regime == "ties":
        return
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case)
    y = run(layer, x, mask).y
    order = np.random.default_rng(case.seed).permutation(
        case.config.num_experts
    )
    bridge.rename_experts(layer, order)
    close(run(layer, x, mask).y, y)


def later_tokens_change_nothing_before_them(case):
    """Of one choice: a second one queues behind all first ones."""
    case = dataclasses.replace(case, router="switch")
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case)
    y = run(layer, x, mask).y
    cut = case.config.length // 2
    x[:, cut:] = case.tokens(offset=9)[:, cut:]
    again = run(layer, x, mask).y
    np.testing.assert_array_equal(again[:, :cut], y[:, :cut])


def what_padding_holds_is_nothing(case):
    """Nor how much there is of it before, between or after the tokens."""
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case)
    before = run(layer, x, mask)
    other = case.tokens(offset=9)
    other[:, ::3] = np.nan
    after = run(layer, np.where(mask[..., None] == 1, x, other), mask)
    np.testing.assert_array_equal(after.y, before.y)
    assert after.losses == before.losses
    assert after.statistics == before.statistics
    front = np.argsort(-mask, axis=1, kind="stable")  # padding to the end
    packed = run(
        layer,
        np.take_along_axis(x, front[..., None], 1),
        np.take_along_axis(mask, front, 1),
    )
    close(packed.y, np.take_along_axis(before.y, front[..., None], 1))


def output_is_gate_times_expert(case):
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case)
    result = run(layer, x, mask)
    weights = bridge.weights(layer)
    spec = reference.Spec(case.config.num_experts)
    wanted = np.zeros(x.shape)
    kept = kept_edges(case, result.routes)
    for g, m in zip(*kept.nonzero(), strict=True):
        token, expert, slot, gate = (f[g, m] for f in result.routes)
        edge = reference.Edge(token, expert, slot, gate, True)
        row = reference.feed_forward(spec, x[g, token], weights, edge)
        wanted[g, token] += gate * row
    close(result.y, wanted)


def gates_are_exact(case):
    """To 1e-5 of float64: half precision would miss by 1e-3."""
    x, mask = case.tokens(), case.padding_mask()
    routes = run(make(case), x, mask).routes
    probs, wanted = probabilities(case, x), wanted_experts(case, x)
    gates = routes.gate.reshape(case.config.batch, case.k, -1)
    for g, t in zip(*mask.nonzero(), strict=True):
        p = probs[g, t, wanted[g, t]]
        close(gates[g, :, t], p / p.sum() if case.k > 1 else p)


def losses_are_over_real_tokens(case):
    x, mask = case.tokens(), case.padding_mask()
    balance, z_loss = run(make(case), x, mask).losses
    valid = mask == 1
    probs, experts = probabilities(case, x), wanted_experts(case, x)[..., 0]
    logits = x.astype("float64") @ case.kernel()
    wanted = reference.load_balancing_loss(probs, experts, valid)
    assert 0 <= balance <= case.config.num_experts * (1 + 1e-6)
    close(balance, wanted, 1e-4)
    close(z_loss, reference.router_z_loss(logits, valid), 1e-4)


def evaluation_is_quiet_and_finite(case):
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case, exploration="input_jitter")
    first, second = (run(layer, x, mask, training=False) for _ in range(2))
    assert np.isfinite(first.y).all() and not first.losses
    np.testing.assert_array_equal(first.y, second.y)
    np.testing.assert_array_equal(first.routes.gate, second.routes.gate)


def drops_are_counted(case):
    if case.config.length == 1:
        return
    result = run(make(case), case.tokens(), case.padding_mask())
    wanted = (result.routes.expert_index < case.config.num_experts).sum()
    kept = kept_edges(case, result.routes).sum()
    dropped = result.statistics["dropped_fraction"]
    close(dropped, (wanted - kept) / max(wanted, 1))


def a_bad_token_is_alone(case):
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case)
    at = np.random.default_rng(case.seed).integers(case.config.length)
    x[0, at] = 0
    without = mask.copy()
    without[0, at] = 0
    wanted = run(layer, x, without).y.copy()
    x[0, at, 1] = np.nan
    y = run(layer, x, mask).y
    if mask[0, at]:
        assert np.isnan(y[0, at]).all()
        wanted[0, at] = np.nan
    np.testing.assert_array_equal(y, wanted)


def a_crowded_queue_is_numbered_exactly(case):
    """320 tokens for one expert: bfloat16 cannot count past 256."""
    config = Config(1, 320, 2, 64, "gather")
    case = dataclasses.replace(
        case, config=config, router="switch", regime="ties", mask="none"
    )
    routes = run(make(case), case.tokens(), case.padding_mask()).routes
    assert (routes.slot_index[0] == np.arange(320)).all()


INVARIANTS = {
    f.__name__: f
    for f in (
        each_slot_holds_one_edge,
        kept_is_the_load_or_the_capacity,
        identity_experts_return_gate_times_x,
        dropped_and_padding_rows_are_zero,
        dispatches_agree,
        room_for_all_is_dropless,
        ties_go_to_the_lowest_index,
        moving_tokens_moves_outputs,
        renaming_experts_changes_nothing,
        later_tokens_change_nothing_before_them,
        what_padding_holds_is_nothing,
        output_is_gate_times_expert,
        gates_are_exact,
        losses_are_over_real_tokens,
        evaluation_is_quiet_and_finite,
        drops_are_counted,
        a_bad_token_is_alone,
        a_crowded_queue_is_numbered_exactly,
    )
}

"""What must hold of every SwitchLayer, whatever the numbers are.

Each function of `INVARIANTS` takes a `Case` and asserts one property of the
real layer. `invariants_test.py` runs them on random cases, and shows of each
that it fails when the layer has the fault it is there for.
"""

import dataclasses

import numpy as np

from tests import bridge, reference
from tests.layers.cases import Config, make, run


def probabilities(case, x):
    logits = x.astype("float64") @ case.kernel()
    return np.array([[reference.softmax(r) for r in g] for g in logits])


def wanted_experts(case, x):
    """[B, T, K] of plain NumPy, best first, the lowest index of tied ones."""
    return np.argsort(-probabilities(case, x), -1, kind="stable")[..., : case.k]


def wanted_gates(case, x):
    """[B, T, E] of plain NumPy: the gate of a token with each expert."""
    probs = probabilities(case, x)
    if case.experts_choose:
        return probs
    gates = np.zeros(probs.shape)
    wanted = wanted_experts(case, x)
    for at in np.ndindex(wanted.shape[:2]):
        gates[at][wanted[at]] = probs[at][wanted[at]]
        if case.k > 1:
            gates[at] /= gates[at].sum()
    return gates


def used_edges(case, routes):
    """[G, M] which edges want a slot."""
    return routes.expert_index < case.config.num_experts


def kept_edges(case, routes):
    """[G, M] which edges got one."""
    fits = routes.slot_index < case.config.capacity
    return used_edges(case, routes) & fits


def has_expert(case, routes):
    """[B, T] which tokens have an edge that was kept."""
    found = np.zeros((case.config.batch, case.config.length), bool)
    for g, m in np.argwhere(kept_edges(case, routes)):
        found[g, routes.token_index[g, m]] = True
    return found


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
            # Experts that choose would take every token.
            load = mask[g].sum()
            if not case.experts_choose:
                load = (wanted[g, mask[g] == 1] == e).sum()
            got = (kept[g] & (result.routes.expert_index[g] == e)).sum()
            assert got == min(load, case.config.capacity)
    has_output = (np.abs(result.y) > 0).any(-1)
    np.testing.assert_array_equal(has_output, has_expert(case, result.routes))


def identity_experts_return_gate_times_x(case):
    """With gates of plain NumPy, so a wrong gate cannot hide."""
    x, mask = case.tokens(), case.padding_mask()
    layer = make(case)
    bridge.make_identity(layer)
    result = run(layer, x, mask)
    gates = wanted_gates(case, x)
    total = np.zeros(mask.shape)
    for g, m in np.argwhere(kept_edges(case, result.routes)):
        token, expert = (field[g, m] for field in result.routes[:2])
        total[g, token] += gates[g, token, expert]
    close(result.y, total[..., None] * x)


def dropped_and_padding_rows_are_zero(case):
    x, mask = case.tokens(), case.padding_mask()
    result = run(make(case), x, mask)
    nothing = ~has_expert(case, result.routes) | (mask == 0)
    assert (result.y[nothing] == 0).all()


def dispatches_agree(case):
    x, mask = case.tokens(), case.padding_mask()
    first = run(make(case, "einsum"), x, mask)
    second = run(make(case, "gather"), x, mask)
    close(first.y, second.y)
    assert first.losses == second.losses


def room_for_all_is_dropless(case):
    if case.experts_choose:  # there is no dropless form
        return
    x, mask = case.tokens(), case.padding_mask()
    roomy = run(make(case, capacity=case.config.length), x, mask)
    close(roomy.y, run(make(case, "dropless"), x, mask).y)
    assert roomy.statistics["dropped_fraction"] == 0


def ties_go_to_the_lowest_index(case):
    case = dataclasses.replace(case, regime="ties")
    routes = run(make(case), case.tokens(), case.padding_mask()).routes
    real = case.padding_mask() == 1
    if case.experts_choose:
        for g, m in np.argwhere(used_edges(case, routes)):
            first = np.flatnonzero(real[g])
            assert routes.token_index[g, m] == first[routes.slot_index[g, m]]
        return
    experts = routes.expert_index.reshape(case.config.batch, case.k, -1)
    for choice in range(case.k):
        assert (experts[:, choice][real] == choice).all()


def moving_tokens_moves_outputs(case):
    """Without drops the order of tokens is nothing to the layer."""
    x, mask = case.tokens(), case.padding_mask()
    if case.experts_choose and _tokens_tie(case, x):
        return
    layer = make(case, exploration="input_jitter")
    y = run(layer, x, mask, training=False).y
    order = np.random.default_rng(case.seed).permutation(case.config.length)
    moved = run(layer, x[:, order], mask[:, order], training=False).y
    close(moved, y[:, order])


def _tokens_tie(case, x):
    """Whether an expert may find two tokens of a row equally good."""
    ranked = np.sort(probabilities(case, x), axis=1)
    return (np.diff(ranked, axis=1) < 1e-6).any()


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
    gates, wanted = wanted_gates(case, x), wanted_experts(case, x)
    for g, m in np.argwhere(used_edges(case, routes)):
        token, expert, _, gate = (field[g, m] for field in routes)
        close(gate, gates[g, token, expert])
        assert mask[g, token]
        if not case.experts_choose:
            assert expert == wanted[g, token, m // case.config.length]


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
    """Of edges; where experts choose, of tokens."""
    mask = case.padding_mask()
    result = run(make(case), case.tokens(), mask)
    wanted = used_edges(case, result.routes).sum()
    kept = kept_edges(case, result.routes).sum()
    if case.experts_choose:
        wanted, kept = mask.sum(), has_expert(case, result.routes).sum()
    dropped = result.statistics["dropped_fraction"]
    close(dropped, (wanted - kept) / max(wanted, 1))
    assert result.statistics["tokens"] == mask.sum()


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

"""The invariants hold on random cases, and each kills the fault it is for."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_switch import losses
from keras_switch.layers import dispatch, routers, routes, routing, switch_layer
from tests.layers import cases, invariants

CASES = st.builds(
    cases.Case,
    config=st.sampled_from(cases.CONFIGS),
    router=st.sampled_from(cases.ROUTERS),
    regime=st.sampled_from(cases.REGIMES),
    mask=st.sampled_from(cases.MASKS),
    seed=st.integers(0, 2**16),
)


def check(name, examples=25, phases=(Phase.generate,)):
    """Runs one invariant on random cases, the same ones every time."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES)
    def run(case):
        invariants.INVARIANTS[name](case)

    run()


@pytest.mark.parametrize("name", invariants.INVARIANTS)
def test_invariant(name):
    phases = (Phase.generate, Phase.shrink)
    examples = 1 if name.startswith("a_crowded") else 25
    check(name, examples, phases)


# -------------------------------------------------------------- the mutants
#
# Each takes pytest's monkeypatch and plants one fault in the real code.


def off_by_one_slot(patch):
    queue = routing.queue_positions
    patch.setattr(routing, "queue_positions", lambda *a: queue(*a) + 1)


def off_by_one_capacity(patch):
    slots = switch_layer.SwitchLayer._slots
    patch.setattr(switch_layer.SwitchLayer, "_slots", lambda *a: slots(*a) + 1)


def padding_eats_capacity(patch):
    route = routing.Router.route

    def mutant(self, probs, scores, valid, *rest):
        routes = route(self, probs, scores, ops.ones_like(valid), *rest)
        real = ops.tile(valid, (1, self.num_choices))
        expert = ops.where(real, routes.expert_index, self.num_experts)
        return routes._replace(expert_index=expert)

    patch.setattr(routing.Router, "route", mutant)


def _change_gate(patch, change):
    """Of the router's answer, so that the layer believes it."""
    route = routing.Router.route

    def mutant(self, *args):
        routes = route(self, *args)
        return routes._replace(gate=change(routes.gate))

    patch.setattr(routing.Router, "route", mutant)


def gate_missing(patch):
    _change_gate(patch, ops.ones_like)


def gate_squared(patch):
    _change_gate(patch, ops.square)


def gate_in_bfloat16(patch):
    _change_gate(patch, lambda g: ops.cast(ops.cast(g, "bfloat16"), "float32"))


def gate_not_renormalised(patch):
    def mutant(self, probs, scores, training=None):
        best = routes.best_experts(scores, self.k)
        return best, routing.gather_probs(probs, best)

    patch.setattr(routers.TopKRouter, "choose", mutant)


def gate_renormalised_for_one(patch):
    def mutant(self, probs, scores, training=None):
        best = ops.expand_dims(ops.argmax(scores, -1), -1)
        gate = routing.gather_probs(probs, best)
        return best, gate / ops.sum(gate, axis=-1, keepdims=True)

    patch.setattr(routing.SwitchRouter, "choose", mutant)


def gate_on_the_way_in_too(patch):
    def mutant(self, tokens):
        return ops.einsum("gsec,gsd->gecd", self.weight, tokens)

    patch.setattr(dispatch.EinsumDispatch, "dispatch", mutant)


def positions_in_bfloat16(patch):
    queue = routing.queue_positions

    def mutant(*args):
        return ops.cast(ops.cast(queue(*args), "bfloat16"), "int32")

    patch.setattr(routing, "queue_positions", mutant)


def router_in_bfloat16(patch):
    logits = routing.Router._logits

    def mutant(self, tokens, training):
        tokens = ops.cast(ops.cast(tokens, "bfloat16"), "float32")
        return logits(self, tokens, training)

    patch.setattr(routing.Router, "_logits", mutant)


def ties_reversed(patch):
    def mutant(self, probs, scores, training=None):
        last = ops.argmax(ops.flip(scores, axis=-1), axis=-1)
        best = ops.expand_dims(self.num_experts - 1 - last, -1)
        return best, routing.gather_probs(probs, best)

    patch.setattr(routing.SwitchRouter, "choose", mutant)


def jitter_in_evaluation(patch):
    logits = routing.Router._logits
    patch.setattr(
        routing.Router,
        "_logits",
        lambda self, tokens, training: logits(self, tokens, True),
    )


def dropped_tokens_pass_through(patch):
    transfer = switch_layer.transfer

    def mutant(layer, tokens, *rest):
        y = transfer(layer, tokens, *rest)
        lost = ops.all(ops.equal(y, 0.0), axis=-1, keepdims=True)
        return ops.where(lost, tokens, y)

    patch.setattr(switch_layer, "transfer", mutant)


def last_token_first(patch):
    queue = routing.Router._queue

    def mutant(self, expert_index, probs, choices):
        flipped = ops.flip(expert_index, axis=1)
        return ops.flip(queue(self, flipped, probs, choices), axis=1)

    patch.setattr(routing.Router, "_queue", mutant)


def best_token_first(patch):
    """Batch-prioritized order where nobody asked for it."""
    queue = routing.Router._queue

    def mutant(self, *args):
        self.batch_prioritized = True
        try:
            return queue(self, *args)
        finally:
            self.batch_prioritized = False

    patch.setattr(routing.Router, "_queue", mutant)


def dropped_edges_share_the_last_slot(patch):
    init = dispatch.GatherDispatch.__init__

    def mutant(self, routes, tokens, num_experts, capacity, choices):
        slot = ops.minimum(routes.slot_index, capacity - 1)
        routes = routes._replace(slot_index=slot)
        init(self, routes, tokens, num_experts, capacity, choices)

    patch.setattr(dispatch.GatherDispatch, "__init__", mutant)


def balance_loss_counts_padding(patch):
    loss = losses.load_balancing_loss
    patch.setattr(
        losses, "load_balancing_loss", lambda p, e, mask=None: loss(p, e)
    )


def z_loss_counts_padding(patch):
    loss = losses.router_z_loss
    patch.setattr(losses, "router_z_loss", lambda v, mask=None: loss(v))


def experts_choose_padding(patch):
    route = routers.ExpertChoiceRouter.route

    def mutant(self, probs, scores, valid, *rest):
        return route(self, probs, scores, ops.ones_like(valid), *rest)

    patch.setattr(routers.ExpertChoiceRouter, "route", mutant)


def one_token_is_not_counted(patch):
    call = switch_layer.SwitchLayer.call

    # Keras reads the arguments that a layer's call takes.
    def mutant(self, x, padding_mask=None, training=None, return_routing=False):
        record = x.shape[1] != 1
        return call(self, x, padding_mask, training, return_routing, record)

    patch.setattr(switch_layer.SwitchLayer, "call", mutant)


def drops_over_all_edges(patch):
    def mutant(self, routes, capacity, valid):
        lost = routes.slot_index >= capacity
        return ops.mean(ops.cast(lost, "float32"))

    patch.setattr(routing.Router, "_dropped_fraction", mutant)


def bad_tokens_are_not_set_aside(patch):
    def mutant(tokens, mask):
        return tokens, mask, ops.zeros_like(mask)

    patch.setattr(switch_layer, "_set_aside_poisoned", mutant)


def dropless_forgets_the_gate(patch):
    init = dispatch.DroplessDispatch.__init__

    def mutant(self, routes, *rest):
        gate = ops.ones_like(routes.gate)
        init(self, routes._replace(gate=gate), *rest)

    patch.setattr(dispatch.DroplessDispatch, "__init__", mutant)


def router_with_a_bias(patch):
    logits = routing.Router._logits

    def mutant(self, tokens, training):
        bias = ops.arange(self.num_experts, dtype="float32")
        return logits(self, tokens, training) - bias

    patch.setattr(routing.Router, "_logits", mutant)


KILLED_BY = {
    off_by_one_slot: [
        "each_slot_holds_one_edge",
        "kept_is_the_load_or_the_capacity",
    ],
    off_by_one_capacity: ["kept_is_the_load_or_the_capacity"],
    padding_eats_capacity: [
        "each_slot_holds_one_edge",
        "kept_is_the_load_or_the_capacity",
        "what_padding_holds_is_nothing",
    ],
    gate_missing: ["identity_experts_return_gate_times_x", "gates_are_exact"],
    gate_squared: ["identity_experts_return_gate_times_x", "gates_are_exact"],
    gate_in_bfloat16: [
        "identity_experts_return_gate_times_x",
        "gates_are_exact",
    ],
    gate_not_renormalised: ["identity_experts_return_gate_times_x"],
    gate_renormalised_for_one: ["identity_experts_return_gate_times_x"],
    gate_on_the_way_in_too: [
        "dispatches_agree",
        "output_is_gate_times_expert",
    ],
    positions_in_bfloat16: ["a_crowded_queue_is_numbered_exactly"],
    router_in_bfloat16: ["gates_are_exact"],
    ties_reversed: ["ties_go_to_the_lowest_index"],
    jitter_in_evaluation: [
        "evaluation_is_quiet_and_finite",
        "moving_tokens_moves_outputs",
    ],
    dropped_tokens_pass_through: [
        "dropped_and_padding_rows_are_zero",
        "identity_experts_return_gate_times_x",
    ],
    last_token_first: ["later_tokens_change_nothing_before_them"],
    best_token_first: ["later_tokens_change_nothing_before_them"],
    dropped_edges_share_the_last_slot: ["dispatches_agree"],
    balance_loss_counts_padding: ["losses_are_over_real_tokens"],
    z_loss_counts_padding: ["losses_are_over_real_tokens"],
    experts_choose_padding: [
        "kept_is_the_load_or_the_capacity",
        "gates_are_exact",
        "what_padding_holds_is_nothing",
    ],
    one_token_is_not_counted: ["drops_are_counted"],
    drops_over_all_edges: ["drops_are_counted"],
    dropless_forgets_the_gate: ["room_for_all_is_dropless"],
    router_with_a_bias: [
        "renaming_experts_changes_nothing",
        "gates_are_exact",
    ],
    bad_tokens_are_not_set_aside: [
        "a_bad_token_is_alone",
        "what_padding_holds_is_nothing",
    ],
}
PAIRS = [(m, name) for m, names in KILLED_BY.items() for name in names]


# The tests are tested, not a backend.
@pytest.mark.any_backend
@pytest.mark.parametrize(
    "mutant,name", PAIRS, ids=[f"{m.__name__}-{n}" for m, n in PAIRS]
)
def test_mutant_is_killed(mutant, name, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(name)


def test_every_invariant_kills_something():
    killers = {name for names in KILLED_BY.values() for name in names}
    assert killers == set(invariants.INVARIANTS)

"""A slow Switch layer in NumPy: float64, one token at a time, no cleverness.

Every fast path of the library is held to this file. It follows the paper
(Fedus et al. 2022, equations 1 to 6) and is written for being read: a loop
where a loop is what is meant. Its derivative is in `reference_gradients.py`,
what other papers' routers do in `reference_routers.py`.

Letters: B batch, T length, D hidden, F expert hidden, G groups, S group size,
E experts, C capacity, K choices per token, M edges per group.
"""

import dataclasses
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from tests import reference_routers, reference_stack


@dataclasses.dataclass
class Spec:
    """What a SwitchLayer is told, under the names the layer uses."""

    num_experts: int
    router: str = "switch"  # or "top_k", "expert_choice" or see below
    k: int = 1
    max_experts: int | None = None  # of a token, where experts choose
    second_policy: str = "all"  # or "threshold", "random" (in evaluation)
    second_threshold: float = 0.2
    batch_prioritized: bool = False
    dispatch: str = "gather"
    capacity_factor: float = 1.25
    eval_capacity_factor: float | None = None
    min_capacity: int = 4
    capacity: int | None = None
    group_size: int | None = None
    activation: str = "relu"
    load_balancing_loss_weight: float = 0.01
    z_loss_weight: float = 0.0
    importance_loss_weight: float = 0.0
    load_loss_weight: float = 0.0
    gate: str = "softmax"  # or "sigmoid"
    num_expert_groups: int = 2
    group_limit: int = 1
    group_score: str = "top_2"  # or "max"
    renormalize: bool = True
    training: bool = False
    draw_seed: int = 5  # of `reference_routers.draw`


class Edge(NamedTuple):
    """One (token, expert) pair; `expert == num_experts` goes nowhere."""

    token: int
    expert: int
    slot: int  # -1 where the edge goes nowhere
    gate: float
    kept: bool


class Output(NamedTuple):
    y: np.ndarray  # [B, T, D]
    edges: list  # of G lists of M edges
    losses: dict  # unweighted, by name
    statistics: dict  # by name, without the losses
    cache: dict  # what `gradients` needs


# ----------------------------------------------------------------- the layer


def switch_layer(spec, x, weights, padding_mask=None, token_ids=None):
    """The whole layer.

    `weights` holds `kernel` [D, E], `wo` [E, F, D] and either `wi` or `wi_0`
    and `wi_1` [E, D, F]; or what the router has in place of a kernel.
    """
    x = np.asarray(x, np.float64)
    tokens, real = group(x, padding_mask, spec.group_size)  # [G,S,D] [G,S]
    capacity = capacity_of(spec, tokens.shape[1])
    ids = np.zeros(x.shape[:2]) if token_ids is None else token_ids
    ids, _ = group(np.asarray(ids)[..., None], None, spec.group_size)
    logits = reference_routers.logits(spec, tokens, weights, ids[..., 0])
    finite = np.isfinite(logits).all(-1)  # [G, S]
    valid = real & finite
    gates, probs = np.zeros_like(logits), np.zeros_like(logits)
    for g, s in zip(*np.nonzero(valid), strict=True):
        gates[g, s] = softmax(logits[g, s])
        if spec.gate == "sigmoid":
            gates[g, s] = 1 / (1 + np.exp(-logits[g, s]))
        probs[g, s] = gates[g, s] / gates[g, s].sum()
    y = np.zeros_like(tokens)
    edges = []
    scores = reference_routers.scores(spec, gates, logits, valid, weights)
    for g in range(len(tokens)):
        edges.append(route(spec, gates[g], valid[g], capacity, scores[g]))
        for edge in edges[g]:
            if edge.kept:
                out = feed_forward(spec, tokens[g, edge.token], weights, edge)
                y[g, edge.token] += edge.gate * out
    for g, s in zip(*np.nonzero(valid), strict=True):
        if "shared_wo" in weights:
            shared = shared_of(weights)
            y[g, s] += feed_forward(spec, tokens[g, s], shared, SHARED)
    y[real & ~finite] = np.nan
    first = first_choices(spec, probs, valid, edges)
    cache = dict(
        tokens=tokens,
        logits=logits,
        gates=gates,
        probs=probs,
        valid=valid,
        first=first,
    )
    flat = y.reshape(-1, x.shape[-1])
    return Output(
        y=flat[: x.shape[0] * x.shape[1]].reshape(x.shape),
        edges=edges,
        losses=losses(spec, logits, probs, valid, edges, first)
        | reference_routers.losses(spec, tokens, weights, logits, valid),
        statistics=statistics(spec, probs, valid, edges),
        cache=cache,
    )


def group(x, padding_mask=None, group_size=None):
    """[B, T, D] to [G, S, D], and which rows are real tokens [G, S]."""
    batch, length, dim = x.shape
    if padding_mask is None:
        padding_mask = np.ones((batch, length))
    real = np.asarray(padding_mask) != 0
    if group_size is None:
        return x, real
    count = batch * length
    size = min(group_size, count)
    groups = -(-count // size) if size else 0
    tokens = np.zeros((groups, size, dim))
    mask = np.zeros((groups, size), bool)
    for i in range(count):
        tokens[i // size, i % size] = x[i // length, i % length]
        mask[i // size, i % size] = real[i // length, i % length]
    return tokens, mask


def capacity_of(spec, size):
    """Rows per expert per group; None when nothing can be dropped."""
    factor = spec.capacity_factor
    if spec.router != "expert_choice":
        if spec.dispatch == "dropless":
            return None
        if not spec.training:
            factor = spec.eval_capacity_factor
    elif not spec.training and spec.eval_capacity_factor is not None:
        factor = spec.eval_capacity_factor
    if spec.capacity is not None:
        return min(size, spec.capacity)
    if factor is None:
        return None
    # As a fraction: 1.1 * 20 / 2 is 11 here, not 11.000000000000002.
    factor = Fraction(factor).limit_denominator(1000)
    wanted = math.ceil(factor * size / spec.num_experts)
    if spec.router != "expert_choice":  # whose quota is just that
        wanted = max(spec.min_capacity, wanted)
    return min(size, wanted)


def softmax(logits):
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


# ------------------------------------------------------------------- routing


def route(spec, probs, valid, capacity, scores=None):
    """The edges of one group in the order of RouterIndices."""
    if spec.router == "expert_choice":
        return route_expert_choice(spec, probs, valid, capacity)
    if spec.router == "no_token_left_behind":
        return reference_routers.route_by_ranks(spec, probs, valid, capacity)
    scores = probs if scores is None else scores
    chosen = [
        reference_routers.choose(spec, p, s) if v else None
        for p, v, s in zip(probs, valid, scores, strict=True)
    ]
    k = 1 if spec.router in ("switch", "random") else spec.k
    order = list(range(len(probs)))
    if spec.batch_prioritized:
        # Of the first choice, before gates are made to sum to 1.
        top = [
            p[c[0][0]] if c else 0.0 for p, c in zip(probs, chosen, strict=True)
        ]
        order.sort(key=lambda token: (-top[token], token))
    queue = [0] * spec.num_experts
    edges = {}
    for choice in range(k):
        for token in order:
            expert, gate = spec.num_experts, 0.0
            if chosen[token] is not None:
                expert, gate = chosen[token][choice]
            slot, kept = -1, False
            if expert < spec.num_experts:
                slot = queue[expert]
                queue[expert] += 1
                kept = capacity is None or slot < capacity
            edges[choice, token] = Edge(token, expert, slot, gate, kept)
    return [edges[c, t] for c in range(k) for t in range(len(probs))]


def choose(spec, p):
    """[(expert, gate)] of one token, best first."""
    by_prob = sorted(range(len(p)), key=lambda e: (-p[e], e))
    if spec.router == "switch" or spec.k == 1:
        return [(by_prob[0], p[by_prob[0]])]
    total = sum(p[e] for e in by_prob[: spec.k])
    result = []
    for choice, expert in enumerate(by_prob[: spec.k]):
        gate = p[expert] / total
        refused = (
            choice > 0
            and spec.second_policy == "threshold"
            and not gate > spec.second_threshold
        )
        result.append((spec.num_experts if refused else expert, gate))
    return result


def route_expert_choice(spec, probs, valid, capacity):
    """Each expert takes its best tokens; ties to the earliest token."""
    edges = []
    tokens = [t for t in range(len(probs)) if valid[t]]
    count = min(len(tokens), capacity_of(spec, len(tokens)), capacity)
    chosen = np.ones(probs.shape, bool)
    if spec.max_experts is not None:
        chosen = reference_routers.capped(spec, probs, tokens, count)
    for expert in range(spec.num_experts):
        best = [t for t in tokens if chosen[t, expert]]
        best.sort(key=lambda t: (-probs[t, expert], t))
        for slot in range(capacity):
            if slot < min(count, len(best)):
                gate = probs[best[slot], expert]
                edges.append(Edge(best[slot], expert, slot, gate, True))
            else:
                edges.append(Edge(0, spec.num_experts, -1, 0.0, False))
    return edges


# ------------------------------------------------------------------- experts


def activate(name, h):
    """The activation and its derivative."""
    if name == "relu":
        return np.maximum(h, 0.0), (h > 0).astype(np.float64)
    if name == "silu":
        gate = 1 / (1 + np.exp(-h))
        return h * gate, gate * (1 + h * (1 - gate))
    if name == "gelu":  # the tanh form, as T5 1.1
        c = math.sqrt(2 / math.pi)
        t = np.tanh(c * (h + 0.044715 * h**3))
        inner = c * (1 + 3 * 0.044715 * h**2)
        return 0.5 * h * (1 + t), 0.5 * (1 + t) + 0.5 * h * (1 - t**2) * inner
    raise ValueError(name)


def feed_forward(spec, row, weights, edge):
    """What the edge's expert makes of one token."""
    if "block_0_wo" in weights:
        hidden = row
        for block in reference_stack.blocks_of(weights):
            norm, _ = reference_stack.normalize(hidden)
            change = feed_forward(spec, norm, block, edge)
            hidden = hidden + change
        return hidden - row
    e = edge.expert
    if spec.activation.startswith("gated-"):
        act, _ = activate(spec.activation[6:], row @ weights["wi_0"][e])
        hidden = act * (row @ weights["wi_1"][e])
    else:
        hidden, _ = activate(spec.activation, row @ weights["wi"][e])
    return hidden @ weights["wo"][e]


# The edge of every token to the shared experts.
SHARED = Edge(0, 0, 0, 1.0, True)


def shared_of(weights):
    """The shared experts, `shared_wi` and so on, 2-D, as a bank of one."""
    return {
        name.removeprefix("shared_"): np.asarray(w, np.float64)[None]
        for name, w in weights.items()
        if name.startswith("shared_")
    }


def dense(activation, x, weights):
    """A dense T5 feed-forward: `wi` (or `wi_0`, `wi_1`) and `wo` are 2-D."""
    stacked = {name: np.asarray(w)[None] for name, w in weights.items()}
    spec, edge = Spec(1, activation=activation), Edge(0, 0, 0, 1.0, True)
    rows = [
        feed_forward(spec, row, stacked, edge)
        for row in np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    ]
    return np.array(rows).reshape(x.shape)


# ------------------------------------------------------ losses and statistics


def first_choices(spec, probs, valid, edges):
    """[G, S] the first choice of each token, before any dropping."""
    first = np.full(valid.shape, spec.num_experts)
    for g, s in zip(*np.nonzero(valid), strict=True):
        first[g, s] = np.argmax(probs[g, s])
        if spec.router in ("random", "loss_free", "group_limited", "base"):
            first[g, s] = edges[g][s].expert
    return first


def losses(spec, logits, probs, valid, edges, first):
    gates = [(e.gate, e.expert) for group in edges for e in group]
    return {
        "load_balancing_loss": load_balancing_loss(probs, first, valid),
        "router_z_loss": router_z_loss(logits, valid),
        "importance_loss": importance_loss(gates, spec.num_experts),
    }


def load_balancing_loss(probs, first, valid):
    """Equations 4 to 6, per group, mean over groups that have a token."""
    num_experts = probs.shape[-1]
    terms = []
    for g in range(len(probs)):
        count = valid[g].sum()
        if not count:
            continue
        term = 0.0
        for e in range(num_experts):
            f = sum(valid[g] & (first[g] == e)) / count
            term += f * probs[g, valid[g], e].sum() / count
        terms.append(num_experts * term)
    return float(np.mean(terms)) if terms else 0.0


def log_sum_exp(row):
    return row.max() + math.log(np.exp(row - row.max()).sum())


def router_z_loss(logits, valid):
    squares = [log_sum_exp(row) ** 2 for row in logits[valid]]
    return float(np.mean(squares)) if squares else 0.0


def importance_loss(gates, num_experts):
    """The squared coefficient of variation of the gates' sums."""
    sums = np.zeros(num_experts)
    for gate, expert in gates:
        if expert < num_experts:
            sums[expert] += gate
    return float(sums.var() / sums.mean() ** 2) if sums.any() else 0.0


def statistics(spec, probs, valid, edges):
    wanted = [
        e for group in edges for e in group if e.expert < spec.num_experts
    ]
    load = np.bincount([e.expert for e in wanted], minlength=spec.num_experts)
    rows = probs[valid]
    logs = np.log(np.where(rows > 0, rows, 1.0))
    dropped = sum(not e.kept for e in wanted) / max(len(wanted), 1)
    if spec.router == "expert_choice":  # tokens that no expert chose
        chosen = {
            (g, e.token) for g, i in enumerate(edges) for e in i if e.kept
        }
        dropped = 1 - len(chosen) / valid.sum() if valid.any() else 0.0
    return {
        "dropped_fraction": dropped,
        "max_mean_load": load.max() / load.mean() if len(wanted) else 0.0,
        "dead_expert_fraction": (load == 0).mean() if len(wanted) else 0.0,
        "router_confidence": rows.max(-1).mean() if len(rows) else 0.0,
        "router_entropy": -(rows * logs).sum(-1).mean() if len(rows) else 0.0,
        "tokens": int(valid.sum()),
    }


def total_loss(spec, losses):
    return (
        spec.load_balancing_loss_weight * losses["load_balancing_loss"]
        + spec.z_loss_weight * losses["router_z_loss"]
        + spec.importance_loss_weight * losses["importance_loss"]
        + spec.load_loss_weight * losses.get("load_loss", 0.0)
    )

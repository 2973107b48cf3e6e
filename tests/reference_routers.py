"""What the slow layer of `reference.py` does for the rest of the routers.

As there: float64, one token at a time. Each function is told in the name of
the router that it is for.
"""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from tests import reference

# Routers whose gate is always 1: nothing flows back to a router.
UNIT_GATE = ("hash", "random")


def logits(spec, tokens, weights, ids):
    """[G, S, E] by the router; `ids` is [G, S]."""
    if spec.router == "hash":
        return hash_logits(spec, weights["table"], ids)
    with np.errstate(invalid="ignore", over="ignore"):
        clean = tokens @ np.asarray(weights["kernel"], np.float64)
    if spec.router == "noisy_top_k" and spec.training:
        noise = draw(spec, clean.shape)
        return clean + noise * deviation(tokens, weights)
    return clean


def draw(spec, shape):
    """What a router draws in a test, in place of its random numbers."""
    rng = np.random.default_rng(spec.draw_seed)
    return rng.uniform(size=tuple(shape)).astype("float32").astype("float64")


def hash_logits(spec, table, ids):
    """Of a softmax that is 1 / K for the K experts of the token's id."""
    result = np.full((*ids.shape, spec.num_experts), -1e9)
    for g, s in np.ndindex(ids.shape):
        column = int(ids[g, s]) % table.shape[1]
        for row in range(spec.k):
            result[g, s, table[row, column]] = -np.log(spec.k)
    return result


# ------------------------------------------- noisy top-k (Shazeer et al. 2017)


def deviation(tokens, weights):
    """[G, S, E] of the noise: softplus(x @ noise_kernel)."""
    return np.log1p(np.exp(tokens @ weights["noise_kernel"]))


def losses(spec, tokens, weights, logits, valid):
    if spec.router != "noisy_top_k":
        return {}
    load = np.zeros(spec.num_experts)
    if spec.training:
        for _, expert, z, _ in chances(spec, tokens, weights, logits, valid):
            load[expert] += phi(z)
    return {
        "load_loss": float(load.var() / load.mean() ** 2) if load.any() else 0.0
    }


def phi(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def chances(spec, tokens, weights, logits, valid):
    """For each token and expert: who they are, how many deviations the
    expert is above the k-th of the others, and who that is."""
    clean = tokens @ weights["kernel"]
    sigma = deviation(tokens, weights)
    for g, s in zip(*np.nonzero(valid), strict=True):
        for e in range(spec.num_experts):
            others = [i for i in range(spec.num_experts) if i != e]
            others.sort(key=lambda i: -logits[g, s, i])
            rival = others[spec.k - 1]
            z = (clean[g, s, e] - logits[g, s, rival]) / sigma[g, s, e]
            yield (g, s), e, z, rival


def noisy_gradient(spec, cache, weights, dlogits, grads):
    """Adds those of the kernels to `grads`; returns the tokens'."""
    tokens, logits = cache["tokens"], cache["logits"]
    sigma = deviation(tokens, weights)
    dclean, dsigma = np.zeros_like(logits), np.zeros_like(logits)
    dlogits = dlogits.copy()
    load = np.zeros(spec.num_experts)
    found = []
    if spec.training:
        found = list(chances(spec, tokens, weights, logits, cache["valid"]))
    for _, expert, z, _ in found:
        load[expert] += phi(z)
    slope = np.zeros(spec.num_experts)
    if load.any():
        mean, count = load.mean(), spec.num_experts
        slope = 2 * (load - mean) / count / mean**2
        slope = slope - 2 * load.var() / mean**3 / count
        slope = slope * spec.load_loss_weight
    for (g, s), e, z, rival in found:
        d = slope[e] * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        dclean[g, s, e] += d / sigma[g, s, e]
        dlogits[g, s, rival] -= d / sigma[g, s, e]
        dsigma[g, s, e] -= d * z / sigma[g, s, e]
    dclean += dlogits
    if spec.training:
        dsigma += dlogits * draw(spec, logits.shape)
    draw_slope = dsigma / (1 + np.exp(-(tokens @ weights["noise_kernel"])))
    grads["kernel"] = np.einsum("gsd,gse->de", tokens, dclean)
    grads["noise_kernel"] = np.einsum("gsd,gse->de", tokens, draw_slope)
    return dclean @ weights["kernel"].T + draw_slope @ weights["noise_kernel"].T


# --------------------------------------------------------- whom a token chooses


def scores(spec, gates, logits, valid, weights):
    """[G, S, E] what experts are ranked by."""
    if spec.router == "random" and spec.training:
        return draw(spec, gates.shape)
    if spec.router in ("loss_free", "group_limited"):
        return gates + weights["bias"]
    if spec.router == "base" and spec.training:
        return np.array(
            [assigned(*group) for group in zip(logits, valid, strict=True)]
        )
    return gates


def assigned(logits, valid):
    """[S, E] 1 where the best balanced assignment puts a token."""
    count, experts = valid.sum(), logits.shape[-1]
    places = [
        e for e in range(experts) for _ in range(count // experts)
    ] + list(range(count % experts))
    tokens = np.flatnonzero(valid)
    rows, columns = linear_sum_assignment(-logits[tokens][:, places])
    result = np.zeros(logits.shape)
    for row, column in zip(rows, columns, strict=True):
        result[tokens[row], places[column]] = 1
    return result


def choose(spec, p, scores):
    """[(expert, gate)] of one token, best first."""
    if spec.router == "hash":
        return [(e, 1.0) for e in range(len(p)) if p[e] > 0]
    if spec.router == "random":
        return [(int(np.argmax(scores)), 1.0)]
    if spec.router == "base":
        expert = int(np.argmax(scores))
        return [(expert, p[expert])]
    if spec.router == "loss_free":
        order = np.argsort(-scores, kind="stable")
        return [(int(e), p[e]) for e in order[: spec.k]]
    if spec.router == "group_limited":
        return choose_in_groups(spec, p, scores)
    return reference.choose(spec, p)


def choose_in_groups(spec, p, scores):
    """DeepSeek's: the best groups, then the best experts of those."""
    size = spec.num_experts // spec.num_expert_groups
    counted = 2 if spec.group_score == "top_2" else 1
    worth = [
        sum(sorted(scores[g * size : (g + 1) * size])[-counted:])
        for g in range(spec.num_expert_groups)
    ]
    groups = sorted(range(len(worth)), key=lambda g: (-worth[g], g))
    allowed = [
        e
        for e in range(spec.num_experts)
        if e // size in groups[: spec.group_limit]
    ]
    best = sorted(allowed, key=lambda e: (-scores[e], e))[: spec.k]
    total = sum(p[e] for e in best) if spec.renormalize else 1.0
    return [(e, p[e] / total) for e in best]


def route_by_ranks(spec, probs, valid, capacity):
    """No-token-left-behind: rank by rank, then from left to right."""
    queue = [0] * spec.num_experts
    order = [
        sorted(range(spec.num_experts), key=lambda e: (-p[e], e)) for p in probs
    ]
    edges = {}
    for rank in range(min(spec.k, spec.num_experts)):
        for token in np.nonzero(valid)[0]:
            expert = order[token][rank]
            if token not in edges and (
                capacity is None or queue[expert] < capacity
            ):
                gate = probs[token, expert]
                edges[token] = reference.Edge(
                    token, expert, queue[expert], gate, True
                )
                queue[expert] += 1
    for token in range(len(probs)):
        if token in edges:
            continue
        expert = order[token][0] if valid[token] else spec.num_experts
        slot, gate = -1, 0.0
        if valid[token]:
            slot, gate = queue[expert], probs[token, expert]
            queue[expert] += 1
        edges[token] = reference.Edge(token, expert, slot, gate, False)
    return [edges[token] for token in range(len(probs))]


def capped(spec, probs, tokens, count):
    """[S, E] experts and tokens choose each other, the surest pairs first."""
    chosen = np.zeros(probs.shape, bool)
    pairs = [(t, e) for t in tokens for e in range(spec.num_experts)]
    for token, expert in sorted(pairs, key=lambda pair: -probs[pair]):
        if (
            chosen[token].sum() < spec.max_experts
            and chosen[:, expert].sum() < count
        ):
            chosen[token, expert] = True
    return chosen

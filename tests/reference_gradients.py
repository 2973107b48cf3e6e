"""The derivative by hand of the slow Switch layer in `reference.py`.

Of `sum(y * dy) + weighted losses`; `reference_test.py` holds it to central
differences. Which expert a token goes to, its slot and what is dropped are
constants, as they are for any backend's automatic derivative.
"""

import numpy as np

from tests import reference, reference_routers, reference_stack


def gradients(spec, x, weights, dy, padding_mask=None, token_ids=None):
    """d(sum(y * dy) + weighted losses in training) / d(x, each weight)."""
    out = reference.switch_layer(spec, x, weights, padding_mask, token_ids)
    tokens, probs = out.cache["tokens"], out.cache["probs"]
    dy, _ = reference.group(np.asarray(dy, np.float64), None, spec.group_size)
    grads = {name: np.zeros(w.shape) for name, w in weights.items()}
    dx = np.zeros_like(tokens)
    dlogits = np.zeros_like(probs)
    dgate = np.zeros((len(tokens), max(map(len, out.edges), default=0)))
    for g, edges in enumerate(out.edges):
        for m, edge in enumerate(edges):
            if edge.kept:
                row, dout = tokens[g, edge.token], dy[g, edge.token]
                y = reference.feed_forward(spec, row, weights, edge)
                dgate[g, m] = dout @ y
                dx[g, edge.token] += feed_forward_gradient(
                    spec, row, weights, edge, edge.gate * dout, grads
                )
    shared_gradient(spec, out.cache, weights, dy, dx, grads)
    dprobs, dgates = np.zeros_like(probs), np.zeros_like(probs)
    if spec.training:
        dgate += importance_gradient(spec, out.edges, dgate.shape)
        dprobs += load_balancing_gradient(spec, out.cache)
        dlogits += z_gradient(spec, out.cache)
    for g, edges in enumerate(out.edges):
        gates = out.cache["gates"][g]
        gate_gradient(spec, edges, dgate[g], gates, dgates[g])
    dlogits += logits_gradient(spec, out.cache, dgates, dprobs)
    if spec.router == "noisy_top_k":
        dx += reference_routers.noisy_gradient(
            spec, out.cache, weights, dlogits, grads
        )
    elif "kernel" in weights:
        kernel = np.asarray(weights["kernel"], np.float64)
        grads["kernel"] = np.einsum("gsd,gse->de", tokens, dlogits)
        dx += dlogits @ kernel.T
    flat = dx.reshape(-1, x.shape[-1])[: x.shape[0] * x.shape[1]]
    return {"x": flat.reshape(x.shape), **grads}


def shared_gradient(spec, cache, weights, dy, dx, grads):
    """Adds those of the shared experts to the tokens' and weights'."""
    shared = reference.shared_of(weights)
    own = {name: np.zeros(w.shape) for name, w in shared.items()}
    if not shared:
        return
    for g, s in zip(*np.nonzero(cache["valid"]), strict=True):
        row, dout = cache["tokens"][g, s], dy[g, s]
        dx[g, s] += feed_forward_gradient(
            spec, row, shared, reference.SHARED, dout, own
        )
    grads |= {f"shared_{name}": g[0] for name, g in own.items()}


def feed_forward_gradient(spec, row, weights, edge, dout, grads):
    """Adds the weights' gradients to `grads`; returns the token's."""
    if "block_0_wo" in weights:
        return stack_gradient(spec, row, weights, edge, dout, grads)
    e = edge.expert
    if spec.activation.startswith("gated-"):
        pre, linear = row @ weights["wi_0"][e], row @ weights["wi_1"][e]
        act, slope = reference.activate(spec.activation[6:], pre)
        hidden = act * linear
        dhidden = weights["wo"][e] @ dout
        parts = {"wi_0": dhidden * linear * slope, "wi_1": dhidden * act}
    else:
        hidden, slope = reference.activate(
            spec.activation, row @ weights["wi"][e]
        )
        parts = {"wi": (weights["wo"][e] @ dout) * slope}
    grads["wo"][e] += np.outer(hidden, dout)
    drow = np.zeros_like(row)
    for name, dpre in parts.items():
        grads[name][e] += np.outer(row, dpre)
        drow += weights[name][e] @ dpre
    return drow


def stack_gradient(spec, row, weights, edge, dout, grads):
    """The same of a stack, `h += feed_forward(norm(h))`, less its input."""
    blocks = reference_stack.blocks_of(weights)
    inputs = [row]
    for block in blocks:
        norm, _ = reference_stack.normalize(inputs[-1])
        change = reference.feed_forward(spec, norm, block, edge)
        inputs.append(inputs[-1] + change)
    dhidden = dout
    parts = zip(blocks, reference_stack.blocks_of(grads), inputs, strict=False)
    for block, block_grads, hidden in reversed(list(parts)):
        norm, deviation = reference_stack.normalize(hidden)
        dnorm = feed_forward_gradient(
            spec, norm, block, edge, dhidden, block_grads
        )
        along = dnorm.mean() + norm * (dnorm * norm).mean()
        dhidden = dhidden + (dnorm - along) / deviation
    return dhidden - dout


def gate_gradient(spec, edges, dgate, probs, dprobs):
    """From the gates of one group to its probabilities."""
    if spec.router in reference_routers.UNIT_GATE:
        return
    by_token = {}
    for edge, d in zip(edges, dgate, strict=True):
        if edge.gate:
            by_token.setdefault(edge.token, []).append((edge, d))
    several = spec.router in ("top_k", "noisy_top_k")
    renormalised = several and spec.k > 1
    if spec.router == "group_limited":
        renormalised = spec.renormalize
    for token, pairs in by_token.items():
        if not renormalised:
            for edge, d in pairs:
                if edge.expert < spec.num_experts:
                    dprobs[token, edge.expert] += d
            continue
        order = sorted(
            range(spec.num_experts), key=lambda e: (-probs[token, e], e)
        )
        if spec.router == "group_limited":  # not the best of all
            order = [edge.expert for edge, _ in pairs]
        total = sum(probs[token, e] for e in order[: spec.k])
        mean = sum(d * edge.gate for edge, d in pairs)
        for choice, (_, d) in enumerate(pairs):
            dprobs[token, order[choice]] += (d - mean) / total


def logits_gradient(spec, cache, dgates, dprobs):
    """From all gates, and from those that are made to sum to 1."""
    gates, probs = cache["gates"], cache["probs"]
    dot = (dprobs * probs).sum(-1, keepdims=True)
    if spec.gate == "sigmoid":
        total = np.maximum(gates.sum(-1, keepdims=True), 1e-30)
        dgates = dgates + (dprobs - dot) / total
        return dgates * gates * (1 - gates)
    dot = dot + (dgates * probs).sum(-1, keepdims=True)
    return probs * (dprobs + dgates - dot)


def load_balancing_gradient(spec, cache):
    """f has no gradient, P is a mean."""
    probs, valid, first = cache["probs"], cache["valid"], cache["first"]
    result = np.zeros_like(probs)
    groups = valid.any(-1).sum()
    for g in np.nonzero(valid.any(-1))[0]:
        count = valid[g].sum()
        for e in range(spec.num_experts):
            f = (first[g][valid[g]] == e).mean()
            result[g, valid[g], e] = spec.num_experts * f / count / groups
    return spec.load_balancing_loss_weight * result


def z_gradient(spec, cache):
    logits, valid = cache["logits"], cache["valid"]
    result = np.zeros_like(logits)
    for g, s in zip(*np.nonzero(valid), strict=True):
        slope = (
            2
            * reference.log_sum_exp(logits[g, s])
            * reference.softmax(logits[g, s])
        )
        result[g, s] = spec.z_loss_weight * slope / valid.sum()
    return result


def importance_gradient(spec, edges, shape):
    num_experts = spec.num_experts
    sums = np.zeros(num_experts)
    for edge in (edge for group in edges for edge in group):
        if edge.expert < num_experts:
            sums[edge.expert] += edge.gate
    result = np.zeros(shape)
    mean = sums.mean()
    if not mean:
        return result
    slope = 2 * (sums - mean) / num_experts / mean**2
    slope = slope - 2 * sums.var() / mean**3 / num_experts
    for g, group_edges in enumerate(edges):
        for m, edge in enumerate(group_edges):
            if edge.expert < num_experts:
                result[g, m] = spec.importance_loss_weight * slope[edge.expert]
    return result

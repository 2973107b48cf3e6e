"""A slow Soft MoE layer in NumPy, and its derivative by hand.

As `reference.py`: float64, one slot at a time. `P` slots of each of `E`
experts make `N` slots; slot `n` is of expert `n // P`.
"""

import numpy as np

from tests import reference, reference_gradients

EPSILON = 1e-6


def layer(spec, x, weights, padding_mask=None):
    """`reference.Output` of the whole layer, without edges."""
    x = np.asarray(x, np.float64)
    tokens, valid = reference.group(x, padding_mask, spec.group_size)
    slots = weights["kernel"].shape[1] // spec.num_experts
    shape = (*valid.shape, spec.num_experts)
    y, probs, logits = np.zeros_like(tokens), np.zeros(shape), np.zeros(shape)
    parts = []
    for g in range(len(tokens)):
        part = mix(spec, tokens[g][valid[g]], weights)
        parts.append(part)
        y[g, valid[g]] = part["combine"] @ part["outputs"]
        split = (-1, spec.num_experts, slots)
        probs[g, valid[g]] = part["combine"].reshape(split).sum(-1)
        whole = np.exp(part["logits"]).reshape(split).sum(-1)
        logits[g, valid[g]] = np.log(whole)
    first = np.where(valid, probs.argmax(-1), spec.num_experts)
    edges = [
        [reference.Edge(s, e, 0, 0.0, True) for s, e in enumerate(row)]
        for row in first
    ]
    losses = reference.losses(spec, logits, probs, valid, edges, first)
    return reference.Output(
        y=flat(y, x.shape),
        edges=None,
        losses=losses,
        statistics=reference.statistics(spec, probs, valid, edges),
        cache=dict(tokens=tokens, valid=valid, parts=parts),
    )


def flat(values, shape):
    return values.reshape(-1, shape[-1])[: shape[0] * shape[1]].reshape(shape)


def mix(spec, x, weights):
    """Everything that becomes of the real tokens of a group, `[S, D]`."""
    kernel, scale = weights["kernel"], weights["scale"]
    length = np.sqrt((x**2).sum(-1, keepdims=True) + EPSILON)
    width = np.sqrt((kernel**2).sum(0, keepdims=True) + EPSILON)
    logits = (x / length) @ (scale * kernel / width)  # [S, N]
    dispatch = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)
    combine = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mixtures = dispatch.T @ x  # [N, D]
    rows = [
        reference.feed_forward(spec, row, weights, edge_of(spec, n, kernel))
        for n, row in enumerate(mixtures)
    ]
    return dict(
        x=x,
        length=length,
        width=width,
        logits=logits,
        dispatch=dispatch,
        combine=combine,
        mixtures=mixtures,
        outputs=np.array(rows),
    )


def edge_of(spec, n, kernel):
    slots = kernel.shape[1] // spec.num_experts
    return reference.Edge(0, n // slots, 0, 1.0, True)


def gradients(spec, x, weights, dy, padding_mask=None):
    """d sum(y * dy) / d(x, each weight)."""
    cache = layer(spec, x, weights, padding_mask).cache
    dy, _ = reference.group(np.asarray(dy, np.float64), None, spec.group_size)
    grads = {name: np.zeros(np.shape(w)) for name, w in weights.items()}
    dx = np.zeros_like(cache["tokens"])
    for g, part in enumerate(cache["parts"]):
        valid = cache["valid"][g]
        if valid.any():
            dx[g, valid] = of_group(spec, part, weights, dy[g, valid], grads)
    return {"x": flat(dx, x.shape), **grads}


def of_group(spec, part, weights, dy, grads):
    x, dispatch, combine = part["x"], part["dispatch"], part["combine"]
    kernel, scale = weights["kernel"], weights["scale"]
    doutputs = combine.T @ dy
    dmixtures = np.array(
        [
            reference_gradients.feed_forward_gradient(
                spec, row, weights, edge_of(spec, n, kernel), dout, grads
            )
            for n, (row, dout) in enumerate(
                zip(part["mixtures"], doutputs, strict=True)
            )
        ]
    )
    dx = dispatch @ dmixtures
    dcombine, ddispatch = dy @ part["outputs"].T, x @ dmixtures.T
    dlogits = combine * (dcombine - (combine * dcombine).sum(1, keepdims=True))
    dlogits += dispatch * (
        ddispatch - (dispatch * ddispatch).sum(0, keepdims=True)
    )
    unit, columns = x / part["length"], kernel / part["width"]
    dunit, dcolumns = dlogits @ (scale * columns).T, scale * (unit.T @ dlogits)
    grads["scale"] += (unit.T @ dlogits * columns).sum()
    along = (columns * dcolumns).sum(0, keepdims=True)
    grads["kernel"] += (dcolumns - columns * along) / part["width"]
    along = (unit * dunit).sum(1, keepdims=True)
    return dx + (dunit - unit * along) / part["length"]

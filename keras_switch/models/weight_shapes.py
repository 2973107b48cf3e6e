"""The weights of a model and their shapes, without building it."""

import random
from collections.abc import Mapping
from typing import Any

from keras_switch.layers.feed_forward import kernel_names
from keras_switch.layers.routers import get_router
from keras_switch.models.backbone_arguments import (
    is_decoder_only,
    sparse_stacks,
)
from keras_switch.ops.layout import undistributed

Shapes = dict[str, tuple[int, ...]]


def weight_shapes(arguments: Mapping[str, Any]) -> Shapes:
    """Shapes of the weights of a backbone, by their paths.

    Those that are not trained are left out: of a router, and random states.

    Args:
        arguments: All arguments of a `SwitchBackbone` or of a
            `SwitchCausalBackbone`, by name.

    Returns:
        A dict of tuples.
    """
    width, rows = arguments["hidden_dim"], arguments["vocabulary_size"]
    shapes = {"token_embedding/embeddings": (rows, width)}
    if not arguments["tie_embedding_weights"]:
        shapes["token_embedding/reverse_embeddings"] = (width, rows)
    if is_decoder_only(arguments):
        return {**shapes, **_decoder_only(arguments)}
    stacks = zip(("encoder", "decoder"), sparse_stacks(arguments), strict=True)
    for stack, sparse in stacks:
        router = _router(arguments, stack)
        shapes |= _relative_bias(arguments, f"{stack}_relative_attention_bias")
        attentions = ["self_attention"]
        attentions += ["cross_attention"] if stack == "decoder" else []
        for i in range(arguments[f"num_{stack}_layers"]):
            layer = f"{stack}_layer_{i}"
            own = router if i in sparse else None
            shapes |= _layer(arguments, layer, attentions, own)
        shapes |= _norm(arguments, f"{stack}_layer_norm")
    return shapes


def head_counts(arguments: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """How many heads the products of attention have.

    Args:
        arguments: As in `weight_shapes`.

    Returns:
        For each product, the argument that says so, and the number.
    """
    queries = ("num_heads", arguments["num_heads"])
    shared = arguments.get("num_key_value_heads")
    keys = ("num_key_value_heads", shared) if shared else queries
    return {"query": queries, "output": queries, "key": keys, "value": keys}


def _decoder_only(arguments):
    shapes = {}
    if arguments["position"] == "learned":
        length = arguments["max_sequence_length"]
        shape = (length, arguments["hidden_dim"])
        shapes["position_embedding/embeddings"] = shape
    (sparse,) = sparse_stacks(arguments)
    router = _router(arguments, "decoder")
    for i in range(arguments["num_layers"]):
        if arguments["position"] == "relative":
            shapes |= _relative_bias(arguments, f"relative_attention_bias_{i}")
        layer = f"transformer_layer_{i}"
        own = router if i in sparse else None
        shapes |= _layer(arguments, layer, ["self_attention"], own)
    return {**shapes, **_norm(arguments, "layer_norm")}


def _relative_bias(arguments, path):
    buckets = arguments["relative_attention_num_buckets"]
    return {f"{path}/embeddings": (buckets, arguments["num_heads"])}


def _layer(arguments, path, attentions, router):
    shapes = {}
    for attention in attentions:
        shapes |= _attention(arguments, f"{path}/{attention}")
        shapes |= _norm(arguments, f"{path}/{attention}_norm")
    shapes |= _feed_forward(arguments, f"{path}/feed_forward", router)
    shapes |= _norm(arguments, f"{path}/feed_forward_norm")
    if router is None or not arguments["extra_feed_forward"]:
        return shapes
    shapes |= _feed_forward(arguments, f"{path}/extra_feed_forward", None)
    return {**shapes, **_norm(arguments, f"{path}/extra_feed_forward_norm")}


def _norm(arguments, path):
    names = ["scale"]
    names += ["bias"] if arguments.get("norm") == "layer" else []
    return {f"{path}/{name}": (arguments["hidden_dim"],) for name in names}


def _attention(arguments, path):
    width, heads = arguments["hidden_dim"], arguments["num_heads"]
    head = arguments["key_value_dim"] or width // heads
    inner = heads * head
    shared = head * (arguments.get("num_key_value_heads") or heads)
    kernels = {
        "query": (width, inner),
        "key": (width, shared),
        "value": (width, shared),
        "output": (inner, width),
    }
    return _with_biases(arguments, path, kernels)


def _with_biases(arguments, path, kernels):
    shapes = {f"{path}/{n}/kernel": shape for n, shape in kernels.items()}
    if arguments.get("use_bias"):
        for name, (*experts, _, units) in kernels.items():
            bias = (*experts, 1, units) if experts else (units,)
            shapes[f"{path}/{name}/bias"] = bias
    return shapes


def _feed_forward(arguments, path, router):
    width, hidden = arguments["hidden_dim"], arguments["intermediate_dim"]
    activation, experts, within = arguments["activation"], (), path
    if router is not None:
        hidden = arguments.get("expert_intermediate_dim") or hidden
        activation = arguments.get("expert_activation") or activation
        experts, within = (arguments["num_experts"],), f"{path}/experts"
    kernels = {
        name: (*experts, width, hidden) for name in kernel_names(activation)
    }
    kernels["wo"] = (*experts, hidden, width)
    if router is None:
        return _with_biases(arguments, within, kernels)
    blocks, places = arguments["expert_blocks"], [within]
    if blocks > 1:
        places = [f"{within}/block_{i}" for i in range(blocks)]
    shapes = {}
    for place in places:
        shapes |= _with_biases(arguments, place, kernels)
    hidden *= arguments["num_shared_experts"]
    if hidden:
        shared = dict.fromkeys(kernel_names(activation), (width, hidden))
        shared["wo"] = (hidden, width)
        shapes |= _with_biases(arguments, f"{path}/shared_expert", shared)
    for name, shape in router.items():
        shapes[f"{path}/router/{name}"] = shape
    return shapes


def _router(arguments, stack):
    if not any(sparse_stacks(arguments)):
        return None  # nor need there be a number of experts
    identifier = arguments["router"]
    if stack == "decoder":
        identifier = arguments.get("decoder_router") or identifier
    state = random.getstate()  # a router draws its seed from it
    try:
        with undistributed():  # its state is not the model's
            router = get_router(identifier, arguments["num_experts"])
    finally:
        random.setstate(state)
    return router.trainable_shapes(arguments["hidden_dim"])

"""Dense models to sparse ones: each expert starts as the dense layer."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_switch.convert.rules import variables
from keras_switch.layers import SwitchRouter
from keras_switch.layers.validation import check_number
from keras_switch.models import SwitchBackbone, SwitchSeq2SeqLM
from keras_switch.models.backbone_arguments import check_known, sparse_stacks

# Arguments of `SwitchBackbone` that change no weight of the dense model.
_ARGUMENTS = (
    "capacity",
    "capacity_factor",
    "decoder_router",
    "dispatch",
    "dropout",
    "eval_capacity_factor",
    "expert_dropout",
    "group_size",
    "min_capacity",
)
_EXPERTS, _ROUTER = "/feed_forward/experts/", "/feed_forward/router/"


def upcycle(
    dense: SwitchBackbone | SwitchSeq2SeqLM,
    num_experts: int,
    encoder_sparse_step: int | list[int] = 2,
    decoder_sparse_step: int | list[int] = 2,
    router: Any = "switch",
    noise: float = 0.0,
    seed: int | None = None,
    optimizer: Any = None,
    **arguments: Any,
) -> SwitchBackbone | SwitchSeq2SeqLM:
    """Makes a sparse model of a dense one.

    Every expert of a layer that becomes sparse is a copy of the layer's dense
    feed-forward, its router is drawn anew, and all other weights are
    bit-equal to the dense model's. `dense` is left as it is.

    With `router="switch"` and no drops, the output differs from the dense
    model's by the gates alone, which multiply each sparse layer's output by
    the router's probability, about `1 / num_experts` at first. With
    `router=UnitGateRouter()`, or `TopKRouter(k=2, second_policy="all")`, and
    without noise, it is the dense model's.

    Args:
        dense: A `SwitchBackbone` without sparse layers, or a `SwitchSeq2SeqLM`
            around one. Its preprocessor is shared.
        num_experts: Experts of a sparse layer, at least 1.
        encoder_sparse_step: Every how many encoder layers one becomes sparse:
            1 is all, 0 is none. Or a list of the indices of these layers.
        decoder_sparse_step: The same for the decoder.
        router: Router of the sparse layers; see `SwitchLayer`.
        noise: Standard deviation of Gaussian noise added to the kernels of
            every expert, as a multiple of the standard deviation of the dense
            kernel; at least 0.
        seed: Of the routers' kernels and of the noise. `None`: drawn from
            NumPy's global state, which `keras.utils.set_random_seed` sets.
        optimizer: `None` drops the state of the dense model's optimizer. A
            new optimizer of the same class is built for the sparse model and
            takes over the state; see `upcycle_optimizer`. Pass it on to
            `compile`.
        **arguments: Other arguments of `SwitchBackbone` that concern sparse
            layers, and `dropout`. The default is what the dense model says,
            for `decoder_router` it is `router`.

    Returns:
        A model of the kind of `dense`, of its dtype.

    Raises:
        ValueError: if `dense` has a sparse layer already or is quantized, if
            no layer would become sparse, or if an argument is unknown or out
            of its range.

    Example:

    ```python
    dense = keras_switch.SwitchSeq2SeqLM.from_preset("runs/t5_mini/preset")
    sparse = keras_switch.convert.upcycle(dense, num_experts=8)
    sparse.save_to_preset("runs/upcycled")
    ```

    Reference:
        [Sparse Upcycling (Komatsuzaki et al., 2022)](https://arxiv.org/abs/2212.05055)
    """
    check_number("noise", noise, at_least=0)
    if seed is None:
        seed = np.random.randint(2**31)
    check_number("seed", seed, whole=True, at_least=0)
    check_known("upcycle", arguments, _ARGUMENTS)
    if optimizer is not None:
        _optimizer("dense", dense)
    is_task = isinstance(dense, SwitchSeq2SeqLM)
    backbone = dense.backbone if is_task else dense
    config = _dense_config(backbone) | {"decoder_router": None} | arguments
    config |= {
        "num_experts": num_experts,
        "encoder_sparse_step": encoder_sparse_step,
        "decoder_sparse_step": decoder_sparse_step,
        "router": router,
    }
    _check_some_sparse(config)
    sparse = SwitchBackbone.from_config(config)
    _fill(backbone, sparse, noise, np.random.default_rng(seed))
    model = SwitchSeq2SeqLM(sparse, dense.preprocessor) if is_task else sparse
    if optimizer is not None:
        optimizer.build(model.trainable_variables)
        upcycle_optimizer(dense, optimizer)
    return model


def _dense_config(backbone):
    if not isinstance(backbone, SwitchBackbone):
        raise ValueError(
            "dense must be a SwitchBackbone or a SwitchSeq2SeqLM; received "
            f"{type(backbone).__name__}."
        )
    config = backbone.get_config()
    sparse = [
        f"{stack}_layer_{index}"
        for stack, indices in zip(
            ("encoder", "decoder"), sparse_stacks(config), strict=True
        )
        for index in indices
    ]
    if sparse:
        raise ValueError(
            "dense must have no sparse layer: only a dense feed-forward can be "
            f"copied to experts; received one with {', '.join(sparse)} sparse."
        )
    for variable in variables(backbone):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if "float" not in dtype:
            raise ValueError(
                "dense must not be quantized; received one whose "
                f"{variable.path} is {dtype}."
            )
    del config["name"]
    return config


def _check_some_sparse(config):
    if not any(sparse_stacks(config)):
        steps = ("encoder_sparse_step", "decoder_sparse_step")
        raise ValueError(
            f"{' and '.join(steps)} must make at least one layer sparse; "
            f"received {', '.join(f'{s}={config[s]}' for s in steps)}."
        )


def _fill(dense, sparse, noise, rng):
    """Assigns every weight of the sparse backbone; all is checked first."""
    targets = {v.path: v for v in variables(sparse)}
    sources = {v.path: v for v in variables(dense)}
    _check_paths(targets, sources)
    for path, target in targets.items():
        if _ROUTER in path:
            continue
        source = sources[_path_in_dense(path)]
        if _EXPERTS in path:
            target.assign(_experts(source, target.shape[0], noise, rng))
        else:
            target.assign(_own(source))
    _draw_routers(sparse, rng)


def _path_in_dense(path):
    return path.replace(_EXPERTS, "/feed_forward/")


def _check_paths(targets, sources):
    """Each source must fill a target, and each target have a source."""
    filled = {p: _path_in_dense(p) for p in targets if _ROUTER not in p}
    missing = sorted(set(filled.values()) - set(sources))
    unused = sorted(set(sources) - set(filled.values()))
    if missing or unused:
        raise ValueError(
            "dense must have the weights of a plain SwitchBackbone; received "
            f"one with {', '.join(unused) or 'none'} beyond them and "
            f"{', '.join(missing) or 'none'} missing."
        )
    for path, source_path in filled.items():
        target, source = targets[path], sources[source_path]
        shape = tuple(target.shape)
        wanted = shape[1:] if _EXPERTS in path else shape
        if tuple(source.shape) != wanted or source.dtype != target.dtype:
            raise ValueError(
                f"{source_path} must be {wanted} of dtype {target.dtype}; "
                f"received {tuple(source.shape)} of dtype {source.dtype}."
            )


def _experts(kernel, num_experts, noise, rng):
    """`[D, F]` -> `[E, D, F]`."""
    if not noise:
        return _repeat(kernel, num_experts)
    exact = ops.cast(kernel, "float32")
    scale = noise * ops.std(exact)
    experts = []
    for _ in range(num_experts):
        # By NumPy, so that a seed means the same on every backend.
        draw = rng.standard_normal(tuple(kernel.shape), dtype="float32")
        experts.append(exact + scale * ops.convert_to_tensor(draw))
    return ops.cast(ops.stack(experts), kernel.dtype)


def _repeat(value, times):
    """Along a new first axis."""
    return ops.broadcast_to(value, (times, *value.shape))


def _own(value):
    # JAX would let two models hold one array, and a training step of the one
    # donates it: the other's would be gone.
    return ops.copy(value)


def _draw_routers(sparse, rng):
    """Draws the routers' kernels again, by the seed."""
    layers = sparse.encoder_transformer_layers
    for layer in [*layers, *sparse.decoder_transformer_layers]:
        router = getattr(layer.feed_forward, "router", None)
        if router is None or not router.trainable_weights:
            continue
        width = router.kernel.shape[0]
        draw = keras.initializers.TruncatedNormal(
            stddev=(router.init_scale / width) ** 0.5,
            seed=int(rng.integers(2**31)),
        )
        router.kernel.assign(draw(router.kernel.shape, "float32"))


@keras.saving.register_keras_serializable(package="keras_switch")
class UnitGateRouter(SwitchRouter):
    """Top-1 router whose gate is normalised: it is always 1.

    A token's output is its expert's, unscaled, so that a model which was just
    upcycled computes what the dense one did. The gradient with respect to the
    gate is handed to the chosen expert's probability, as in `SwitchRouter`
    (a straight-through estimate). The true derivative of a gate that is
    constant is 0, and would leave the router to the auxiliary losses.

    Arguments as `Router`; `batch_prioritized`, an order by gates, is refused.

    Reference: Komatsuzaki et al. 2022 (arXiv 2212.05055), normalisation of
    combine weights.
    """

    def __init__(self, num_experts: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_experts, **kwargs)
        if self.batch_prioritized:
            raise ValueError(
                "batch_prioritized must be False for UnitGateRouter, whose "
                "gates are all 1; received batch_prioritized=True."
            )

    def choose(self, probs, scores, training=None):
        best, gate = super().choose(probs, scores, training)
        # A difference of equals is exactly 0; a quotient may not be 1.
        return best, 1.0 + (gate - ops.stop_gradient(gate))


def upcycle_optimizer(dense: Any, sparse: Any) -> None:
    """Copies the state of a dense model's optimizer to a sparse model's.

    The number of steps and the slots of weights that both models have are
    copied. Slots of a dense feed-forward are repeated for every expert,
    whether they have the kernel's shape (Adam, momentum) or lack an axis
    (`keras_switch.optimizers.Adafactor`). Slots of routers, and the learning
    rate, stay as they are in the new optimizer.

    Slots are told apart by their names, so optimizers that do not name them
    after the weight, as Nadam and `keras.optimizers.Adafactor`, are refused.

    Args:
        dense: The dense model, compiled and trained, or its optimizer.
        sparse: The sparse model, compiled, or its optimizer, which must be
            built and not have made a step.

    Raises:
        ValueError: if the optimizers do not match, slot by slot. Nothing has
            been changed then.

    Example:

    ```python
    sparse = keras_switch.convert.upcycle(dense, num_experts=8)
    sparse.compile(keras_switch.optimizers.Adafactor(1e-3))
    keras_switch.convert.upcycle_optimizer(dense, sparse)
    ```
    """
    sources, targets = _optimizer("dense", dense), _optimizer("sparse", sparse)
    if _kinds(sources) != _kinds(targets):
        raise ValueError(
            "sparse must have an optimizer of the dense model's class, "
            f"{_kinds(sources)}; received {_kinds(targets)}."
        )
    if int(ops.convert_to_numpy(targets.iterations)):
        raise ValueError(
            "sparse must have an optimizer that has not made a step; received "
            f"one after {int(ops.convert_to_numpy(targets.iterations))}."
        )
    for target, source in _slot_pairs(_slots(sources), _slots(targets)):
        if len(target.shape) > len(source.shape):
            target.assign(_repeat(source, target.shape[0]))
        else:
            target.assign(_own(source))


def _optimizer(name, owner):
    optimizer = owner
    if isinstance(owner, keras.Model):
        optimizer = getattr(owner, "optimizer", None)
        if name == "sparse" and optimizer is not None and not optimizer.built:
            optimizer.build(owner.trainable_variables)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            f"{name} must be a compiled model or an optimizer; received "
            f"{type(owner).__name__} with optimizer={optimizer}."
        )
    if not optimizer.built:
        raise ValueError(
            f"{name} must have an optimizer that is built; received a "
            f"{_kinds(optimizer)} that has seen no weight yet."
        )
    if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
        raise ValueError(
            f"{name} must have an optimizer with use_ema=False: no average of "
            "a new router exists; received use_ema=True."
        )
    return optimizer


def _kinds(optimizer):
    """`"LossScaleOptimizer(Adam)"` where one wraps another."""
    kind = type(optimizer).__name__
    inner = getattr(optimizer, "inner_optimizer", None)
    return kind if inner is None else f"{kind}({_kinds(inner)})"


def _slots(optimizer):
    """The state of an optimizer by name, without the learning rate."""
    slots = {}
    for variable in optimizer.variables:
        name = variable.path.rpartition("/")[2]
        if name == "learning_rate":
            continue
        if name == "iteration":
            # Where one optimizer wraps another, each counts.
            name += f"_{sum(n.startswith(name) for n in slots)}"
        if name in slots:
            raise ValueError(
                "An optimizer must name its slots after the weights; received "
                f"{_kinds(optimizer)}, which has several called {name!r}."
            )
        slots[name] = variable
    return slots


def _slot_pairs(sources, targets):
    """`[(slot of the sparse model, its source)]`, without those of routers."""
    experts, router = (p.replace("/", "_") for p in (_EXPERTS, _ROUTER))
    filled = {
        name: name.replace(experts, "_feed_forward_")
        for name in targets
        if router not in name
    }
    odd = sorted(set(sources) ^ set(filled.values()))
    if odd:
        raise ValueError(
            "sparse must have the slots of the dense model's optimizer, and "
            f"no others but of routers; received {len(odd)} that only one of "
            f"them has, among them {odd[0]}."
        )
    pairs = [(targets[name], sources[filled[name]]) for name in filled]
    for name, (target, source) in zip(filled, pairs, strict=True):
        shape, lead = tuple(target.shape), 1 if experts in name else 0
        if tuple(source.shape) != shape[lead:] or len(shape) < lead:
            raise ValueError(
                f"Slot {filled[name]} must be {shape[lead:]}, to fill {name} "
                f"of {shape}; received {tuple(source.shape)}."
            )
    return pairs

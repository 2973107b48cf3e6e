"""SwitchLayer: group -> route -> dispatch -> experts -> combine."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.capacity import Capacity, slots_of, smaller
from keras_switch.layers.expert_stack import ExpertStack
from keras_switch.layers.experts import Experts
from keras_switch.layers.feed_forward import FeedForward, get_activation
from keras_switch.layers.grouping import group, ungroup
from keras_switch.layers.policies import policy_config
from keras_switch.layers.routers import get_router
from keras_switch.layers.routes import RouterIndices
from keras_switch.layers.transfer import DISPATCHES, transfer
from keras_switch.layers.validation import (
    check_choice,
    check_number,
    check_rank,
    checked_ids,
    checked_mask,
)


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchLayer(keras.layers.Layer):
    """Sparse mixture of feed-forward experts, in place of a dense one.

    A router sends each token to one expert (or a few), and the expert's
    output, times the router's gate, is the layer's. In training an expert of a
    group of tokens takes as many as its capacity; a token over it is dropped:
    its output is exactly 0, and the residual connection around the layer
    carries it. In evaluation there is no capacity (unless
    `eval_capacity_factor` is given), so an example's output does not depend on
    what it is batched with.

    In training the router's auxiliary losses are added by `add_loss`. What the
    router did in the last call stands in `routing_stats.value`;
    `RoutingMonitor` shows it while `fit` runs.

    Args:
        num_experts: int, at least 1.
        intermediate_dim: int, hidden width of each expert, `F`.
        router: `"switch"` (top-1), `"top_k"`, or another name of
            `docs/routers.md`; or a `keras_switch.Router`, of which the layer
            makes its own copy.
        dispatch: how tokens travel in training: `"gather"`, `"einsum"`, or
            `"dropless"`, without a capacity. All give the same result.
        capacity_factor: float above 0. Capacity is
            `max(min_capacity, ceil(capacity_factor * S / num_experts))`, at
            most `S`, for groups of `S` tokens.
        eval_capacity_factor: `None` for dropless evaluation, or a float above
            0 (the paper's is 2.0), with which an example's output depends on
            the tokens it shares a group with.
        min_capacity: int, at least 1; nothing to experts that choose.
        capacity: `None`, or int, at least 1: slots of an expert in a group,
            in training and in evaluation, in place of both factors.
            Checkpoints of `transformers` call it `expert_capacity`.
        group_size: `None` for groups of one sequence; or int, tokens of a
            group taken from the flattened batch. Over a mesh no group is of
            two devices: it has at most the tokens of one.
        activation: a Keras activation, or `"gated-"` and one.
        dropout: float in `[0, 1)`, after the experts' activation.
        expert_dropout: optional float, takes the place of `dropout` here
            (the paper fine-tunes with 0.4 here and 0.1 elsewhere).
        init_scale: float; kernels are truncated normal with standard deviation
            `sqrt(init_scale / fan_in)`.
        use_bias: bool, whether the experts' products have biases.
        num_shared_experts: int, at least 0. Experts that every token goes to
            besides those of its routes, with a gate of 1 and never dropped:
            together one dense feed-forward of so many times
            `intermediate_dim`, whose output is added (DeepSeekMoE, arXiv
            2401.06066, section 3.2).
        expert_blocks: int, at least 1. With more, an expert is a stack of so
            many feed-forwards, each normed and residual; see `ExpertStack`.

    Call arguments:
        x: `[B, T, D]`.
        padding_mask: optional `[B, T]`, nonzero for real tokens. Padding takes
            no capacity and no part in losses and statistics; its output is 0.
        training: bool.
        return_routing: bool, to return the routes too.
        record: bool, whether to write `routing_stats`. A decode step does not.
        token_ids: optional int `[B, T]`, for a router that looks up tokens.

    Returns:
        `[B, T, D]`; with `return_routing`, also `RouterIndices` (or
        `RouterMask`). The output of a token that is not finite is NaN, and no
        other token's is touched.

    Raises:
        ValueError: for arguments out of range, an input that is not rank 3, or
            a mask of another shape than the input.

    Example:

    ```python
    inputs = keras.Input((None, 64))
    x = keras.layers.LayerNormalization()(inputs)
    x = keras_switch.SwitchLayer(num_experts=8, intermediate_dim=256)(x)
    model = keras.Model(inputs, inputs + x)
    ```

    Reference: Fedus et al. 2022, Switch Transformers (arXiv 2101.03961),
    section 2.
    """

    def __init__(
        self,
        num_experts: int,
        intermediate_dim: int,
        router: Any = "switch",
        dispatch: str = "gather",
        capacity_factor: float = 1.25,
        eval_capacity_factor: float | None = None,
        min_capacity: int = 4,
        capacity: int | None = None,
        group_size: int | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
        expert_dropout: float | None = None,
        init_scale: float = 0.1,
        use_bias: bool = False,
        num_shared_experts: int = 0,
        expert_blocks: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("dispatch", dispatch, DISPATCHES)
        get_activation(activation)
        if capacity is not None:
            _check_has_capacity(dispatch)
        for name, value, bounds in (
            ("num_experts", num_experts, _COUNT),
            ("intermediate_dim", intermediate_dim, _COUNT),
            ("capacity_factor", capacity_factor, _SCALE),
            ("eval_capacity_factor", eval_capacity_factor, _SCALE | _OPTIONAL),
            ("min_capacity", min_capacity, _COUNT),
            ("capacity", capacity, _COUNT | _OPTIONAL),
            ("group_size", group_size, _COUNT | _OPTIONAL),
            ("dropout", dropout, _RATE),
            ("expert_dropout", expert_dropout, _RATE | _OPTIONAL),
            ("init_scale", init_scale, _SCALE),
            (
                "num_shared_experts",
                num_shared_experts,
                _COUNT | {"at_least": 0},
            ),
            ("expert_blocks", expert_blocks, _COUNT),
        ):
            setattr(self, name, check_number(name, value, **bounds))
        self.dispatch = dispatch
        self.activation = activation
        self.use_bias = use_bias
        self._make_sublayers(router)

    def _make_sublayers(self, router):
        self.router = get_router(
            router, self.num_experts, name="router", dtype=self.dtype_policy
        )
        if not self.router.num_choices and self.dispatch == "dropless":
            raise ValueError(
                "dispatch must be 'gather' or 'einsum' with this router: "
                "experts that choose their tokens have a capacity; received "
                "dispatch='dropless'."
            )
        rate = self.expert_dropout
        arguments = {
            "activation": self.activation,
            "dropout": self.dropout if rate is None else rate,
            "init_scale": self.init_scale,
            "use_bias": self.use_bias,
            "dtype": self.dtype_policy,
        }
        width = self.intermediate_dim
        kind, size = Experts, (self.num_experts, width)
        if self.expert_blocks > 1:
            kind, size = ExpertStack, (*size, self.expert_blocks)
        self.experts = kind(*size, name="experts", **arguments)
        if self.num_shared_experts:
            # Not "shared_experts": patterns of paths that mean the bank of
            # experts, such as the optimizer's "experts/", must not find it.
            self.shared_expert = FeedForward(
                self.num_shared_experts * width,
                name="shared_expert",
                **arguments,
            )

    @property
    def routing_stats(self) -> Any:
        """`RoutingStats` of the last call."""
        return self.router.stats

    @property
    def is_batch_dependent(self) -> bool:
        """Whether in evaluation a row's output may depend on other rows.

        With a capacity it does: by the tokens that share its group, and by
        how far the longest row of the batch pads it.
        """
        if not self.router.num_choices:
            return self.group_size is not None
        limits = (self.eval_capacity_factor, self.capacity)
        return self.dispatch != "dropless" and limits != (None, None)

    def build(self, x_shape: tuple) -> None:
        check_rank(x_shape)
        if x_shape[-1] is None:
            raise ValueError(
                "x must have a known last dimension; received shape "
                f"{tuple(x_shape)}."
            )
        self.hidden_dim = x_shape[-1]
        self.router.build(x_shape)
        self.experts.build(x_shape)
        if self.num_shared_experts:
            self.shared_expert.build(x_shape)
        self.built = True

    def call(
        self,
        x,
        padding_mask=None,
        training=None,
        return_routing=False,
        record=True,
        token_ids=None,
    ):
        self._check_input(x.shape)
        padding_mask = checked_mask(padding_mask, x)
        token_ids = self._checked_ids(token_ids, x)
        if 0 in tuple(x.shape):
            return (x, self._no_routes(x)) if return_routing else x
        tokens, mask, token_ids = (
            None if values is None else group(values, x, self.group_size)
            for values in (x, padding_mask, token_ids)
        )
        tokens, valid, poisoned = _set_aside_poisoned(tokens, mask)
        capacity = self.capacity_for(tokens, valid, training)
        routes = self.router(
            tokens,
            valid,
            capacity=capacity.slots,
            quota=capacity.quota,
            training=training,
            record=record,
            token_ids=token_ids,
        )
        if self.router.num_choices:
            # Finite tokens whose logits are not.
            lost = ops.isnan(routes.gate[:, : ops.shape(tokens)[1]])
            poisoned = ops.logical_or(poisoned, lost)
        outputs = transfer(self, tokens, routes, capacity.slots, training)
        if self.num_shared_experts:
            outputs = outputs + self._shared(tokens, valid, training)
        nan = ops.cast(float("nan"), outputs.dtype)
        outputs = ops.where(ops.expand_dims(poisoned, -1), nan, outputs)
        y = ungroup(outputs, x, self.group_size)  # [B, T, D]
        return (y, routes) if return_routing else y

    def _shared(self, tokens, valid, training):
        """What the shared experts add: 0 for tokens that take no part."""
        outputs = self.shared_expert(tokens, training=training)
        zero = ops.zeros((), outputs.dtype)
        return ops.where(ops.expand_dims(valid, -1), outputs, zero)

    def _check_input(self, shape):
        check_rank(shape)
        if self.built and shape[-1] != self.hidden_dim:
            raise ValueError(
                f"x must have {self.hidden_dim} as its last dimension, as when "
                f"the layer was built; received shape {tuple(shape)}."
            )

    def _no_routes(self, x):
        """What comes of an empty batch: no edge, or a mask of nothing."""
        spec = self.router.routes_spec()
        if isinstance(spec, RouterIndices):
            shapes = [(x.shape[0], 0)] * 4
        else:
            shapes = [(*x.shape[:2], *field.shape[2:]) for field in spec]
        fields = zip(shapes, spec, strict=True)
        return type(spec)(*(ops.zeros(s, field.dtype) for s, field in fields))

    def _checked_ids(self, token_ids, x):
        """`None` where the router does not ask for them."""
        if not self.router.needs_token_ids:
            return None
        return checked_ids(token_ids, x, type(self.router).__name__)

    def capacity_for(self, tokens: Any, valid: Any, training: Any) -> Capacity:
        """The room of each expert for groups of tokens.

        Args:
            tokens: `[G, S, D]`.
            valid: bool `[G, S]`, true for those that take part.
            training: bool.

        Returns:
            A `Capacity`.
        """
        dropless = self.dispatch == "dropless"
        factor = self.capacity_factor
        if not training:
            factors = (self.eval_capacity_factor, self.capacity)
            dropless = dropless or factors == (None, None)
            factor = self.eval_capacity_factor or factor
        size = ops.shape(tokens)[1]
        if self.router.num_choices:
            return Capacity(
                None if dropless else self._slots(factor, size), None
            )
        # By the tokens that are there, so that padding changes nothing.
        real = ops.sum(ops.cast(valid, "int32"), axis=-1)  # [G]
        return Capacity(self._slots(factor, size), self._slots(factor, real))

    def _slots(self, factor, tokens):
        if self.capacity is not None:
            return smaller(self.capacity, tokens)
        # Where experts choose, their quota is the factor's and no more.
        at_least = self.min_capacity if self.router.num_choices else 1
        return slots_of(tokens, self.num_experts, factor, at_least)

    def compute_output_spec(
        self,
        x,
        padding_mask=None,
        training=None,
        return_routing=False,
        record=True,
        token_ids=None,
    ):
        self._check_input(x.shape)
        checked_mask(padding_mask, x)
        self._checked_ids(token_ids, x)
        y = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        return (y, self.router.routes_spec()) if return_routing else y

    def compute_output_shape(self, x_shape: tuple, *_: Any, **__: Any) -> tuple:
        # Of the outputs alone; `TimeDistributed` asks.
        return x_shape

    def get_config(self) -> dict:
        names = (
            "num_experts",
            "intermediate_dim",
            "dispatch",
            "capacity_factor",
            "eval_capacity_factor",
            "min_capacity",
            "capacity",
            "group_size",
            "activation",
            "dropout",
            "expert_dropout",
            "init_scale",
            "use_bias",
            "num_shared_experts",
            "expert_blocks",
        )
        config = {name: getattr(self, name) for name in names}
        router = keras.saving.serialize_keras_object(self.router)
        router.pop("build_config", None)  # the copy is built by its own layer
        config["router"] = router
        return super().get_config() | config | policy_config(self)


_COUNT = {"whole": True, "at_least": 1}
_SCALE = {"above": 0}
_RATE = {"at_least": 0, "below": 1}
_OPTIONAL = {"optional": True}


def _check_has_capacity(dispatch: str) -> None:
    if dispatch == "dropless":
        raise ValueError(
            "capacity must be None with dispatch='dropless', which has none; "
            "received both."
        )


def _set_aside_poisoned(tokens: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Zeroes padding and tokens that are not finite.

    A NaN in one token must not reach another, and 0 times NaN is NaN.

    Returns:
        The tokens `[G, S, D]`; which take part, bool `[G, S]`; and which are
        real but not finite, bool `[G, S]`.
    """
    finite = ops.all(ops.isfinite(tokens), axis=-1)
    valid = ops.logical_and(mask, finite)
    zero = ops.zeros((), dtype=tokens.dtype)
    tokens = ops.where(ops.expand_dims(valid, -1), tokens, zero)
    return tokens, valid, ops.logical_and(mask, ops.logical_not(finite))

"""Soft routing: experts see mixtures of tokens, tokens mixtures of outputs."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routes import RouterMask
from keras_switch.layers.routing import Router
from keras_switch.layers.validation import check_number
from keras_switch.ops.matmul import matmul_rows

_EPSILON = 1e-6
_NEVER = -1e30


@keras.saving.register_keras_serializable(package="keras_switch")
class SoftRouter(Router):
    """Router of Soft MoE: nothing is chosen, and nothing dropped.

    An expert has `slots` inputs in a group. Each is a mean of all tokens,
    weighted by a softmax over the tokens of its logits; a token's output is a
    mean of what all slots gave, weighted by a softmax over the slots. Logits
    are cosines between tokens and the slots' columns of the kernel, times a
    learned scale. All experts have equal work, and there is no loss.

    A slot holds later tokens too, so this router cannot be used where
    generation goes left to right; `causal` is false, and a decoder refuses
    it. Capacities mean nothing here: the work of a group is that of
    `num_experts * slots` tokens, whatever its length.

    Statistics count a token at the expert that weighs most in its output.

    Args:
        num_experts: int, as `Router`.
        slots: int, at least 1, inputs of an expert in a group. The paper has
            as many slots as tokens for the work of a dense layer.
        seed: optional int.

    Returns:
        `RouterMask`.

    Reference: Puigcerver et al. 2023 (arXiv 2308.00951), sections 2.1 and
    2.3.
    """

    causal = False
    num_choices = None
    settings = ("num_experts", "slots", "seed")

    def __init__(
        self,
        num_experts: int | None = None,
        slots: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._refuse_settings(kwargs)
        super().__init__(
            num_experts,
            exploration="argmax",
            load_balancing_loss_weight=0.0,
            seed=seed,
            **kwargs,
        )
        slots = check_number("slots", slots, whole=True, at_least=1)
        self.slots = slots

    def _make_weights(self, width):
        shapes = self.trainable_shapes(width)
        starts = {
            "kernel": keras.initializers.LecunNormal(self.seed),
            "scale": "ones",
        }
        for name, shape in shapes.items():
            weight = self.add_weight(
                name=name,
                shape=shape,
                initializer=starts[name],
                dtype="float32",
                autocast=False,
            )
            setattr(self, name, weight)

    def trainable_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Of the kernel, a column for each slot, and of the scale."""
        return {"kernel": (width, self.num_experts * self.slots), "scale": ()}

    def call(
        self,
        tokens,
        padding_mask=None,
        capacity=None,
        training=None,
        quota=None,
        record=True,
        token_ids=None,
    ):
        logits = self._logits(tokens, training)  # [G, S, E * P]
        valid = ops.all(ops.isfinite(logits), axis=-1)  # [G, S]
        if padding_mask is not None:
            valid = ops.logical_and(valid, padding_mask)
        mask = ops.expand_dims(valid, -1)
        logits = ops.where(mask, logits, 0.0)
        dispatch = _softmax(ops.where(mask, logits, _NEVER), axis=1)
        combine = _softmax(logits, axis=-1)
        if record:
            self._record(logits, combine, valid)
        shape = (*ops.shape(valid), self.num_experts, self.slots)
        return RouterMask(
            *(
                ops.reshape(ops.where(mask, values, 0.0), shape)
                for values in (dispatch, combine)
            )
        )

    def _logits(self, tokens, training):
        del training
        inputs = ops.cast(tokens, "float32")
        kernel = ops.convert_to_tensor(self.kernel)
        scale = ops.convert_to_tensor(self.scale)
        return matmul_rows(_unit(inputs, -1), scale * _unit(kernel, 0))

    def _record(self, logits, combine, valid):
        shape = (*ops.shape(valid), self.num_experts, self.slots)
        probs = ops.sum(ops.reshape(combine, shape), axis=-1)  # [G, S, E]
        logits = ops.logsumexp(ops.reshape(logits, shape), axis=-1)
        first = ops.cast(ops.argmax(probs, axis=-1), "int32")
        first = ops.where(valid, first, self.num_experts)
        dropped = ops.zeros((), "float32")
        self.stats(logits, probs, first, first, dropped, valid)

    def routes_spec(self) -> RouterMask:
        """What a symbolic call returns."""
        shape = (None, None, self.num_experts, self.slots)
        return RouterMask(keras.KerasTensor(shape), keras.KerasTensor(shape))


def _unit(values: Any, axis: int) -> Any:
    """Of length 1 along an axis, as far as it is not 0."""
    squares = ops.sum(ops.square(values), axis=axis, keepdims=True)
    return values / ops.sqrt(squares + _EPSILON)


def _softmax(logits: Any, axis: int) -> Any:
    # Keras warns of a softmax over one, which is always 1.
    if logits.shape[axis] == 1:
        return ops.ones_like(logits)
    # Not `ops.softmax`: XLA walks its gradient over tokens column by column,
    # 20 times slower for 4,096 tokens and as many slots on a CPU.
    return ops.exp(logits - ops.logsumexp(logits, axis=axis, keepdims=True))

"""Adafactor as T5X runs it, with one set of statistics per expert."""

import math
import re
from typing import NamedTuple

import keras
from keras import ops

# Kernels and biases of a bank of experts, and of a stack of them; not all that
# lies in a block which somebody has named so.
EXPERT_PATTERN = r"(^|/)experts/(block_\d+/)?w[io](_\d)?/"


@keras.saving.register_keras_serializable(package="keras_switch")
class Adafactor(keras.optimizers.Optimizer):
    """Adafactor for sparse models: small state, each expert on its own.

    The second moment of a matrix is kept as the means of its rows and of its
    columns, so the state of a model is far below one percent of its weights.
    Where a variable holds the kernels of `E` experts stacked on axis 0, that
    axis is a batch axis: every expert has its own row and column means, its
    own update clipping and its own parameter scale, as if it were a variable
    of its own. An expert with few tokens is then not slowed down by one with
    many.

    `keras.optimizers.Adafactor` keeps a full-size second moment beside the
    factored one, caps the learning rate at `1 / sqrt(step)` and shares one
    clip and one scale among all experts; this one does not.

    At step `t = iterations - step_offset` (from 0), in float32:

    ```
    decay  = 1 - (t + 1) ** -decay_rate
    v      = decay * v + (1 - decay) * (gradient ** 2 + epsilon_1)
    update = gradient / sqrt(v)
    update = update / max(1, rms(update) / clip_threshold)
    update = update * learning_rate * max(rms(variable), epsilon_2)
    ```

    where a factored `v` is `rows * columns / mean(rows)`. With `beta_1` the
    scaled update is averaged as well, which costs one full-size float32 slot
    per variable. Weight decay is Keras': `variable -= learning_rate *
    weight_decay * variable`, before the update.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules` schedule or a
            callable. With `multiply_by_parameter_scale` it is relative to the
            size of each variable: T5 pre-trains with
            `keras_switch.schedules.InverseSquareRoot(1.0, 10_000)`.
        decay_rate: Exponent of the second moment's decay, positive.
        step_offset: Steps to subtract before the decay is computed; T5
            fine-tunes with the number of pre-training steps, so that the
            statistics start anew.
        clip_threshold: Largest root mean square of an update before the
            learning rate. `None` turns clipping off.
        multiply_by_parameter_scale: Whether the step is relative to the root
            mean square of the variable.
        min_dim_to_factor: A second moment is factored only if the two largest
            axes, the expert axis not counted, have this size or more.
        epsilon_1: Added to the squared gradient.
        epsilon_2: Smallest parameter scale, so that zeros can move.
        beta_1: Decay of the first moment, or `None` for no momentum.
        expert_pattern: Regular expression. A variable is a stack of experts
            if the pattern is found in its path and it has two axes or more.
            `None`: no variable is.
        weight_decay: Weight decay, or `None`.
        **kwargs: Other arguments of `keras.optimizers.Optimizer`, such as
            `global_clipnorm` and `gradient_accumulation_steps`.

    Example:

    ```python
    optimizer = keras_switch.optimizers.Adafactor(
        keras_switch.schedules.InverseSquareRoot(1.0, warmup_steps=10_000)
    )
    model.compile(optimizer)
    ```

    Reference:
        [Adafactor (Shazeer and Stern, 2018)](https://arxiv.org/abs/1804.04235)
        Algorithm 4 and section 8, with T5X's batch axes.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        decay_rate: float = 0.8,
        step_offset: int = 0,
        clip_threshold: float | None = 1.0,
        multiply_by_parameter_scale: bool = True,
        min_dim_to_factor: int = 128,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        beta_1: float | None = None,
        expert_pattern: str | None = EXPERT_PATTERN,
        weight_decay: float | None = None,
        name: str = "adafactor",
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            name=name,
            **kwargs,
        )
        self.decay_rate = _positive("decay_rate", decay_rate)
        self.step_offset = step_offset
        self.clip_threshold = clip_threshold
        if clip_threshold is not None:
            _positive("clip_threshold", clip_threshold)
        self.multiply_by_parameter_scale = multiply_by_parameter_scale
        self.min_dim_to_factor = _positive(
            "min_dim_to_factor", min_dim_to_factor
        )
        self.epsilon_1 = _positive("epsilon_1", epsilon_1)
        self.epsilon_2 = _positive("epsilon_2", epsilon_2)
        if beta_1 is not None and not 0 <= beta_1 < 1:
            raise ValueError(
                f"beta_1 must be None or in [0, 1); received beta_1={beta_1}."
            )
        self.beta_1 = beta_1
        self.expert_pattern = expert_pattern

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # TensorFlow hands update_step its own variable, which has no path.
        self._plans = [self._plan(v.shape, v.path) for v in variables]
        self._slots = [self._make_slots(variable) for variable in variables]

    def slot_shapes(
        self, shape: tuple[int, ...], path: str
    ) -> dict[str, tuple[int, ...]]:
        """The state kept for a variable, without making it.

        Args:
            shape: Shape of the variable.
            path: Its path, for `expert_pattern`.

        Returns:
            A dict from slot name to shape: `row` and `column` if the second
            moment is factored, else `second_moment`; and `momentum` if there
            is a `beta_1`.
        """
        plan = self._plan(shape, path)
        momentum = {} if self.beta_1 is None else {"momentum": tuple(shape)}
        if plan.factored is None:
            return {"second_moment": tuple(shape), **momentum}
        small, large = plan.factored
        return {
            "row": _without(shape, large),
            "column": _without(shape, small),
            **momentum,
        }

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        plan, slots = self._plans[index], self._slots[index]
        # TensorFlow's gradient of an embedding lists rows, some of them twice,
        # whose squares must not be taken one by one: adding makes it dense.
        gradient = ops.add(ops.cast(gradient, "float32"), 0.0)
        value = ops.cast(variable, "float32")

        update = gradient * self._inverse_root(gradient, plan, slots)
        if self.clip_threshold is not None:
            excess = _rms(update, plan.averaged) / self.clip_threshold
            update = update / ops.maximum(excess, 1.0)
        update = update * ops.cast(learning_rate, "float32")
        if self.multiply_by_parameter_scale:
            scale = _rms(value, plan.averaged)
            update = update * ops.maximum(scale, self.epsilon_2)
        if self.beta_1 is not None:
            update = (
                self.beta_1 * slots["momentum"] + (1 - self.beta_1) * update
            )
            self.assign(slots["momentum"], update)
        self.assign(variable, ops.cast(value - update, variable.dtype))

    def get_config(self):
        config = super().get_config()
        config.update(
            decay_rate=self.decay_rate,
            step_offset=self.step_offset,
            clip_threshold=self.clip_threshold,
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            min_dim_to_factor=self.min_dim_to_factor,
            epsilon_1=self.epsilon_1,
            epsilon_2=self.epsilon_2,
            beta_1=self.beta_1,
            expert_pattern=self.expert_pattern,
        )
        return config

    def _make_slots(self, variable):
        if self._overwrite_variable_with_gradient(variable):
            return None
        prefix = variable.path.replace("/", "_")
        # float32 whatever the variable's dtype: in bfloat16 the mean of the
        # squares stops moving once decay is close to 1.
        shape = tuple(variable.shape)
        layouts = self._slot_layouts(variable)
        return {
            name: self.add_variable(
                of_slot,
                dtype="float32",
                name=f"{prefix}_{name}",
                layout=layouts.get(name),
            )
            for name, of_slot in self.slot_shapes(shape, variable.path).items()
        }

    def _slot_layouts(self, variable):
        """Slots lie where their variable does."""
        layout = getattr(variable, "_layout", None)
        if layout is None:
            return {}
        shape = tuple(variable.shape)
        return {
            name: keras.distribution.TensorLayout(
                self.slot_axes(name, shape, variable.path, layout.axes),
                layout.device_mesh,
            )
            for name in self.slot_shapes(shape, variable.path)
        }

    def slot_axes(
        self, name: str, shape: tuple[int, ...], path: str, axes: tuple
    ) -> tuple:
        """The axes of a mesh that split a slot.

        Args:
            name: Of the slot, one of `slot_shapes`.
            shape: Shape of the variable.
            path: Its path.
            axes: For each of its axes, what splits it.
        """
        plan = self._plan(shape, path)
        if name not in ("row", "column"):
            return tuple(axes)
        small, large = plan.factored
        return _without(axes, large if name == "row" else small)

    def _plan(self, shape, path):
        stacked = (
            self.expert_pattern is not None
            and len(shape) >= 2
            and re.search(self.expert_pattern, path) is not None
        )
        averaged = tuple(range(1 if stacked else 0, len(shape)))
        by_size = sorted(averaged, key=lambda axis: shape[axis])
        factored = None
        if len(by_size) >= 2 and shape[by_size[-2]] >= self.min_dim_to_factor:
            factored = (by_size[-2], by_size[-1])
        return _Plan(averaged, factored)

    def _inverse_root(self, gradient, plan, slots):
        """Moves the second moment and returns its `** -0.5`, [1 or shape]."""
        squares = ops.square(gradient) + self.epsilon_1
        if plan.factored is None:
            return ops.rsqrt(self._move(slots["second_moment"], squares))
        small, large = plan.factored
        rows = self._move(slots["row"], ops.mean(squares, axis=large))
        columns = self._move(slots["column"], ops.mean(squares, axis=small))
        rows = ops.expand_dims(rows, large)
        columns = ops.expand_dims(columns, small)
        rows = rows / ops.mean(rows, axis=small, keepdims=True)
        # Two roots, not the root of a product: that would underflow.
        return ops.rsqrt(rows) * ops.rsqrt(columns)

    def _move(self, slot, new):
        step = ops.cast(self.iterations - self.step_offset, "float32")
        # An offset beyond the present step must not make decay negative.
        step = ops.maximum(step, 0.0)
        decay = 1.0 - ops.power(step + 1.0, -self.decay_rate)
        moved = decay * slot + (1.0 - decay) * new
        self.assign(slot, moved)
        return moved


class _Plan(NamedTuple):
    """Which axes of a variable play which part."""

    averaged: tuple[int, ...]  # axes that share one clip and one scale
    factored: tuple[int, int] | None  # the smaller and the larger, or neither


def _rms(x, axis):
    if not axis:
        return ops.abs(x)
    return ops.sqrt(ops.mean(ops.square(x), axis=axis, keepdims=True))


def _without(shape, axis):
    return tuple(size for i, size in enumerate(shape) if i != axis)


def _positive(name, value):
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(
            f"{name} must be a positive number; received {name}={value}."
        )
    return value

"""The bank of experts: E feed-forwards that know neither tokens nor routes."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_switch.layers import feed_forward
from keras_switch.ops import matmul
from keras_switch.ops.expert_loop import (
    can_loop,
    loop_over_experts,
    with_gradient_of,
)
from keras_switch.ops.expert_matmul import expert_matmul, fewest_rows
from keras_switch.ops.grouped_matmul import (
    grouped_feed_forward,
    grouped_matmul,
)
from keras_switch.ops.indexing import static_size
from keras_switch.ops.row_matmul import matmul_by_row


@keras.saving.register_keras_serializable(package="keras_switch")
class Experts(keras.layers.Layer):
    """`num_experts` feed-forwards side by side, without biases.

    Kernels are `EinsumDense` layers, which brings quantization and LoRA. Each
    expert is initialised with its own fan: a Glorot initializer would take the
    expert axis for a receptive field.

    Args:
        num_experts: int, `E`.
        intermediate_dim: int, `F`.
        activation, dropout, init_scale: as `FeedForward`.

    Call arguments:
        x: buffers `[G, E, C, D]`; or rows `[N, D]` sorted by expert.
        sizes: with rows, int32 `[E]`: how many belong to each expert.
        training: bool.

    Returns:
        The shape of `x`.
    """

    def __init__(
        self,
        num_experts: int,
        intermediate_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        init_scale: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_experts = num_experts
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.dropout = dropout
        self.init_scale = init_scale
        self._activation = feed_forward.get_activation(activation)
        self._dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        self._wi = [
            self._dense(name, width, self.intermediate_dim)
            for name in feed_forward.kernel_names(self.activation)
        ]
        self.wo = self._dense("wo", self.intermediate_dim, width)
        self.built = True

    def _dense(self, name: str, fan_in: int, units: int) -> Any:
        layer = keras.layers.EinsumDense(
            "end,edf->enf",
            output_shape=(None, units),
            kernel_initializer=feed_forward.initializer(
                self.init_scale, fan_in
            ),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build((self.num_experts, None, fan_in))
        return layer

    @property
    def quantized(self) -> bool:
        """Whether kernels are no longer plain float matrices."""
        return self.wo.quantization_mode not in (None, "float8")

    def call(self, x, sizes=None, expert_index=None, training=None):
        def apply(dense, x):
            if sizes is not None:
                return grouped_matmul(x, sizes, ops.cast(dense.kernel, x.dtype))
            if expert_index is not None:
                kernel = ops.cast(dense.kernel, x.dtype)
                return matmul_by_row(x, expert_index, kernel)
            # In training rows depend on their batch by capacity and dropout.
            if dense.quantization_mode is not None:
                fewest = 0 if training else matmul.fewest_rows(x.shape[-1])
                return _with_enough_rows(dense, x, fewest)
            kernel = ops.cast(dense.kernel, x.dtype)
            multiply = functools.partial(
                expert_matmul, kernel=kernel, same_bits=not training
            )
            fewest = 0 if training else fewest_rows(kernel)
            return _with_enough_rows(multiply, x, fewest)

        if len(x.shape) == 4:
            return self._call_buffers(x, apply, training)
        if sizes is not None and not training:
            return self._evaluate(x, sizes)
        return self._feed_forward(x, apply, training)

    def _evaluate(self, x, sizes):
        """Whole feed-forwards on sorted rows; gradients as in training."""

        def call(multiply, rows, *kernels):
            *wi, wo = kernels
            parts = [multiply(rows, kernel) for kernel in wi]
            hidden = feed_forward.activate(self._activation, parts)
            return multiply(hidden, wo)

        def grouped(rows, *kernels):
            def multiply(rows, kernel):
                return grouped_matmul(rows, sizes, kernel)

            return call(multiply, rows, *kernels)

        def fast(rows, *kernels):
            if can_loop(rows, self.num_experts):
                one = functools.partial(call, ops.matmul)
                return loop_over_experts(one, rows, sizes, kernels)
            return grouped_feed_forward(call, rows, sizes, kernels)

        kernels = [ops.cast(d.kernel, x.dtype) for d in (*self._wi, self.wo)]
        return with_gradient_of(grouped, fast)(x, *kernels)

    def _call_buffers(self, x, apply, training):
        """`[G, E, C, D]` -> the same shape."""
        groups, experts, capacity, width = ops.shape(x)
        # Experts first: with another order every product would transpose
        # its operands, which are as wide as an expert (measured: up to twice
        # the time on JAX).
        rows = ops.reshape(
            ops.transpose(x, (1, 0, 2, 3)), (experts, groups * capacity, width)
        )
        rows = self._feed_forward(rows, apply, training)
        outputs = ops.reshape(rows, (experts, groups, capacity, width))
        return ops.transpose(outputs, (1, 0, 2, 3))

    def _feed_forward(self, x, apply, training):
        parts = [apply(wi, x) for wi in self._wi]
        hidden = feed_forward.activate(self._activation, parts)
        if training:  # A call of a layer is dear in eager decoding.
            hidden = self._dropout(hidden, training=training)
        return apply(self.wo, hidden)

    def compute_output_shape(self, input_shape: tuple, *_: Any) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {
            "num_experts": self.num_experts,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "dropout": self.dropout,
            "init_scale": self.init_scale,
        }


def _with_enough_rows(multiply: Callable, x: Any, fewest: int) -> Any:
    """`multiply(x)` on `[E, N, D]`, through enough rows of each expert for a
    row's result not to depend on their number."""
    rows = static_size(ops.shape(x)[1])
    if rows is None or not 0 < rows < fewest:
        return multiply(x)
    padded = ops.pad(x, ((0, 0), (0, fewest - rows), (0, 0)))
    return multiply(padded)[:, :rows]

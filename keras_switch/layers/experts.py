"""The bank of experts: E feed-forwards that know neither tokens nor routes."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_switch.layers import feed_forward
from keras_switch.layers.expert_dense import ExpertDense
from keras_switch.layers.policies import policy_config, policy_of
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
    """`num_experts` feed-forwards side by side.

    Kernels are `ExpertDense` layers, which brings quantization and LoRA. Each
    expert is initialised with its own fan: a Glorot initializer would take the
    expert axis for a receptive field.

    Args:
        num_experts: int, `E`.
        intermediate_dim: int, `F`.
        activation, dropout, init_scale, use_bias: as `FeedForward`.

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
        use_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_experts = num_experts
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.dropout = dropout
        self.init_scale = init_scale
        self.use_bias = use_bias
        self._activation = feed_forward.get_activation(activation)
        self._dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        names = feed_forward.kernel_names(activation)
        self._of_one = _of_one(self._activation, len(names) + 1)

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        self._wi = [
            self._dense(name, width, self.intermediate_dim)
            for name in feed_forward.kernel_names(self.activation)
        ]
        self.wo = self._dense("wo", self.intermediate_dim, width)
        self.built = True

    def _dense(self, name: str, fan_in: int, units: int) -> Any:
        layer = ExpertDense(
            "end,edf->enf",
            output_shape=(None, units),
            bias_axes="ef" if self.use_bias else None,
            kernel_initializer=feed_forward.initializer(
                self.init_scale, fan_in
            ),
            dtype=policy_of(self, name),
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
                return _apply(
                    dense, x, lambda x, k: grouped_matmul(x, sizes, k)
                )
            if expert_index is not None:
                return _apply(
                    dense, x, lambda x, k: matmul_by_row(x, expert_index, k)
                )
            # In training rows depend on their batch by capacity and dropout.
            if dense.quantization_mode is not None:
                fewest = 0 if training else matmul.fewest_rows(x.shape[-1])
                return _with_enough_rows(dense, x, fewest)
            y = dense.product(x, functools.partial(_multiply, not training))
            return y + ops.cast(dense.bias, y.dtype) if self.use_bias else y

        if len(x.shape) == 4:
            return self._call_buffers(x, apply, training)
        adapted = any(dense.lora_enabled for dense in (*self._wi, self.wo))
        if sizes is not None and not training and not adapted:
            return self._evaluate(x, sizes)
        return self._feed_forward(x, apply, training)

    def _evaluate(self, x, sizes):
        """Whole feed-forwards on sorted rows; gradients as in training."""
        call = self._of_one

        def grouped(rows, *kernels):
            def multiply(rows, kernel):
                return grouped_matmul(rows, sizes, kernel)

            return call(multiply, rows, *kernels)

        def fast(rows, *kernels):
            if can_loop(rows, self.num_experts):
                one = functools.partial(call, ops.matmul)
                return loop_over_experts(one, rows, sizes, kernels)
            return grouped_feed_forward(call, rows, sizes, kernels)

        layers = (*self._wi, self.wo)
        weights = [dense.kernel for dense in layers]
        weights += [dense.bias for dense in layers] if self.use_bias else []
        weights = [ops.cast(weight, x.dtype) for weight in weights]
        return with_gradient_of(grouped, fast)(x, *weights)

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
            "use_bias": self.use_bias,
            **policy_config(self),
        }


# Eager JAX compiles anew for a function it does not know: layers of the same
# activation share one.
@functools.lru_cache(maxsize=32)
def _of_one(activation: Callable, count: int) -> Callable:
    """The feed-forward of one expert, or of all by a product that tells them
    apart; of `count` kernels, and as many biases behind them or none."""

    def call(multiply, rows, *weights):
        def dense(x, i):
            y = multiply(x, weights[i])
            if not weights[count:]:
                return y
            return _add_bias(multiply, x, y, weights[count + i])

        parts = [dense(rows, i) for i in range(count - 1)]
        return dense(feed_forward.activate(activation, parts), count - 1)

    return call


def _apply(dense: Any, x: Any, multiply: Callable) -> Any:
    """A layer of the bank on rows, by a product that knows their experts."""
    y = dense.product(x, multiply)
    if dense.bias is None:
        return y
    return _add_bias(multiply, x, y, ops.cast(dense.bias, x.dtype))


def _add_bias(multiply: Callable, x: Any, y: Any, bias: Any) -> Any:
    # `[E, 1, F]`: a kernel for rows of a single 1. So whatever knows which
    # kernel a row meets knows its bias, and the gradient of it.
    return y + multiply(ops.ones_like(x[..., :1]), bias)


def _multiply(same_bits: bool, x: Any, kernel: Any) -> Any:
    """`[E, N, D]`, `[E, D, F]` -> `[E, N, F]`."""
    multiply = functools.partial(
        expert_matmul, kernel=kernel, same_bits=same_bits
    )
    fewest = fewest_rows(kernel) if same_bits else 0
    return _with_enough_rows(multiply, x, fewest)


def _with_enough_rows(multiply: Callable, x: Any, fewest: int) -> Any:
    """`multiply(x)` on `[E, N, D]`, through enough rows of each expert for a
    row's result not to depend on their number."""
    rows = static_size(ops.shape(x)[1])
    if rows is None or not 0 < rows < fewest:
        return multiply(x)
    padded = ops.pad(x, ((0, 0), (0, fewest - rows), (0, 0)))
    return multiply(padded)[:, :rows]

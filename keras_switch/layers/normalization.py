"""Normalization of the residual, in float32 whatever the dtype policy."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.validation import check_choice, check_number

NORMS = ("rms", "layer")


@keras.saving.register_keras_serializable(package="keras_switch")
class RMSNorm(keras.layers.Layer):
    """Divides each vector by its root mean square, then scales it.

    `y = x / sqrt(mean(x ** 2) + epsilon) * scale`: no mean is taken off and
    there is no bias. Statistics and scale are float32 whatever the dtype
    policy: squares of float16 activations overflow at 256, and bfloat16 keeps
    8 bits of a mean.

    Args:
        epsilon: Positive float, added to the mean square.
        **kwargs: `name`, `dtype` and the other arguments of `keras.Layer`.

    Call arguments:
        x: float `[..., D]`.

    Returns:
        `[..., D]`, in the compute dtype.

    Example:

    ```python
    norm = keras_switch.layers.RMSNorm()
    y = norm(np.random.normal(size=(2, 5, 8)))  # every row has RMS 1
    ```

    Reference:
        [Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467)
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        epsilon = check_number("epsilon", epsilon, above=0)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="scale",
            shape=(input_shape[-1],),
            initializer="ones",
            autocast=False,
        )

    def call(self, x):
        x = ops.cast(x, "float32")
        mean_square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        y = x * ops.rsqrt(mean_square + self.epsilon)
        y = y * ops.cast(self.scale, "float32")
        return ops.cast(y, self.compute_dtype)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="keras_switch")
class LayerNorm(keras.layers.Layer):
    """Takes off each vector's mean, divides by its deviation, scales, shifts.

    Statistics, scale and bias are float32 whatever the dtype policy; see
    `RMSNorm`.

    Args:
        epsilon: Positive float, added to the variance.
        **kwargs: `name`, `dtype` and the other arguments of `keras.Layer`.

    Call arguments:
        x: float `[..., D]`.

    Returns:
        `[..., D]`, in the compute dtype.

    Reference:
        [Ba et al., 2016](https://arxiv.org/abs/1607.06450)
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        epsilon = check_number("epsilon", epsilon, above=0)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.scale, self.bias = (
            self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=initializer,
                autocast=False,
            )
            for name, initializer in (("scale", "ones"), ("bias", "zeros"))
        )

    def call(self, x):
        x = ops.cast(x, "float32")
        x = x - ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(x), axis=-1, keepdims=True)
        y = x * ops.rsqrt(variance + self.epsilon)
        y = y * ops.cast(self.scale, "float32")
        y = y + ops.cast(self.bias, "float32")
        return ops.cast(y, self.compute_dtype)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def make_norm(kind: str, epsilon: float, **kwargs: Any) -> keras.layers.Layer:
    """A new norm.

    Args:
        kind: `"rms"` or `"layer"`.
        epsilon: Positive float.
        **kwargs: `name` and `dtype`.

    Raises:
        ValueError: for another kind.
    """
    check_choice("norm", kind, NORMS)
    cls = RMSNorm if kind == "rms" else LayerNorm
    return cls(epsilon, **kwargs)

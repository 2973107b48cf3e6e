"""Root-mean-square normalization."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.validation import check_number


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
        check_number("epsilon", epsilon, above=0)
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

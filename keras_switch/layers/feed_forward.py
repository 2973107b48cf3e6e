"""The dense feed-forward of T5, and what it shares with a bank of experts."""

from typing import Any

import keras

from keras_switch.layers.policies import policy_config, policy_of
from keras_switch.layers.validation import check_number

GATED = "gated-"


@keras.saving.register_keras_serializable(package="keras_switch")
class FeedForward(keras.layers.Layer):
    """Position-wise feed-forward, by default without biases: `act(x wi) wo`.

    With a gated activation, `act(x wi_0) * (x wi_1)` takes the place of
    `act(x wi)`.

    Args:
        intermediate_dim: int, `F`.
        activation: name of a Keras activation, or `"gated-"` and one.
        dropout: float in `[0, 1)`, after the activation.
        init_scale: float; kernels are truncated normal with standard
            deviation `sqrt(init_scale / fan_in)`.
        use_bias: bool, whether each product is followed by a bias.

    Call arguments:
        x: `[..., D]`.
        training: bool.

    Returns:
        `[..., D]`.

    Reference: Raffel et al. 2020 (arXiv 1910.10683), section 2.1; Shazeer 2020
    (arXiv 2002.05202) for gated activations.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        init_scale: float = 0.1,
        use_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        intermediate_dim = check_number(
            "intermediate_dim", intermediate_dim, True, at_least=1
        )
        dropout = check_number("dropout", dropout, at_least=0, below=1)
        init_scale = check_number("init_scale", init_scale, above=0)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.dropout = dropout
        self.init_scale = init_scale
        self.use_bias = use_bias
        self._activation = get_activation(activation)
        self._dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        self._wi = [
            self._dense(name, self.intermediate_dim, width)
            for name in kernel_names(self.activation)
        ]
        self.wo = self._dense("wo", width, self.intermediate_dim)
        self.built = True

    def _dense(self, name: str, units: int, fan_in: int) -> Any:
        layer = keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=initializer(self.init_scale, fan_in),
            dtype=policy_of(self, name),
            name=name,
        )
        layer.build((None, fan_in))
        return layer

    def call(self, x, training=None):
        hidden = activate(self._activation, [wi(x) for wi in self._wi])
        if training:  # A call of a layer is dear in eager decoding.
            hidden = self._dropout(hidden, training=training)
        return self.wo(hidden)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "dropout": self.dropout,
            "init_scale": self.init_scale,
            "use_bias": self.use_bias,
            **policy_config(self),
        }


def kernel_names(activation: str) -> tuple[str, ...]:
    """Names of the kernels before the activation."""
    return ("wi_0", "wi_1") if activation.startswith(GATED) else ("wi",)


def get_activation(activation: str) -> Any:
    """The function named by an activation, without its `"gated-"`.

    Raises:
        ValueError: where it is not the name of a Keras activation.
    """
    if isinstance(activation, str):
        name = activation.removeprefix(GATED)
        if name == "gelu" and activation.startswith(GATED):
            return _gelu_tanh  # T5 1.1's gated-gelu is the tanh form
        try:
            return keras.activations.get(name)
        except ValueError:
            pass
    raise ValueError(
        "activation must be the name of a Keras activation, or 'gated-' and "
        f"one, such as 'relu' or 'gated-gelu'; received {activation!r}."
    )


def _gelu_tanh(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=True)


def activate(function: Any, parts: list) -> Any:
    """The activation of the first part, times the second if there is one."""
    hidden = function(parts[0])
    return hidden * parts[1] if len(parts) > 1 else hidden


def initializer(scale: float, fan_in: int) -> Any:
    """Truncated normal of standard deviation `sqrt(scale / fan_in)`, values
    beyond two of them drawn again (Switch Transformers, section 2.4)."""
    return keras.initializers.TruncatedNormal(stddev=(scale / fan_in) ** 0.5)

"""One product of every expert, with adapters of its own for each."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_switch")
class ExpertDense(keras.layers.EinsumDense):
    """An `EinsumDense` of `"end,edf->enf"`, whose first axis is the experts'.

    With LoRA each expert has a pair of matrices of its own, `[E, D, R]` and
    `[E, R, F]`. Keras' would share the second one between all experts: their
    changes would lie in one and the same space of `R` dimensions. The first
    ones start as large as those of one dense layer, whatever `E` is.

    Reference: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """

    def build(self, input_shape: tuple) -> None:
        self._num_experts = input_shape[0]
        super().build(input_shape)

    def add_weight(self, shape=None, initializer=None, *args, **kwargs):
        name = kwargs.get("name")
        if name == "lora_kernel_a":
            initializer = functools.partial(_one_by_one, initializer)
        if name == "lora_kernel_b":
            shape = (self._num_experts, *shape)
        return super().add_weight(shape, initializer, *args, **kwargs)

    def product(self, x: Any, multiply: Callable) -> Any:
        """Rows by the kernel of their expert, without the bias.

        Args:
            x: rows `[..., D]`.
            multiply: from rows and a kernel `[E, D, F]` to their product; it
                knows whose rows they are. With LoRA it is called for the
                adapters too.

        Returns:
            `[..., F]`.
        """
        y = multiply(x, ops.cast(self._kernel, x.dtype))
        if not self.lora_enabled:
            return y
        # `self.kernel` would add the adapters to the kernels: to write every
        # expert anew, for however few tokens.
        low = multiply(x, ops.cast(self.lora_kernel_a, x.dtype))
        change = multiply(low, ops.cast(self.lora_kernel_b, x.dtype))
        return y + (self.lora_alpha / self.lora_rank) * change

    def quantize(
        self,
        mode: str | None = None,
        type_check: bool = True,
        config: Any = None,
    ) -> None:
        """As `EinsumDense`, which refuses subclasses that it does not know."""
        del type_check
        super().quantize(mode, type_check=False, config=config)


def _one_by_one(initialize: Callable, shape: tuple, dtype: Any = None) -> Any:
    """`[E, D, R]` with the fan of one expert: an initializer takes the first
    of three axes for a receptive field, and its fan is then `E` times `D`."""
    experts, fan_in, rank = shape
    rows = initialize((fan_in, experts * rank), dtype=dtype)
    rows = ops.reshape(rows, (fan_in, experts, rank))
    return ops.transpose(rows, (1, 0, 2))

"""One product of every expert, with adapters of its own for each."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_switch")
class ExpertDense(keras.layers.EinsumDense):
    """An `EinsumDense` of `"end,edf->enf"`, whose first axis is the experts'.

    With LoRA each expert has a pair of matrices of its own, `[E, D, R]` and
    `[E, R, F]`. Keras' would share the second one between all experts: their
    changes would lie in one and the same space of `R` dimensions.

    Reference: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """

    def build(self, input_shape: tuple) -> None:
        self._num_experts = input_shape[0]
        super().build(input_shape)

    def add_weight(self, shape=None, *args, name=None, **kwargs):
        if name == "lora_kernel_b":
            shape = (self._num_experts, *shape)
        return super().add_weight(shape, *args, name=name, **kwargs)

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

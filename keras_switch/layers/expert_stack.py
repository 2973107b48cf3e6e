"""Deep experts: each a stack of residual feed-forwards."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.experts import Experts
from keras_switch.layers.policies import policy_config

_EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="keras_switch")
class ExpertStack(keras.layers.Layer):
    """`num_blocks` banks of experts, one behind the other.

    A row goes through all blocks of its expert, `h += feed_forward(norm(h))`,
    and what the stack adds to it is returned: `h - x`. A layer that adds its
    gate times that to its own input is the paper's,
    `gate * stack(x) + (1 - gate) * x`.

    The norm is LayerNorm without weights: the kernel behind it can hold its
    scale, and with `use_bias` the bias its offset.

    Args:
        num_experts: int, `E`.
        intermediate_dim: int, `F`, of each block.
        num_blocks: int, at least 1.
        **kwargs: The other arguments of `Experts`, for each block.

    Call arguments and result are those of `Experts`.

    Reference: Lewis et al. 2021, BASE Layers (arXiv 2103.16716), sections 3
    and 4.
    """

    def __init__(
        self,
        num_experts: int,
        intermediate_dim: int,
        num_blocks: int,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        self._of_blocks = {
            "num_experts": num_experts,
            "intermediate_dim": intermediate_dim,
            **kwargs,
        }
        self.blocks = [
            Experts(
                **self._of_blocks, dtype=self.dtype_policy, name=f"block_{i}"
            )
            for i in range(num_blocks)
        ]

    @property
    def dropout(self) -> float:
        """The rate of every block."""
        return self.blocks[0].dropout

    def build(self, input_shape: tuple) -> None:
        for block in self.blocks:
            block.build(input_shape)
        self.built = True

    @property
    def quantized(self) -> bool:
        """Whether kernels are no longer plain float matrices."""
        return any(block.quantized for block in self.blocks)

    def call(self, x, sizes=None, expert_index=None, training=None):
        hidden = x
        for block in self.blocks:
            hidden = hidden + block(
                _normalize(hidden),
                sizes=sizes,
                expert_index=expert_index,
                training=training,
            )
        return hidden - x

    def compute_output_shape(self, input_shape: tuple, *_: Any) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return (
            super().get_config()
            | self._of_blocks
            | {"num_blocks": len(self.blocks)}
            | policy_config(self)
        )


def _normalize(x):
    """LayerNorm in float32, without weights; 0 stays 0."""
    rows = ops.cast(x, "float32")
    rows = rows - ops.mean(rows, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(rows), axis=-1, keepdims=True)
    return ops.cast(rows * ops.rsqrt(variance + _EPSILON), x.dtype)

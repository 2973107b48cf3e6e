"""Routing at random: what any router that decides has to beat."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routes import best_experts
from keras_switch.layers.routing import Router


@keras.saving.register_keras_serializable(package="keras_switch")
class RandomRouter(Router):
    """Router for baselines: any expert is as good as any other.

    In training each token draws its expert anew in every call, all with equal
    probability, so experts come to be alike. In evaluation, where two calls
    must agree and cached decoding must be a full pass, the expert is that of
    the largest product with a random kernel that is never trained. The gate
    is 1; nothing is learned, there are no losses, and nothing is leaked.

    Args:
        num_experts: int, as `Router`.
        seed: optional int, of the draws.

    Reference: Zuo et al. 2022, THOR (arXiv 2110.04260), section 3, without its
    consistency loss; there the expert is drawn in evaluation, too.
    """

    settings = ("num_experts", "seed")

    def __init__(
        self,
        num_experts: int | None = None,
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

    def _make_weights(self, width):
        self.kernel = self._make_kernel("kernel", width, trainable=False)

    def trainable_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """None."""
        del width
        return {}

    def _scores(self, logits, probs, training):
        del probs
        return self._draw(ops.shape(logits)) if training else logits

    def _draw(self, shape):
        return keras.random.uniform(
            shape, dtype="float32", seed=self.seed_generator
        )

    def choose(self, probs, scores, training=None):
        del probs, training
        expert_index = best_experts(scores, 1)
        return expert_index, ops.ones(ops.shape(expert_index), "float32")

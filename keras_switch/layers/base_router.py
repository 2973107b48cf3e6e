"""BASE: in training every expert gets equally many tokens."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routes import (
    best_experts,
    gather_probs,
    shares_of,
)
from keras_switch.layers.routing import Router
from keras_switch.ops.assignment import balanced_assignment


@keras.saving.register_keras_serializable(package="keras_switch")
class BaseRouter(Router):
    """Router of BASE Layers: balanced assignment of single experts.

    In training the tokens of a group are shared out, equally many to each
    expert (one more to the first ones, where the division leaves a rest), so
    that the sum of their logits is as high as it can be, or nearly so. In
    evaluation a token goes to the expert of its highest logit. The gate is the
    sigmoid of the logit. Balanced by construction, it has no load-balancing
    loss, and with a `capacity_factor` of at least 1 it drops nothing.

    In training a token's expert depends on all tokens of its group, later
    ones too, as in the paper's decoders: that leaks what a share of tokens
    tells. In evaluation and generation a route is of its own token alone.

    The paper shares out all tokens of a worker: with the default groups of one
    sequence each sequence must use all experts alike. Give `SwitchLayer` a
    `group_size` of many sequences.

    Args:
        num_experts: int, as `Router`.
        z_loss_weight: float, as `Router`.
        seed: optional int.

    The kernel is orthogonal of gain 0.1.

    Reference: Lewis et al. 2021 (arXiv 2103.16716), section 3.
    """

    settings = ("num_experts", "z_loss_weight", "seed")
    # Bids above what is needed, over the range of the logits; most rounds. Of
    # 4,096 tokens and 64 experts, 16 rounds have 99.96 % of the score of an
    # auction to 0.003 (docs/results.md, section 13).
    _precision, _max_rounds = 1e-2, 16

    def __init__(
        self,
        num_experts: int | None = None,
        z_loss_weight: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._refuse_settings(kwargs)
        super().__init__(
            num_experts,
            exploration="argmax",
            load_balancing_loss_weight=0.0,
            z_loss_weight=z_loss_weight,
            seed=seed,
            **kwargs,
        )

    def _make_weights(self, width):
        initializer = keras.initializers.Orthogonal(0.1, self.seed)
        self.kernel = self._make_kernel("kernel", width, initializer)

    def _probs(self, logits):
        return ops.sigmoid(logits)

    def _shares(self, gates):
        return shares_of(gates)

    def _scores(self, logits, probs, training):
        # The sigmoid would tie what is far from 0.
        return logits

    def choose(self, probs, scores, training=None):
        del training
        best = best_experts(scores, 1)
        return best, gather_probs(probs, best)

    def route(self, probs, scores, valid, capacity, quota, training):
        if training:
            assigned = balanced_assignment(
                scores, valid, self._precision, self._max_rounds
            )
            experts = ops.arange(self.num_experts, dtype="int32")
            chosen = ops.expand_dims(assigned, -1) == experts
            scores = ops.cast(chosen, "float32")
        return super().route(probs, scores, valid, capacity, quota, training)

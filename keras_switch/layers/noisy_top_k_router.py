"""Noisy top-k gating: noise that is learned, importance and load losses."""

from typing import Any

import keras
from keras import ops

from keras_switch import losses
from keras_switch.layers.routes import best_experts, gather_probs
from keras_switch.layers.routing import Router
from keras_switch.layers.validation import check_number
from keras_switch.ops.matmul import matmul_rows


@keras.saving.register_keras_serializable(package="keras_switch")
class NoisyTopKRouter(Router):
    """Router of the sparsely-gated mixture of experts.

    In training the logits of a token `x` are `x @ kernel + noise * softplus(x
    @ noise_kernel)`, with `noise` from N(0, 1): how much of it there is, is
    learned for each expert. A token goes to the `k` experts of the highest
    logits (the lowest index of tied ones); the gates are the softmax over
    these alone. In evaluation there is no noise. Two losses keep experts
    equally important (by their gates) and equally busy (by a smooth estimate
    of their load). Both kernels start at 0, as in the paper: without noise
    all experts tie, with it they are equally likely.

    Of one expert the gate would be 1 and the router would learn nothing, of
    all experts nothing is chosen: `k` is above 1 and below `num_experts`.

    As with every router of several choices, under a capacity a later token's
    first choice may take the slot of an earlier token's second one.

    Args:
        num_experts: int, as `Router`; more than `k`.
        k: int, at least 2, experts of a token. (The paper has 4.)
        importance_loss_weight: float, the paper's 0.1 for language models.
        load_loss_weight: float, the paper's 0.1.
        z_loss_weight: float, as `Router`.
        batch_prioritized: bool, as `Router`.
        seed: optional int, of the noise.

    Reference: Shazeer et al. 2017 (arXiv 1701.06538), section 2.1, equations
    3 to 5, section 4 and appendix A.
    """

    settings = (
        "num_experts",
        "k",
        "importance_loss_weight",
        "load_loss_weight",
        "z_loss_weight",
        "batch_prioritized",
        "seed",
    )

    def __init__(
        self,
        num_experts: int | None = None,
        k: int = 2,
        importance_loss_weight: float = 0.1,
        load_loss_weight: float = 0.1,
        z_loss_weight: float = 0.0,
        batch_prioritized: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._refuse_settings(kwargs)
        super().__init__(
            num_experts,
            exploration="argmax",
            batch_prioritized=batch_prioritized,
            load_balancing_loss_weight=0.0,
            z_loss_weight=z_loss_weight,
            importance_loss_weight=importance_loss_weight,
            seed=seed,
            **kwargs,
        )
        k = check_number("k", k, whole=True, at_least=2)
        load_loss_weight = check_number(
            "load_loss_weight", load_loss_weight, at_least=0
        )
        if num_experts is not None and k >= num_experts:
            raise ValueError(
                "k must be below num_experts, or nothing is chosen; received "
                f"k={k}, num_experts={num_experts}."
            )
        self.k = self.num_choices = k
        self.load_loss_weight = load_loss_weight

    def _make_weights(self, width):
        self.kernel = self._make_kernel("kernel", width, "zeros")
        self.noise_kernel = self._make_kernel("noise_kernel", width, "zeros")

    def trainable_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Of both kernels."""
        shape = (width, self.num_experts)
        return {"kernel": shape, "noise_kernel": shape}

    def _logits(self, tokens, training):
        clean = super()._logits(tokens, training)
        if not training:
            return clean
        noise = self._draw(ops.shape(clean))
        return clean + noise * self._deviation(tokens)

    def _deviation(self, tokens):
        """How much noise each token has for each expert: `[G, S, E]`."""
        kernel = ops.convert_to_tensor(self.noise_kernel)
        return ops.softplus(matmul_rows(ops.cast(tokens, "float32"), kernel))

    def _draw(self, shape):
        return keras.random.normal(
            shape, dtype="float32", seed=self.seed_generator
        )

    def choose(self, probs, scores, training=None):
        del training
        expert_index = best_experts(scores, self.k)  # [G, S, K]
        gate = gather_probs(probs, expert_index)
        total = ops.sum(gate, axis=-1, keepdims=True)
        return expert_index, gate / ops.maximum(total, 1e-30)

    def _add_losses(self, tokens, logits, probs, routes, first, valid):
        super()._add_losses(tokens, logits, probs, routes, first, valid)
        if not self.load_loss_weight:
            return
        clean = super()._logits(tokens, training=False)
        deviation = self._deviation(tokens)
        loss = losses.load_loss(clean, logits, deviation, self.k, valid)
        self.add_loss(self.load_loss_weight * loss)

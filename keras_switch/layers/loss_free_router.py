"""Balance without a loss: a bias that chooses and does not weigh."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routes import best_experts, gather_probs, shares_of
from keras_switch.layers.routing import Router
from keras_switch.layers.routing_stats import load_of
from keras_switch.layers.validation import check_choice, check_number
from keras_switch.ops.state import record

GATES = ("sigmoid", "softmax")


@keras.saving.register_keras_serializable(package="keras_switch")
class LossFreeRouter(Router):
    """Router of loss-free balancing.

    A token goes to the `k` experts of the highest gate plus bias (the lowest
    index of tied ones). The bias is of the choice alone: an expert's output is
    multiplied by its gate, not renormalised. After each training step an
    expert that had more tokens than the mean has its bias lowered by
    `update_rate`, one that had fewer has it raised. So a batch is routed by
    what was learned of those before it, and nothing of its own later tokens
    is leaked. No gradient serves the balance.

    The bias is a weight `[E]` that is not trained; it is saved and resumed
    with the model, and stays as it is where the kernel is frozen. How far loads
    are from even, MaxVio of a batch, is the statistic `max_mean_load` less 1;
    over many batches it is `LayerRouting.max_violation` of
    `analysis.routing_report`.

    As with every router of several choices, under a capacity a later token's
    first choice may take the slot of an earlier token's second one.

    Args:
        num_experts: int, as `Router`.
        k: int, at least 1, experts of a token. (The paper has 6 of 64.)
        gate: `"sigmoid"` or `"softmax"` of the logits. (For softmax the paper
            updates in proportion to the violation; here both go by its sign.)
        update_rate: float, at least 0, the paper's 0.001. 0 freezes the bias.
        exploration: as `Router`, but none by default.
        load_balancing_loss_weight: as `Router`, but 0 by default. With it the
            loss is taken of gates that are made to sum to 1.
        **kwargs: as `Router`.

    Reference: Wang et al. 2024 (arXiv 2408.15664), section 3.1 and algorithm
    1.
    """

    settings = (*Router.settings, "k", "gate", "update_rate")

    def __init__(
        self,
        num_experts: int | None = None,
        k: int = 2,
        gate: str = "sigmoid",
        update_rate: float = 0.001,
        exploration: str = "argmax",
        load_balancing_loss_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_experts,
            exploration=exploration,
            load_balancing_loss_weight=load_balancing_loss_weight,
            **kwargs,
        )
        k = check_number("k", k, whole=True, at_least=1)
        if num_experts is not None and k > num_experts:
            raise ValueError(
                "k must be at most num_experts; received "
                f"k={k}, num_experts={num_experts}."
            )
        check_choice("gate", gate, GATES)
        update_rate = check_number("update_rate", update_rate, at_least=0)
        self.k = self.num_choices = k
        self.gate = gate
        self.update_rate = update_rate

    def _make_weights(self, width):
        super()._make_weights(width)
        self.bias = self.add_weight(
            name="bias",
            shape=(self.num_experts,),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="mean",
        )

    def _probs(self, logits):
        if self.gate == "sigmoid":
            return ops.sigmoid(logits)
        return super()._probs(logits)

    def _shares(self, gates):
        return shares_of(gates) if self.gate == "sigmoid" else gates

    def _scores(self, logits, probs, training):
        scores = super()._scores(logits, probs, training)
        return scores + ops.convert_to_tensor(self.bias)

    def choose(self, probs, scores, training=None):
        del training
        expert_index = best_experts(scores, self.k)  # [G, S, K]
        return expert_index, gather_probs(probs, expert_index)

    def _learn(self, routes):
        if not self.update_rate or not self.kernel.trainable:
            return
        load = load_of(routes.expert_index, self.num_experts)  # [E]
        step = self.update_rate * ops.sign(ops.mean(load) - load)
        bias = ops.convert_to_tensor(self.bias)
        record(self.bias, ops.stop_gradient(bias + step))

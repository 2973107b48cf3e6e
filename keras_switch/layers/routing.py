"""Routers: they decide which expert a token goes to, and move nothing."""

from typing import Any

import keras
from keras import ops

from keras_switch import losses
from keras_switch.layers.routes import (
    RouterIndices,
    choice_major,
    gather_probs,
)
from keras_switch.layers.routing_stats import RoutingStats
from keras_switch.layers.validation import check_choice, check_number
from keras_switch.ops.indexing import queue_positions
from keras_switch.ops.matmul import matmul_rows

EXPLORATIONS = ("argmax", "input_jitter", "input_dropout", "sample")


@keras.saving.register_keras_serializable(package="keras_switch")
class Router(keras.layers.Layer):
    """Base class of routers: probabilities, choice, queue.

    `call` computes the router logits in float32 under every dtype policy,
    takes their softmax, asks `choose` for each token's experts, and numbers
    each expert's queue: first choices before second ones, then left to right.
    Padding and tokens whose logits are not finite join no queue. In training
    it adds its auxiliary losses.

    A subclass overrides `choose`, and sets `num_choices` where a token has
    more than one:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class SecondBestRouter(keras_switch.Router):
        def choose(self, probs, scores, training=None):
            best = keras.ops.expand_dims(keras.ops.argmax(scores, -1), -1)
            experts = keras.ops.arange(self.num_experts)
            others = keras.ops.where(experts == best, -1.0, scores)
            second = keras.ops.expand_dims(keras.ops.argmax(others, -1), -1)
            gate = keras.ops.take_along_axis(probs, second, axis=-1)
            return second, gate
    ```

    Args:
        num_experts: int, at least 1. A `SwitchLayer` sets it on its own copy.
        exploration: `"argmax"` (none), `"input_jitter"` (the router's copy of
            its input times `U(1 - jitter, 1 + jitter)`), `"input_dropout"`, or
            `"sample"` (the expert is drawn from the softmax). In training
            only.
        jitter: float in `(0, 1)`, the paper's 0.01.
        input_dropout: float in `[0, 1)`, rate of `"input_dropout"`.
        temperature: float above 0, divides the logits of `"sample"`.
        batch_prioritized: bool. The queue goes by descending probability of
            the first choice instead of left to right (V-MoE, arXiv
            2106.05974, section 4).
        load_balancing_loss_weight: float, the paper's 0.01.
        z_loss_weight: float; 0 as in Switch Transformers (0.001 in ST-MoE).
        importance_loss_weight: float (Shazeer et al. 2017).
        init_scale: float; the kernel is truncated normal with standard
            deviation `sqrt(init_scale / D)`.
        seed: optional int, for jitter, dropout and sampling.

    Call arguments:
        tokens: `[G, S, D]`.
        padding_mask: optional bool `[G, S]`, true for real tokens.
        capacity: slots of an expert in a group; `None` for no limit.
        training: bool.
        record: whether to write the statistics.
        quota: int32 `[G]`, for routers in which experts choose: how many
            tokens an expert takes, at most `capacity`.
        token_ids: int `[G, S]`, for routers that look up tokens.

    Returns:
        `RouterIndices`.

    Reference: Fedus et al. 2022 (arXiv 2101.03961), sections 2.1, 2.2, 2.4
    and appendix C.
    """

    num_choices = 1  # edges of a token; None where it may be any number
    needs_token_ids = False
    # Names of the arguments that make up a config.
    settings: tuple[str, ...] = (
        "num_experts",
        "exploration",
        "jitter",
        "input_dropout",
        "temperature",
        "batch_prioritized",
        "load_balancing_loss_weight",
        "z_loss_weight",
        "importance_loss_weight",
        "init_scale",
        "seed",
    )

    def __init__(
        self,
        num_experts: int | None = None,
        exploration: str = "input_jitter",
        jitter: float = 0.01,
        input_dropout: float = 0.1,
        temperature: float = 1.0,
        batch_prioritized: bool = False,
        load_balancing_loss_weight: float = 0.01,
        z_loss_weight: float = 0.0,
        importance_loss_weight: float = 0.0,
        init_scale: float = 0.1,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("exploration", exploration, EXPLORATIONS)
        share, scale, weight = {"below": 1}, {"above": 0}, {"at_least": 0}
        for name, value, bounds in (
            ("jitter", jitter, share | scale),
            ("input_dropout", input_dropout, share | weight),
            ("temperature", temperature, scale),
            ("init_scale", init_scale, scale),
            ("load_balancing_loss_weight", load_balancing_loss_weight, weight),
            ("z_loss_weight", z_loss_weight, weight),
            ("importance_loss_weight", importance_loss_weight, weight),
        ):
            setattr(self, name, check_number(name, value, **bounds))
        self.num_experts = check_number(
            "num_experts", num_experts, whole=True, at_least=1, optional=True
        )
        self.exploration = exploration
        self.batch_prioritized = bool(batch_prioritized)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.stats = RoutingStats(name="routing_stats", dtype=self.dtype_policy)

    @property
    def causal(self) -> bool:
        """Whether no token's route depends on later tokens."""
        return not self.batch_prioritized

    @classmethod
    def _refuse_settings(cls, kwargs):
        """Refuses arguments of `Router` that a subclass has no use for."""
        useless = set(Router.settings) & set(kwargs)
        if useless:
            raise ValueError(
                f"{cls.__name__} has no argument {', '.join(sorted(useless))}; "
                f"it takes {', '.join(cls.settings)}."
            )

    def build(self, tokens_shape: tuple) -> None:
        if self.num_experts is None:
            raise ValueError("num_experts must be given; received None.")
        self._make_weights(tokens_shape[-1])
        self.stats.build(None)
        self.built = True

    def _make_weights(self, width):
        self.kernel = self._make_kernel("kernel", width)

    def _make_kernel(self, name, width, initializer=None, trainable=True):
        # A weight of its own in float32, not a Dense: quantization and
        # autocasting must leave the router alone.
        return self.add_weight(
            name=name,
            shape=(width, self.num_experts),
            initializer=initializer
            or keras.initializers.TruncatedNormal(
                stddev=(self.init_scale / width) ** 0.5
            ),
            dtype="float32",
            trainable=trainable,
            autocast=False,
        )

    def trainable_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of its trainable weights by name, for tokens of a width."""
        return {"kernel": (width, self.num_experts)}

    def call(
        self,
        tokens,
        padding_mask=None,
        capacity=None,
        training=None,
        quota=None,
        record=True,
        token_ids=None,
    ):
        if self.needs_token_ids:
            logits = self._look_up(token_ids)
        else:
            logits = self._logits(tokens, training)  # [G, S, E]
        finite = ops.all(ops.isfinite(logits), axis=-1)  # [G, S]
        valid = finite
        if padding_mask is not None:
            valid = ops.logical_and(finite, padding_mask)
        logits = ops.where(ops.expand_dims(valid, -1), logits, 0.0)
        gates = self._probs(logits)
        scores = self._scores(logits, gates, training)
        limit = capacity if quota is None else quota
        routes = self.route(gates, scores, valid, capacity, limit, training)
        probs = self._shares(gates)
        first = self._first_choices(probs, routes)  # [G, S]
        if training:
            self._add_losses(tokens, logits, probs, routes, first, valid)
            self._learn(routes)
        if record:
            dropped = self._dropped_fraction(routes, capacity, valid)
            self.stats(
                logits, probs, routes.expert_index, first, dropped, valid
            )
        return self._mark(routes, padding_mask, finite)

    def choose(
        self, probs: Any, scores: Any, training: bool | None = None
    ) -> tuple[Any, Any]:
        """Each token's experts and gates; what a subclass overrides.

        Args:
            probs: float32 `[G, S, E]`, softmax of the router logits.
            scores: float32 `[G, S, E]`, what to rank by: `probs`, but for
                noise under `exploration="sample"`.
            training: bool.

        Returns:
            int32 `[G, S, K]`, distinct experts of a token, best first, where
            `num_experts` stands for none; and float32 `[G, S, K]`, their
            gates.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must override choose()."
        )

    def route(
        self,
        probs: Any,
        scores: Any,
        valid: Any,
        capacity: Any,
        quota: Any,
        training: bool | None,
    ) -> RouterIndices:
        """Turns `choose`'s answer into queues. Overridden by routers in which
        experts choose tokens."""
        del capacity, quota
        expert_index, gate = self.choose(probs, scores, training)
        expert_index = ops.cast(expert_index, "int32")
        expert_index = ops.where(
            ops.expand_dims(valid, -1), expert_index, self.num_experts
        )
        tokens, choices = ops.shape(probs)[1], expert_index.shape[-1]
        expert_index = choice_major(expert_index)  # [G, M]
        gate = choice_major(ops.cast(gate, "float32"))
        slot_index = self._queue(expert_index, probs, choices)
        places = ops.tile(ops.arange(tokens, dtype="int32"), (choices,))
        token_index = ops.broadcast_to(
            ops.expand_dims(places, 0), ops.shape(expert_index)
        )
        return RouterIndices(token_index, expert_index, slot_index, gate)

    def routes_spec(self) -> RouterIndices:
        """What a symbolic call returns."""
        edges = (None, None)
        index = [keras.KerasTensor(edges, dtype="int32") for _ in range(3)]
        return RouterIndices(*index, keras.KerasTensor(edges, "float32"))

    def _logits(self, tokens, training):
        inputs = ops.cast(tokens, "float32")
        if training and self.exploration == "input_jitter":
            noise = keras.random.uniform(
                ops.shape(inputs),
                1.0 - self.jitter,
                1.0 + self.jitter,
                dtype="float32",
                seed=self.seed_generator,
            )
            inputs = inputs * noise
        if training and self.exploration == "input_dropout":
            inputs = keras.random.dropout(
                inputs, self.input_dropout, seed=self.seed_generator
            )
        return matmul_rows(inputs, ops.convert_to_tensor(self.kernel))

    def _probs(self, logits):
        """What `choose` is given: the gates of all experts."""
        return _softmax(logits)

    def _shares(self, gates):
        """What losses and statistics are of: it sums to 1."""
        return gates

    def _scores(self, logits, probs, training):
        if not (training and self.exploration == "sample"):
            return probs
        uniform = keras.random.uniform(
            ops.shape(logits), 1e-7, 1.0, "float32", seed=self.seed_generator
        )
        # The largest of the logits plus Gumbel noise is a draw from their
        # softmax; exp keeps scores positive, as probabilities are.
        noisy = logits / self.temperature - ops.log(-ops.log(uniform))
        return _softmax(noisy)

    def _queue(self, expert_index, probs, choices):
        if not self.batch_prioritized:
            return queue_positions(expert_index, self.num_experts)
        tokens = ops.shape(probs)[1]
        # Not by the gate, which may be renormalised over a token's choices.
        # Within a choice the order is the same for all choices.
        first = ops.expand_dims(expert_index[:, :tokens], -1)
        priority = gather_probs(probs, first)[:, :, 0]  # [G, S]
        order = ops.argsort(-priority, axis=-1)  # stable: ties by place
        order = ops.cast(order, "int32")
        inverse = ops.cast(ops.argsort(order, axis=-1), "int32")
        steps = ops.arange(choices, dtype="int32") * tokens
        spread = ops.expand_dims(steps, -1)  # [K, 1]
        groups = ops.shape(order)[0]
        shape = (groups, choices * tokens)
        order = ops.reshape(ops.expand_dims(order, 1) + spread, shape)
        inverse = ops.reshape(ops.expand_dims(inverse, 1) + spread, shape)
        ranked = ops.take_along_axis(expert_index, order, axis=1)
        queued = queue_positions(ranked, self.num_experts)
        return ops.take_along_axis(queued, inverse, axis=1)

    def _mark(self, routes, padding_mask, finite):
        """A real token without a route it can trust has a gate of NaN, so
        that the layer can tell it from padding."""
        if not self.num_choices:
            return routes
        lost = ops.logical_not(finite)
        if padding_mask is not None:
            lost = ops.logical_and(padding_mask, lost)
        lost = ops.tile(lost, (1, self.num_choices))  # [G, M]
        return routes._replace(gate=ops.where(lost, float("nan"), routes.gate))

    def _first_choices(self, probs, routes):
        return routes.expert_index[:, : ops.shape(probs)[1]]

    def _dropped_fraction(self, routes, capacity, valid):
        del valid
        if capacity is None:
            return ops.zeros((), "float32")
        wanted = routes.expert_index < self.num_experts
        lost = ops.logical_and(wanted, routes.slot_index >= capacity)
        lost, wanted = ops.cast(lost, "float32"), ops.cast(wanted, "float32")
        return ops.sum(lost) / ops.maximum(ops.sum(wanted), 1.0)

    def _add_losses(self, tokens, logits, probs, routes, first, valid):
        del tokens
        if self.load_balancing_loss_weight:
            loss = losses.load_balancing_loss(probs, first, valid)
            self.add_loss(self.load_balancing_loss_weight * loss)
        if self.z_loss_weight:
            loss = losses.router_z_loss(logits, valid)
            self.add_loss(self.z_loss_weight * loss)
        if self.importance_loss_weight:
            loss = losses.importance_loss(
                routes.gate, routes.expert_index, self.num_experts
            )
            self.add_loss(self.importance_loss_weight * loss)

    def _learn(self, routes):
        """Changes, in training, what no gradient does."""

    def get_config(self) -> dict:
        own = {name: getattr(self, name) for name in self.settings}
        return super().get_config() | own


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchRouter(Router):
    """Top-1 router of Switch Transformers.

    A token goes to the expert of highest probability (the lowest index of
    tied ones). Its gate is that probability of the softmax over all experts,
    never renormalised: through it the router gets its gradient.

    Arguments as `Router`.

    Reference: Fedus et al. 2022 (arXiv 2101.03961), section 2.1, equations 1
    and 2.
    """

    def choose(self, probs, scores, training=None):
        del training
        best = ops.expand_dims(ops.argmax(scores, axis=-1), -1)  # [G, S, 1]
        return best, gather_probs(probs, best)


def _softmax(logits: Any) -> Any:
    # Keras warns of a softmax over one expert, which is always 1.
    if logits.shape[-1] == 1:
        return ops.ones_like(logits)
    return ops.softmax(logits, axis=-1)

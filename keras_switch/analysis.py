"""What the routers of a model do with real batches, as plain numbers."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_switch.layers.routes import RouterMask
from keras_switch.layers.routing_stats import STATISTICS
from keras_switch.layers.switch_layer import SwitchLayer

_DROPPED = STATISTICS.index("dropped_fraction")
_CONFIDENCE = STATISTICS.index("router_confidence")
_ENTROPY = STATISTICS.index("router_entropy")
_BALANCE = STATISTICS.index("load_balancing_loss")
_COUNT = len(STATISTICS)


class LayerRouting(NamedTuple):
    """What the router of one sparse layer did. All NumPy, padding left out.

    `E` experts; `N` of the most frequent tokens, by descending count.
    """

    name: str  # such as "encoder_layer_1"
    num_tokens: int
    load: np.ndarray  # float64 [E], fraction of edges, before capacity
    mean_gate: np.ndarray  # float64 [E], of the expert's edges; 0 without any
    max_mean_load: float  # 1 is balanced, E is collapsed
    dropped_fraction: float  # as `RoutingStats`, at the capacity of training
    router_confidence: float  # mean of the largest probability
    router_entropy: float  # nats; ln E is undecided
    load_balancing_loss: float  # unweighted; 1 is balanced, E is collapsed
    token_entropy: float  # nats; of the expert given the token's id
    token_ids: np.ndarray  # int64 [N]
    tokens: tuple[str, ...]  # N
    token_count: np.ndarray  # int64 [N], edges
    token_share: np.ndarray  # float64 [N, E], fraction of the token's edges

    @property
    def max_violation(self) -> float:
        """MaxVio, over all batches together: the largest load over the mean,
        less 1 (Wang et al. 2024, arXiv 2408.15664, section 2.2)."""
        return self.max_mean_load - 1.0

    def top_tokens(self, expert: int, k: int = 8) -> list[tuple[str, float]]:
        """The tokens that an expert sees most often.

        Args:
            expert: Index of the expert.
            k: How many at most.

        Returns:
            Pairs of a token and the fraction of its edges that go to the
            expert, by descending number of edges. Tokens of which less than
            twice the expert's load goes there are left out: they are common,
            not special.
        """
        edges = self.token_share[:, expert] * self.token_count
        special = self.token_share[:, expert] >= min(1.0, 2 * self.load[expert])
        order = np.argsort(-np.where(special, edges, 0), kind="stable")[:k]
        return [
            (self.tokens[i], float(self.token_share[i, expert]))
            for i in order
            if special[i] and edges[i] > 0
        ]


class RoutingReport(NamedTuple):
    """The sparse layers of a model, in the order they are called."""

    layers: tuple[LayerRouting, ...]


def routing_report(
    model: keras.Model,
    batches: Iterable[Any],
    id_to_token: Callable[[int], str] | None = None,
    num_tokens: int = 40,
) -> RoutingReport:
    """Runs a model on batches and reports what its routers did.

    The model runs eagerly and in evaluation, so exploration and dropout are
    off. Its routers route the same tokens once more at the capacity of
    training, for what that would drop.

    Args:
        model: Any model with `SwitchLayer`s.
        batches: Inputs of the model: dicts as the backbones take them, or int
            arrays of token ids `[B, T]`. Layers with "decoder" in their path
            are matched with `decoder_token_ids`, if there are such.
        id_to_token: Names a token, for instance a tokenizer's method; `None`
            names it by its id.
        num_tokens: How many of the most frequent tokens to tabulate.

    Returns:
        A `RoutingReport`.

    Raises:
        ValueError: If the model has no `SwitchLayer`, or there is no batch
            with a real token.

    Example:

    ```python
    report = keras_switch.analysis.routing_report(model.backbone, batches)
    report.layers[0].load  # [E]
    ```
    """
    layers = _choosing_layers(model)
    counters = {}
    for batch in batches:
        # Dicts keep the order of insertion, which is the order of calls.
        for name, call in _route(model, layers, batch).items():
            counter = counters.setdefault(name, _Counter(layers[name]))
            counter.add(*call, np.reshape(_token_ids(batch, name), -1))
    if not any(counter.num_tokens for counter in counters.values()):
        raise ValueError(
            "batches must have at least one real token; received none."
        )
    return RoutingReport(
        tuple(
            counter.report(name, id_to_token or str, num_tokens)
            for name, counter in counters.items()
        )
    )


def chosen_experts(model: keras.Model, batch: Any) -> dict[str, np.ndarray]:
    """Runs a model on a batch and says which experts each token chose.

    Args:
        model: As for `routing_report`.
        batch: Inputs of the model.

    Returns:
        By layer a bool array `[N, E]` for the `N` tokens of the batch, padding
        included: it chooses none.

    Raises:
        ValueError: As `routing_report`.
    """
    layers = _choosing_layers(model)
    found = {}
    for name, (size, routes, _) in _route(model, layers, batch).items():
        experts = layers[name].num_experts
        used = routes.expert_index < experts
        chosen = np.zeros((len(used), size, experts), bool)
        group, edge = np.nonzero(used)
        token = routes.token_index[group, edge]
        chosen[group, token, routes.expert_index[group, edge]] = True
        found[name] = chosen.reshape(-1, experts)
    return found


def sparse_layers(model: keras.Model) -> dict[str, SwitchLayer]:
    """The `SwitchLayer`s of a model, by a short name.

    Args:
        model: A built model.

    Returns:
        A dict whose keys are the layers' paths without `/feed_forward`.
    """
    return {
        layer.path.removesuffix("/feed_forward"): layer
        for layer in model._flatten_layers()
        if isinstance(layer, SwitchLayer)
    }


def _choosing_layers(model):
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(
            "model must have a SwitchLayer; received "
            f"{model.name!r}, which has none."
        )
    for layer in layers.values():
        if isinstance(layer.router.routes_spec(), RouterMask):
            raise ValueError(
                "model must have routers that choose; received a "
                f"{type(layer.router).__name__}, which mixes tokens: there are "
                "no edges to count."
            )
    return layers


def _route(model, layers, batch):
    """One call of the model: group size, routes and statistics by layer."""
    seen = {}
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_recorded(layer, name, seen))
        model(batch, training=False)
    missing = sorted(set(layers) - set(seen))
    if missing:
        raise ValueError(
            "model must call all its SwitchLayers; received one that does "
            f"not call {missing}."
        )
    return seen


@contextlib.contextmanager
def _recorded(layer, name, seen):
    """While open, keeps what the layer's router does under `name`."""
    router, call = layer.router, layer.router.call

    def recording(tokens, valid, **kwargs):
        room = layer.capacity_for(tokens, valid, training=True)
        routes = call(
            tokens,
            valid,
            capacity=room.slots,
            quota=room.quota,
            token_ids=kwargs.get("token_ids"),
        )
        statistics = keras.ops.convert_to_numpy(router.stats.value).copy()
        arrays = [keras.ops.convert_to_numpy(field) for field in routes]
        seen[name] = tokens.shape[1], type(routes)(*arrays), statistics
        return call(tokens, valid, **kwargs)

    # On the instance, so that neither its class nor another layer is touched.
    router.call = recording
    try:
        yield
    finally:
        del router.call


def _token_ids(batch, name):
    if not isinstance(batch, Mapping):
        return batch
    if "token_ids" in batch:  # a decoder alone
        return batch["token_ids"]
    stack = "decoder" if "decoder" in name else "encoder"
    return batch[f"{stack}_token_ids"]


class _Counter:
    """Sums over batches of what one layer did."""

    def __init__(self, layer):
        self._layer = layer
        self._statistics = np.zeros(len(STATISTICS))  # times tokens
        self._edges = 0
        self._gates = np.zeros(layer.num_experts)  # sums
        self._keys, self._counts = [], []
        self.num_tokens = 0

    def add(self, group_size, routes, statistics, ids):
        num_experts = self._layer.num_experts
        used = routes.expert_index < num_experts  # [G, M]
        self._edges += int(used.sum())
        np.add.at(self._gates, routes.expert_index[used], routes.gate[used])
        self.num_tokens += int(statistics[_COUNT])
        self._statistics += statistics[:_COUNT] * statistics[_COUNT]
        # Groups are cut from the flattened batch, in order.
        first = np.arange(len(used))[:, None] * group_size  # [G, 1]
        tokens = ids[(first + routes.token_index)[used]].astype("int64")
        key = tokens * num_experts + routes.expert_index[used]
        keys, counts = np.unique(key, return_counts=True)
        self._keys.append(keys)
        self._counts.append(counts)

    def report(self, name, id_to_token, num_tokens):
        ids, table = self._table()
        edges = table.sum(axis=0)
        load = edges / max(self._edges, 1)
        means = self._statistics / max(self.num_tokens, 1)
        count = table.sum(axis=1)
        order = np.argsort(-count, kind="stable")[:num_tokens]
        share = table / np.maximum(count, 1)[:, None]
        logs = np.log(share, where=share > 0, out=np.zeros_like(share))
        return LayerRouting(
            name=name,
            num_tokens=self.num_tokens,
            load=load,
            mean_gate=self._gates / np.maximum(edges, 1),
            max_mean_load=float(load.max() * len(load)),
            dropped_fraction=float(means[_DROPPED]),
            router_confidence=float(means[_CONFIDENCE]),
            router_entropy=float(means[_ENTROPY]),
            load_balancing_loss=float(means[_BALANCE]),
            token_entropy=float(-(table * logs).sum() / max(self._edges, 1)),
            token_ids=ids[order],
            tokens=tuple(id_to_token(int(i)) for i in ids[order]),
            token_count=count[order],
            token_share=share[order],
        )

    def _table(self):
        """Ids `[U]` that were seen, and their edges by expert, `[U, E]`."""
        keys, where = np.unique(np.concatenate(self._keys), return_inverse=True)
        counts = np.zeros(len(keys), "int64")
        np.add.at(counts, where, np.concatenate(self._counts))
        token, expert = np.divmod(keys, self._layer.num_experts)
        ids, row = np.unique(token, return_inverse=True)
        table = np.zeros((len(ids), self._layer.num_experts), "int64")
        table[row, expert] = counts
        return ids, table

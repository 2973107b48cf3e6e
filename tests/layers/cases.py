"""Random cases for the invariants: a shape, a router, tokens and a mask."""

import dataclasses
from typing import NamedTuple

import numpy as np

import keras_switch
from tests import bridge, reference

D, F = 4, 8  # F = 2 D, so that an expert can be the identity


class Config(NamedTuple):
    """A shape: few of them, because each is compiled once on JAX."""

    batch: int
    length: int
    num_experts: int
    capacity: int
    dispatch: str


CONFIGS = [
    Config(2, 8, 4, 1, "gather"),
    Config(2, 8, 4, 2, "gather"),
    Config(2, 8, 4, 2, "einsum"),
    Config(2, 8, 4, 8, "gather"),
    Config(2, 8, 1, 2, "gather"),
    Config(2, 3, 4, 1, "gather"),
    Config(3, 1, 4, 1, "gather"),
]
ROUTERS = ["switch", "top_k", "expert_choice"]
REGIMES = ["normal", "ties", "one expert", "tiny", "large"]
MASKS = ["none", "right", "left", "holes", "all"]


@dataclasses.dataclass(frozen=True)
class Case:
    config: Config
    router: str  # one of ROUTERS
    regime: str
    mask: str
    seed: int

    @property
    def experts_choose(self):
        return self.router == "expert_choice"

    @property
    def k(self):
        return min(2, self.config.num_experts) if self.router == "top_k" else 1

    def tokens(self, offset=0):
        rng = np.random.default_rng(self.seed + offset)
        x = rng.normal(size=(self.config.batch, self.config.length, D))
        if self.regime == "one expert":
            x = np.abs(x)
        return x.astype("float32")

    def kernel(self):
        experts = self.config.num_experts
        rng = np.random.default_rng(self.seed + 1)
        kernel = rng.normal(size=(D, experts))
        if self.regime == "ties":
            kernel = np.zeros((D, experts))
        elif self.regime == "one expert":
            kernel[:, rng.integers(experts)] += 5
        # Not so large that a probability underflows: that would be a tie.
        scale = {"tiny": 1e-2, "large": 4.0}.get(self.regime, 1.0)
        return (scale * kernel).astype("float32")

    def padding_mask(self):
        shape = self.config.batch, self.config.length
        rng = np.random.default_rng(self.seed + 2)
        places = np.arange(shape[1])
        lengths = rng.integers(0, shape[1] + 1, size=(shape[0], 1))
        return {
            "none": np.ones(shape, bool),
            "right": places < lengths,
            "left": places >= lengths,
            "holes": rng.random(shape) < 0.6,
            "all": np.zeros(shape, bool),
        }[self.mask].astype("int32")


_layers = {}


def make(case, dispatch=None, capacity=None, exploration="argmax"):
    """The real layer, made once for a configuration, with the case's kernel."""
    config = case.config
    dispatch = dispatch or config.dispatch
    capacity = capacity or config.capacity
    key = config, case.k, case.router, dispatch, capacity, exploration
    if key not in _layers:
        spec = reference.Spec(
            config.num_experts,
            router=case.router,
            k=case.k,
            dispatch=dispatch,
            capacity_factor=1e-3,
            min_capacity=capacity,
            capacity=capacity if case.experts_choose else None,
            load_balancing_loss_weight=1.0,
            z_loss_weight=1.0,
        )
        router = bridge.make_router(spec, exploration=exploration, jitter=0.5)
        _layers[key] = bridge.make_layer(spec, D, F, router=router)
    layer = _layers[key]
    layer.router.kernel.assign(case.kernel())
    bridge.fill_experts(layer)
    return layer


class Run(NamedTuple):
    y: np.ndarray
    routes: keras_switch.RouterIndices
    losses: tuple
    statistics: dict


def run(layer, x, mask, training=True):
    y, routes = layer(
        x, padding_mask=mask, training=training, return_routing=True
    )
    stats = bridge.numpy(layer.routing_stats.value).tolist()
    return Run(
        bridge.numpy(y),
        bridge.routes_to_numpy(routes),
        tuple(float(bridge.numpy(loss)) for loss in layer.losses),
        dict(zip((*layer.routing_stats.names, "tokens"), stats, strict=True)),
    )

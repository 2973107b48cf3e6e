"""The arms of `study.py`: what is trained, and what the papers found."""

import copy
from typing import Any, NamedTuple

# Everything the arms share. Prefix LM: 105 targets for each row, where span
# corruption has 29; a step must pay for the gradient of each expert.
COMMON = {
    "prefix_fraction": 0.25,
    "batch_size": 32,
    "input_length": 33,
    "optimizer": "adafactor",
    "learning_rate": 0.06,
    "warmup_steps": 200,
    "backbone": {
        "num_encoder_layers": 1,
        "num_decoder_layers": 4,
        "num_heads": 4,
        "hidden_dim": 128,
        "intermediate_dim": 512,
        "dropout": 0.0,
        "tie_embedding_weights": False,
        "encoder_sparse_step": 0,
        "decoder_sparse_step": 0,
    },
    "router": None,
    "decoder_router": None,  # as `router`
}
# What makes the dense twin a Switch Transformer. Evaluation is dropless.
_SPARSE = {
    "backbone": {
        "num_experts": 16,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 1,
        "capacity_factor": 1.25,
        # The whole batch is one group, as on one core of the paper's.
        "group_size": 1 << 20,
    },
    "router": {"kind": "switch"},
}


_CAUSAL = {"kind": "switch"}


class Arm(NamedTuple):
    """A model to train.

    Args:
        changes: Of `COMMON`; a dict in it changes entries of a dict.
        paper: What was published of the change.
    """

    changes: dict[str, Any]
    paper: str = ""


def _sparse(paper="", router=None, decoder_router=None, **backbone):
    changes = copy.deepcopy(_SPARSE)
    changes["backbone"] |= backbone
    changes["router"] |= router or {}
    changes["decoder_router"] = decoder_router
    return Arm(changes, paper)


DENSE = Arm({})
SWITCH = _sparse()
# A feed-forward as wide as all experts: what no router can beat by much.
BOUND = {"wide": Arm({"backbone": {"intermediate_dim": 8192}})}
ABLATIONS = {
    "experts_4": _sparse(
        "2, 4 and 8 experts beat the dense model (Switch, appendix D)",
        num_experts=4,
    ),
    "experts_8": _sparse(
        "2, 4 and 8 experts beat the dense model (Switch, appendix D)",
        num_experts=8,
    ),
    "experts_32": _sparse(
        "more experts are better at every step, to 256 (Switch, figure 4)",
        num_experts=32,
    ),
    "experts_64": _sparse(
        "more experts are better at every step, to 256 (Switch, figure 4)",
        num_experts=64,
    ),
    "every_other": _sparse(
        "the paper's choice for Switch-Base; Switch-C has every layer sparse",
        encoder_sparse_step=0,
        decoder_sparse_step=2,
    ),
    "top_2": _sparse(
        "-0.004 nats at factor 1.25 (ST-MoE, table 8), for twice the FLOPs",
        {"kind": "top_k", "k": 2},
        capacity_factor=2.5,
    ),
    "expert_choice": _sparse(
        "top-2's perplexity in under half the steps (Zhou et al.); in the "
        "encoder only, since it sees later tokens",
        {"kind": "expert_choice"},
        decoder_router=_CAUSAL,
    ),
    "capacity_1": _sparse(
        "+0.008 nats against 1.25 (Switch, table 1)", capacity_factor=1.0
    ),
    "capacity_2": _sparse(
        "+0.001 nats against 1.25 (Switch, table 1)", capacity_factor=2.0
    ),
    "dropless": _sparse(
        "1.73 times the gain of capacity factor 1 (MegaBlocks)",
        dispatch="dropless",
    ),
    "no_balance_loss": _sparse(
        "perplexity 39.8 against 35.6, max/mean load 17.8 (Shazeer et al. "
        "2017, table 6)",
        {"load_balancing_loss_weight": 0.0},
    ),
    "half_router": _sparse(
        "all in bfloat16 diverges, a float32 router does not (Switch, table 2)",
        {"half": True},
    ),
    "init_1": _sparse(
        "+0.88 nats at step 3,500 (Switch, table 3)", init_scale=1.0
    ),
    "argmax": _sparse(
        "+0.003 nats against input jitter (Switch, table 11)",
        {"exploration": "argmax"},
    ),
    "z_loss": _sparse(
        "-0.014 nats, and no divergence (ST-MoE, section 3)",
        {"z_loss_weight": 1e-3},
    ),
    "capacity_half": _sparse(
        "+0.057 nats against 1.25 (ST-MoE, table 18)", capacity_factor=0.5
    ),
    "capacity_half_prioritized": _sparse(
        "-0.019 nats against first come at factor 0.75 (ST-MoE, tables 8 and "
        "18); in the encoder only, since it sees later tokens",
        {"batch_prioritized": True},
        decoder_router=_CAUSAL,
        capacity_factor=0.5,
    ),
}
ARMS = {"dense": DENSE, "switch": SWITCH, **BOUND, **ABLATIONS}
GROUPS = {
    "main": ["dense", "switch"],
    "bound": list(BOUND),
    "ablations": list(ABLATIONS),
}


def settings(arm: Arm) -> dict[str, Any]:
    """What an arm is trained with: `COMMON` with its changes."""
    merged = copy.deepcopy(COMMON)
    for name, value in arm.changes.items():
        if isinstance(value, dict) and isinstance(merged[name], dict):
            merged[name] |= value
        else:
            merged[name] = value
    return merged

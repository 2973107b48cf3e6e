"""The arms of `study.py`: what is trained, and what the papers found."""

import copy
from typing import Any, NamedTuple

# Everything the arms share. Prefix LM: 99 targets for each row, where span
# corruption has 29; a step must pay for the gradient of each expert.
COMMON = {
    "prefix_fraction": 0.25,
    "batch_size": 32,
    "input_length": 33,
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
        against: The arm to compare with.
    """

    changes: dict[str, Any]
    paper: str = ""
    against: str = "switch"


def _sparse(
    paper="", router=None, decoder_router=None, against="switch", **backbone
):
    changes = copy.deepcopy(_SPARSE)
    changes["backbone"] |= backbone
    changes["router"] |= router or {}
    changes["decoder_router"] = decoder_router
    return Arm(changes, paper, against)


DENSE = Arm({}, against="dense")
SWITCH = _sparse()
# A feed-forward as wide as all experts: what no router can beat by much.
BOUND = {"wide": Arm({"backbone": {"intermediate_dim": 8192}}, against="dense")}
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
        "-0.018 nats at factor 2.0, for twice the FLOPs (ST-MoE, table 8)",
        {"kind": "top_k", "k": 2},
        capacity_factor=2.0,
    ),
    "expert_choice": _sparse(
        "top-2's perplexity in under half the steps (Zhou et al., figure 2); "
        "here in the encoder only, since it sees later tokens",
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
        "-0.11 nats (MegaBlocks, 64 experts in every layer)",
        against="capacity_1",
        dispatch="dropless",
    ),
    "no_balance_loss": _sparse(
        "+0.11 nats, perplexity 39.8 for 35.6 (Shazeer et al. 2017, table 6)",
        {"load_balancing_loss_weight": 0.0},
    ),
    "half_router": _sparse(
        "all of the model in bfloat16 diverges, with a float32 router it does "
        "not (Switch, table 2); here the router's product alone",
        {"kind": "half"},
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
    "capacity_075": _sparse(
        "+0.031 nats (ST-MoE, table 8, evaluated at 2.0)", capacity_factor=0.75
    ),
    "capacity_075_prioritized": _sparse(
        "-0.007 nats (ST-MoE, tables 8 and 18, evaluated at 2.0); here in the "
        "encoder only, since it sees later tokens",
        {"batch_prioritized": True},
        decoder_router=_CAUSAL,
        against="capacity_075",
        capacity_factor=0.75,
    ),
}


def _small(batch_size, optimizer=None, **backbone):
    """A Switch Transformer that reads few rows a step."""
    arm = _sparse(**backbone)
    arm.changes["batch_size"] = batch_size
    arm.changes["optimizer"] = optimizer or {}
    return arm


def _routed(kind, paper, causal=True, **arguments):
    """A Switch Transformer with another router.

    Where a router sees later tokens, the decoder keeps Switch's.
    """
    backbone = arguments.pop("backbone", {})
    router = {"kind": kind, **arguments}
    arm = _sparse(
        paper,
        router if causal else {"kind": "switch"},
        None if causal else _CAUSAL,
        **backbone,
    )
    arm.changes["router"] = router
    return arm


# Two experts of half the width each, of twice as many: a token costs as much.
_HALVES = {"num_experts": 32, "intermediate_dim": 256, "capacity_factor": 2.5}
_ENCODER_ONLY = "here in the encoder only, since it sees later tokens"
ROUTERS = {
    "router_top_2": _routed(
        "top_k",
        "GShard's choice; a finer split of experts is better (DeepSeekMoE)",
        k=2,
        backbone=_HALVES,
    ),
    "router_noisy_top_2": _routed(
        "noisy_top_k",
        "Shazeer et al. 2017",
        k=2,
        backbone=_HALVES,
    ),
    "router_loss_free": _routed(
        "loss_free",
        "-0.006 nats against a balance loss (Wang et al. 2024: perplexity 9.50 "
        "for 9.56)",
        k=1,
    ),
    "router_no_token_left_behind": _routed(
        "no_token_left_behind", "no benefit (Switch, appendix B)"
    ),
    "router_group_limited": _routed(
        "group_limited",
        "a limit on communication, not for quality (DeepSeek-V2)",
        num_expert_groups=4,
        group_limit=2,
        backbone=_HALVES,
    ),
    "router_base": _routed(
        "base", "as top-2, better than Switch (Lewis et al. 2021)"
    ),
    "router_hash": _routed(
        "hash", "-0.021 nats (Roller et al. 2021: perplexity 23.23 for 23.73)"
    ),
    "router_random": _routed("random", "what a router must beat"),
    "router_expert_choice": _routed(
        "expert_choice",
        "top-2's perplexity in under half the steps (Zhou et al., figure 2); "
        + _ENCODER_ONLY,
        causal=False,
    ),
    "router_soft": _routed(
        "soft",
        "better at every cost (Puigcerver et al. 2023, on images); "
        + _ENCODER_ONLY,
        causal=False,
        # As many slots as a batch has tokens: 32 rows of 33.
        slots=66,
    ),
}
# All read the same number of rows: see `steps_of`.
SMALL_BATCHES = {
    "batch_32": _small(32),
    "batch_8": _small(8),
    "batch_4": _small(4),
    "batch_1": _small(1),
    # A group for each row: less to balance over, in training and in the loss.
    "batch_4_row_groups": _small(4, group_size=None),
    "batch_4_dropless": _small(4, dispatch="dropless"),
    "batch_4_accumulated": _small(4, {"gradient_accumulation_steps": 8}),
    "batch_4_unclipped": _small(4, {"global_clipnorm": None}),
}
ARMS = {
    "dense": DENSE,
    "switch": SWITCH,
    **BOUND,
    **ABLATIONS,
    **ROUTERS,
    **SMALL_BATCHES,
}
GROUPS = {
    "main": ["dense", "switch"],
    "bound": list(BOUND),
    "ablations": list(ABLATIONS),
    "routers": list(ROUTERS),
    "small_batches": list(SMALL_BATCHES),
}


def settings(arm: Arm) -> dict[str, Any]:
    """What an arm is trained with: `COMMON` with its changes."""
    merged = copy.deepcopy(COMMON)
    for name, value in arm.changes.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] |= value
        else:
            merged[name] = value
    return merged


def steps_of(arm: Arm, steps: int) -> int:
    """Steps in which an arm reads the rows of so many steps of `COMMON`."""
    size = COMMON["batch_size"]
    return steps * size // arm.changes.get("batch_size", size)

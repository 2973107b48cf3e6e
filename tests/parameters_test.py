import numpy as np
import pytest

from keras_switch.layers import TopKRouter
from keras_switch.models.presets import preset_paths
from keras_switch.parameters import arguments_of, count_parameters
from tests.models import tiny

BASE_8 = 619_339_008  # the published checkpoint's


@pytest.mark.parametrize(
    ("preset", "total"),
    [
        ("switch_base_8", BASE_8),
        ("switch_base_128", 7_415_217_408),
        ("switch_xxl_128", 394_675_073_024),
        ("switch_c_2048", 1_571_327_875_360),
        ("t5_base", 222_903_552),
        ("t5_large", 737_668_096),
    ],
)
def test_sizes_of_the_published_models(preset, total):
    assert count_parameters(preset)["total"] == total


# Published: total in billions (rounded), and those that a token uses. GLaM's
# from table 4 of its paper; fairseq-MoE's from the abstract and names of its.
@pytest.mark.parametrize(
    ("preset", "total", "active", "published", "published_active"),
    [
        ("glam_0_1b_64", 1_907_612_928, 152_296_704, 1.9, None),
        ("glam_1_7b_64", 26_843_658_240, 1_879_160_832, 27, 1.879),
        ("glam_1_7b_128", 52_615_034_880, 1_880_733_696, 53, 1.881),
        ("glam_8b_64", 142_943_227_904, 9_799_241_728, 143, 9.8),
        ("glam_64b_64", 1_161_756_418_048, 96_604_528_640, 1200, 96.6),
        ("fairseq_moe_15b", 14_604_994_560, 154_352_640, 15, None),
        ("fairseq_moe_52b", 51_830_413_312, 460_797_952, 52, None),
        ("fairseq_moe_207b", 207_142_694_912, 1_726_902_272, 207, None),
        ("fairseq_moe_1_1t", 1_104_215_187_456, 8_831_410_176, 1100, None),
    ],
)
def test_sizes_of_the_published_decoders(
    preset, total, active, published, published_active
):
    counts = count_parameters(preset)
    assert (counts["total"], counts["active"]) == (total, active)
    digits = 2 if published in (1.9, 15, 52, 27, 53, 1200, 1100) else 3
    assert float(f"{total / 1e9:.{digits}g}") == published
    if published_active is not None:
        digits = len(str(published_active)) - 1
        assert float(f"{active / 1e9:.{digits}g}") == published_active


@pytest.mark.parametrize(
    ("preset", "total", "active", "published"),
    [
        # Not in the paper: the shapes of Flaxformer's configuration.
        ("st_moe_base", 700_641_024, 304_279_296, None),
        ("st_moe_large", 4_105_444_352, 991_173_632, "4.1"),
        ("st_moe_32b", 269_104_613_376, 35_062_450_176, "269"),
    ],
)
def test_sizes_of_st_moe(preset, total, active, published):
    counts = count_parameters(preset)
    assert (counts["total"], counts["active"]) == (total, active)
    if published is None:
        return
    digits = len(published.replace(".", ""))
    assert f"{total / 1e9:.{digits}g}" == published
    # With tied logits too; without the dense layers beside the sparse ones not.
    arguments = arguments_of(preset)
    tied = count_parameters({**arguments, "tie_embedding_weights": True})
    assert f"{tied['total'] / 1e9:.{digits}g}" == published
    bare = count_parameters({**arguments, "extra_feed_forward": False})
    assert f"{bare['total'] / 1e9:.{digits}g}" != published


def test_a_depth_of_st_moe_that_its_sizes_do_not_give():
    """27 layers, which the paper's table gives for its dense model, would
    make the sparse ones larger than it says: 4.1B and 269B."""
    deeper = {"num_encoder_layers": 27, "num_decoder_layers": 27}
    for preset, total in (
        ("st_moe_large", 4_195_112_960),
        ("st_moe_32b", 272_502_076_416),
    ):
        arguments = {**arguments_of(preset), **deeper}
        assert count_parameters(arguments)["total"] == total


def test_published_sizes_that_are_not_met():
    """GLaM's table has four numbers that its own shapes do not give."""
    counts = count_parameters("glam_1_7b_32")
    assert counts["total"] == 13_957_969_920  # there 20B
    assert f"{counts['active'] / 1e9:.4g}" == "1.878"  # as there
    counts = count_parameters("glam_1_7b_256")
    assert counts["total"] == 104_157_788_160  # there 105B
    assert counts["active"] == 1_883_879_424  # there 1.886B
    assert count_parameters("glam_0_1b_64")["active"] > 145e6  # as there


def test_switch_base_is_switch_base_8_and_more_experts():
    # Each further expert of 12 layers: a column of the router, two kernels.
    expert = 768 + 2 * 768 * 3072
    for experts in (16, 32, 64, 128, 256):
        total = count_parameters(f"switch_base_{experts}")["total"]
        assert total == BASE_8 + 12 * (experts - 8) * expert


@pytest.mark.parametrize(
    ("sparse", "dense", "layers", "experts", "hidden_dim"),
    [
        ("switch_base_8", "t5_base", 12, 8, 768),
        ("switch_base_256", "t5_base", 12, 256, 768),
        ("switch_large_128", "t5_large", 24, 128, 1024),
        ("switch_xxl_128", "t5_xxl", 24, 128, 4096),
        ("switch_mini", "t5_mini", 2, 8, 128),
    ],
)
def test_a_dense_twin_costs_as_much_but_for_the_routers(
    sparse, dense, layers, experts, hidden_dim
):
    sparse, dense = count_parameters(sparse), count_parameters(dense)
    routers = layers * experts * hidden_dim
    assert sparse["active"] - dense["active"] == routers
    assert sparse["flops"] - dense["flops"] == 2 * routers
    assert dense["active"] == dense["total"]
    assert sparse["flops"] / dense["flops"] < 1.02


VARIANTS = [
    {},
    {"tie_embedding_weights": False},
    {"activation": "gated-gelu"},
    {"activation": "gated-gelu", "tie_embedding_weights": False},
    {"encoder_sparse_step": 1, "decoder_sparse_step": 0},
    {"encoder_sparse_step": [0], "decoder_sparse_step": [1, 0]},
    {"encoder_sparse_step": 0, "decoder_sparse_step": 0, "num_experts": None},
    {"num_encoder_layers": 3, "num_decoder_layers": 1},
    {"num_encoder_layers": 1, "num_decoder_layers": 5},
    {"num_heads": 5, "key_value_dim": 7},
    {"num_heads": 4, "key_value_dim": None},
    {"num_experts": 1},
    {"num_experts": 7, "router": "top_k"},
    {"router": "expert_choice", "decoder_router": "switch"},
    {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9},
    {"vocabulary_size": 77, "hidden_dim": 10, "intermediate_dim": 5},
    {"extra_feed_forward": True},
    {"num_shared_experts": 2, "num_experts": 7, "router": "top_k"},
    {"expert_blocks": 2},
]


@pytest.mark.parametrize("arguments", VARIANTS)
def test_totals_are_those_of_real_models(arguments):
    backbone = tiny.backbone(**arguments)
    counts = [np.prod(w.shape) for w in backbone.trainable_weights]
    arguments = {**tiny.ARGUMENTS, **arguments}
    assert count_parameters(arguments)["total"] == sum(map(int, counts))
    assert count_parameters(backbone) == count_parameters(arguments)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("arguments", [{}, {"expert_intermediate_dim": 7}])
def test_a_decoder_alone_is_counted_from_its_weights(family, arguments):
    backbone = tiny.causal_backbone(family, **arguments)
    chosen = 2 if backbone.router == "top_k" else 1
    total, active = 0, 0
    products = backbone.vocabulary_size * backbone.hidden_dim
    for weight in backbone.trainable_weights:
        size = int(np.prod(weight.shape))
        total += size
        size = size * chosen / 4 if "/experts/" in weight.path else size
        active += size
        products += size if weight.path.endswith("kernel") else 0
    counted = count_parameters(backbone)
    wanted = {"total": total, "active": active, "flops": 2 * products}
    assert counted == wanted


@pytest.mark.parametrize("arguments", VARIANTS)
def test_active_and_flops_are_counted_from_the_weights(arguments):
    """The same numbers by another way: over the weights of a real model."""
    backbone = tiny.backbone(**arguments)
    active, products = 0, 0
    for weight in backbone.trainable_weights:
        size = int(np.prod(weight.shape))
        if "/experts/" in weight.path:
            router = f"{weight.path.split('/')[0]}"
            used = {"switch": 1, "top_k": 2, "expert_choice": 1.25}
            name = backbone.router
            if router.startswith("decoder") and backbone.decoder_router:
                name = backbone.decoder_router
            size = size * min(used[name], backbone.num_experts)
            size = size / backbone.num_experts
        active += size
        if "kernel" in weight.path:
            products += size
    # The logits: of the tied table, or of a kernel Keras calls embeddings.
    products += backbone.vocabulary_size * backbone.hidden_dim
    counted = count_parameters(backbone)
    assert counted["active"] == pytest.approx(active, abs=4)
    assert counted["flops"] == pytest.approx(2 * products, abs=8)


def test_a_hand_count():
    config = {
        "vocabulary_size": 10,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 1,
        "hidden_dim": 2,
        "intermediate_dim": 3,
        "num_experts": 4,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 0,
    }
    embedding, attention, expert, router = 20, 4 * 4, 2 * 2 * 3, 2 * 4
    biases, norms = 2 * 32, (2 + 1 + 3 + 1) * 2
    used = 3 * attention + expert + router + expert
    wanted = {
        "total": embedding + biases + norms + used + 3 * expert,
        "active": embedding + biases + norms + used,
        "flops": 2 * (used + embedding),
    }
    assert count_parameters(config) == wanted


def test_a_router_with_its_own_options():
    router = TopKRouter(k=3)
    config = {**tiny.ARGUMENTS, "router": router}
    one = count_parameters(tiny.ARGUMENTS)
    three = count_parameters(config)
    assert three["total"] == one["total"]
    # Two sparse layers, two more experts of two kernels each.
    assert three["active"] - one["active"] == 2 * 2 * 2 * 16 * 32
    assert count_parameters(tiny.backbone(router=router)) == three


def test_folders_serve_as_well_as_names():
    folder = preset_paths()["switch_mini"]
    assert count_parameters(folder) == count_parameters("switch_mini")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("switch_base_9", "received preset='switch_base_9'"),
        ("hf://a/b", "must be a local preset"),
        (8, "preset_or_config must be a name, a folder, a dict"),
        ({"hidden_dim": 8}, "must give vocabulary_size, num_encoder_layers"),
        ({**tiny.ARGUMENTS, "heads": 2}, "has no argument heads"),
        ({**tiny.ARGUMENTS, "num_heads": 0}, "received num_heads=0"),
        ({**tiny.ARGUMENTS, "num_experts": None}, "received num_experts=None"),
        ({**tiny.ARGUMENTS, "capacity_factor": -1}, "capacity_factor=-1"),
        ({**tiny.ARGUMENTS, "capacity": 0}, "received capacity=0"),
        ({**tiny.ARGUMENTS, "activation": "zzz"}, "activation must be"),
        ({**tiny.ARGUMENTS, "router": "expert_choice"}, "must be causal"),
    ],
)
def test_what_describes_no_model_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        count_parameters(given)

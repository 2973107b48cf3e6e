import keras
import pytest

import keras_switch
from keras_switch import sharding
from keras_switch.layers.routers import ROUTERS
from keras_switch.models.weight_shapes import head_counts, weight_shapes
from tests.models import tiny

not_torch = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has no layouts"
)


def mesh(shape=(4, 2), names=("batch", "model")):
    """A mesh of devices that need not be there: nothing lies on them."""
    count = 1
    for size in shape:
        count *= size
    devices = [f"cpu:{i}" for i in range(count)]
    return keras.distribution.DeviceMesh(shape, names, devices)


def over(layout_map):
    return keras.distribution.ModelParallel(layout_map=layout_map)


def shapes(**arguments):
    config = tiny.backbone().get_config()
    return weight_shapes({**config, "vocabulary_size": 152, **arguments})


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of torch")
def test_torch_says_what_to_use():
    with pytest.raises(RuntimeError, match="need the JAX or the Tensor"):
        sharding.get_layout_map(None)


@not_torch
def test_experts_lie_on_the_batch_axis():
    layout_map = sharding.get_layout_map(mesh())
    path = "encoder_layer_1/feed_forward/experts/{}/kernel"
    axes = {n: layout_map[path.format(n)].axes for n in ("wi", "wi_1", "wo")}
    assert axes["wi"] == axes["wi_1"] == ("batch", None, "model")
    assert axes["wo"] == ("batch", "model", None)
    router = layout_map["encoder_layer_1/feed_forward/router/kernel"]
    assert router.axes == (None, None)
    tokens = layout_map["encoder_layer_1/feed_forward/buffers_at_tokens"]
    experts = layout_map["encoder_layer_1/feed_forward/buffers_at_experts"]
    assert tokens.axes == ("batch", None, None, None)
    assert experts.axes == (None, "batch", None, None)


@not_torch
def test_experts_may_have_an_axis_of_their_own():
    names = ("batch", "expert", "model")
    layout_map = sharding.get_layout_map(
        mesh((2, 2, 2), names), expert_parallel_dim_name="expert"
    )
    experts = layout_map["feed_forward/buffers_at_experts"]
    assert experts.axes == ("batch", "expert", None, None)
    kernel = layout_map["feed_forward/experts/wi/kernel"]
    assert kernel.axes == ("expert", None, "model")


@not_torch
def test_a_mesh_of_one_axis_splits_no_layer():
    layout_map = sharding.get_layout_map(mesh((8,), ("batch",)))
    query = layout_map["encoder_layer_0/self_attention/query/kernel"]
    assert query.axes == (None, None)
    assert layout_map["experts/wi/kernel"].axes == ("batch", None, None)


@not_torch
def test_without_an_axis_experts_are_everywhere():
    layout_map = sharding.get_layout_map(mesh(), expert_parallel_dim_name=None)
    assert layout_map["experts/wi/kernel"].axes == (None, None, "model")
    experts = layout_map["feed_forward/buffers_at_experts"]
    assert experts.axes == ("batch", None, None, None)


@not_torch
@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("activation", ("relu", "gated-gelu"))
def test_every_weight_has_one_rule(tied, activation):
    backbone = tiny.backbone(
        tie_embedding_weights=tied,
        activation=activation,
        extra_feed_forward=tied,
        num_shared_experts=2,
    )
    layout_map = backbone.get_layout_map(mesh())
    sharding.check_rules(layout_map, [w.path for w in backbone.weights])
    for weight in backbone.weights:
        matching = layout_map[weight.path]  # refuses two rules
        assert len(matching.axes) == len(weight.shape), weight.path


@not_torch
@pytest.mark.parametrize("router", ROUTERS)
def test_every_weight_of_a_router_has_one_rule(router):
    backbone = tiny.backbone(router=router, decoder_router="switch")
    layout_map = backbone.get_layout_map(mesh())
    sharding.check_rules(layout_map, [w.path for w in backbone.weights])
    for weight in backbone.weights:
        matching = layout_map[weight.path]
        assert len(matching.axes) == len(weight.shape), weight.path


@not_torch
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_weight_of_a_decoder_alone_has_one_rule(family):
    backbone = tiny.causal_backbone(
        family,
        sparse_step=2,
        use_bias=True,
        extra_feed_forward=True,
        num_shared_experts=1,
        expert_blocks=2,
    )
    layout_map = backbone.get_layout_map(mesh())
    sharding.check_rules(layout_map, [w.path for w in backbone.weights])
    for weight in backbone.weights:
        matching = layout_map[weight.path]  # refuses two rules
        assert len(matching.axes) == len(weight.shape), weight.path
    experts = "transformer_layer_1/feed_forward/experts/block_1/{}/bias"
    assert layout_map[experts.format("wi")].axes == ("batch", None, "model")
    assert layout_map[experts.format("wo")].axes == ("batch", None, None)
    shared = "transformer_layer_1/feed_forward/shared_expert/{}/kernel"
    assert layout_map[shared.format("wi")].axes == (None, "model")
    assert layout_map[shared.format("wo")].axes == ("model", None)


@not_torch
def test_adapters_are_split_as_their_kernels():
    backbone = tiny.causal_backbone()
    backbone.enable_lora(2, ["query", "output", "wi_0", "wo"])
    layout_map = sharding.get_layout_map(mesh())
    sharding.check_rules(layout_map, [w.path for w in backbone.weights])
    found = {
        w.path.partition("/")[2]: layout_map[w.path].axes
        for w in backbone.trainable_weights
    }
    experts = "feed_forward/experts/{}/lora_kernel_{}"
    assert found[experts.format("wi_0", "a")] == ("batch", None, None)
    assert found[experts.format("wi_0", "b")] == ("batch", None, "model")
    assert found[experts.format("wo", "a")] == ("batch", "model", None)
    assert found[experts.format("wo", "b")] == ("batch", None, None)
    attention = "self_attention/{}/lora_kernel_{}"
    assert found[attention.format("query", "a")] == (None, None)
    assert found[attention.format("query", "b")] == (None, "model")
    assert found[attention.format("output", "a")] == ("model", None)
    assert found[attention.format("output", "b")] == (None, None)


@not_torch
@pytest.mark.parametrize(
    "argument", ("model_parallel_dim_name", "expert_parallel_dim_name")
)
def test_an_axis_that_does_not_exist(argument):
    with pytest.raises(ValueError, match=f"{argument} must be an axis of.*mod"):
        sharding.get_layout_map(mesh(), **{argument: "modle"})


@not_torch
def test_one_axis_cannot_split_twice():
    with pytest.raises(ValueError, match="must be another axis"):
        sharding.get_layout_map(mesh(), model_parallel_dim_name="batch")


@not_torch
@pytest.mark.parametrize(
    "arguments, name, path",
    (
        ({"num_experts": 6}, "num_experts", "feed_forward/experts/wi"),
        ({"vocabulary_size": 151}, "vocabulary_size", "token_embedding"),
        ({"num_heads": 3}, "num_heads", "encoder_relative_attention_bias"),
        ({"intermediate_dim": 33}, "intermediate_dim", "feed_forward/wi"),
    ),
)
def test_what_the_mesh_does_not_divide(arguments, name, path):
    distribution = over(sharding.get_layout_map(mesh()))
    sharding.check_divisible(distribution, shapes())
    with pytest.raises(ValueError, match=f"{name} must be a multiple of"):
        sharding.check_divisible(distribution, shapes(**arguments))
    with pytest.raises(ValueError, match=path):
        sharding.check_divisible(distribution, shapes(**arguments))


@not_torch
@pytest.mark.parametrize(
    "shared, argument, path",
    (
        (2, "num_key_value_heads", "self_attention/key/kernel"),
        (None, "num_heads", "self_attention/query/kernel"),
    ),
)
def test_heads_are_not_split(shared, argument, path):
    """Widths are 4 and 2 heads of 6, or 6 heads: 4 divides them all."""
    config = tiny.causal_backbone().get_config()
    config |= {"num_heads": 4 if shared else 6, "num_key_value_heads": shared}
    config |= {"num_experts": 8, "vocabulary_size": 152, "key_value_dim": 6}
    distribution = over(sharding.get_layout_map(mesh((2, 4))))
    sizes = weight_shapes(config)
    sharding.check_divisible(distribution, sizes)
    with pytest.raises(ValueError, match=f"^{argument} must be a mu") as error:
        sharding.check_divisible(distribution, sizes, head_counts(config))
    said = str(error.value)
    assert path in said and f"received {shared or 6}," in said


@not_torch
def test_a_layout_of_its_own_for_what_the_mesh_does_not_divide():
    layout_map = sharding.get_layout_map(mesh())
    layout_map["token_embedding/embeddings"] = (None, None)
    sharding.check_divisible(over(layout_map), shapes(vocabulary_size=151))


@not_torch
def test_a_layout_with_too_few_axes():
    layout_map = sharding.get_layout_map(mesh())
    layout_map["token_embedding/embeddings"] = ("model",)
    with pytest.raises(ValueError, match="an entry for each axis"):
        sharding.check_divisible(over(layout_map), shapes())


@not_torch
def test_a_rule_with_a_typo_is_refused():
    layout_map = sharding.get_layout_map(mesh())
    paths = list(shapes())
    layout_map[".*/self_atention/query/kernel"] = (None, "model")
    with pytest.raises(ValueError, match="self_atention.*matches none"):
        sharding.check_rules(layout_map, paths)


@not_torch
def test_two_rules_for_a_weight_are_refused():
    layout_map = sharding.get_layout_map(mesh())
    layout_map[".*/query/kernel"] = (None, None)
    with pytest.raises(ValueError, match="multiple layout"):
        sharding.check_rules(layout_map, list(shapes()))


@not_torch
def test_a_weight_without_a_rule_is_refused():
    layout_map = sharding.get_layout_map(mesh())
    paths = [*shapes(), "encoder_layer_1/feed_forward/router/gain"]
    with pytest.raises(ValueError, match="router/gain has none"):
        sharding.check_rules(layout_map, paths)


@not_torch
def test_bytes_on_a_device():
    layout_map = sharding.get_layout_map(mesh())
    shapes = {
        "encoder_layer_1/feed_forward/experts/wi/kernel": (8, 16, 32),
        "encoder_layer_norm/scale": (16,),
    }
    assert sharding.bytes_on_device(layout_map, shapes) == 4 * (512 + 16)


def test_the_package_has_it():
    assert keras_switch.sharding is sharding

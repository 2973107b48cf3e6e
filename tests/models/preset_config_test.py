"""Arguments out of JSON: a closed schema, and no class by its name."""

import json

import keras
import pytest

from keras_switch.files import CheckpointError
from keras_switch.layers import Router, SwitchRouter, TopKRouter
from keras_switch.models import (
    SwitchBackbone,
    SwitchCausalBackbone,
    SwitchSeq2SeqLMPreprocessor,
    SwitchTokenizer,
)
from keras_switch.models.preset_config import (
    ROUTER_FIELDS,
    config_of,
    read_backbone,
    read_preprocessor,
    read_router,
    read_tokenizer,
)
from keras_switch.models.preset_fields import Place
from keras_switch.models.presets import preset_paths
from tests.models import tiny

PLACE = Place("config.json", "config")


@keras.saving.register_keras_serializable(package="tests")
class OwnRouter(Router):
    """A router of the user's own, with an argument of its own."""

    def __init__(self, num_experts=None, slope=1.0, **kwargs):
        super().__init__(num_experts, **kwargs)
        self.slope = slope

    def get_config(self):
        return super().get_config() | {"slope": self.slope}


def read(config, overrides=None, routers=(), cls=SwitchBackbone):
    return read_backbone(PLACE, config, cls, overrides or {}, routers)


def config_through_json(**arguments):
    config = tiny.backbone(**arguments).get_config()
    return json.loads(json.dumps(config))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"router": "top_k", "decoder_router": "switch"},
        {"router": TopKRouter(k=3, seed=5, second_policy="all")},
        {"activation": "gated-gelu", "capacity": 3, "group_size": 4},
        {"encoder_sparse_step": [0], "decoder_sparse_step": 1},
        {"name": "mine", "trainable": False, "dtype": "bfloat16"},
        {"router": "expert_choice", "decoder_sparse_step": 0},
        {"extra_feed_forward": True, "num_shared_experts": 2},
    ],
)
def test_what_a_backbone_writes_makes_the_same_one(arguments):
    config = config_through_json(**arguments)
    again = SwitchBackbone(**read(config)).get_config()
    # A float policy says what it was saved in, not what to load it in.
    del config["dtype"], again["dtype"]
    assert json.loads(json.dumps(again)) == config


@pytest.mark.parametrize("name", sorted(preset_paths()))
def test_the_presets_of_the_package_are_read(name):
    with open(f"{preset_paths()[name]}/config.json") as file:
        value = json.load(file)
    cls = SwitchBackbone
    if name in SwitchCausalBackbone.presets:
        cls = SwitchCausalBackbone
    config = config_of(PLACE, value, cls, cls.preset_name)
    assert read(config, cls=cls)["num_heads"] == config["num_heads"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_decoder_alone_is_read(family):
    made = tiny.causal_backbone(family, router=TopKRouter(k=3, seed=5))
    config = json.loads(json.dumps(made.get_config()))
    read_back = read(config, cls=SwitchCausalBackbone)
    again = SwitchCausalBackbone(**read_back).get_config()
    del config["dtype"], again["dtype"]
    assert json.loads(json.dumps(again)) == config


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_layers": 1001}, "config.num_layers"),
        ({"sparse_step": "1"}, "config.sparse_step."),
        ({"encoder_sparse_step": 2}, "config.encoder_sparse_step"),
        ({"decoder_router": None}, "config.decoder_router"),
        ({"position": "eval"}, "config.position"),
        ({"norm": 3}, "config.norm"),
        ({"use_bias": 1}, "config.use_bias"),
        ({"expert_activation": "eval"}, "config.expert_activation"),
        ({"num_key_value_heads": 3}, "config.num_heads"),
        ({"rotary_max_wavelength": 0.5}, "config.rotary_max_wavelength"),
        ({"max_sequence_length": 0}, "config.max_sequence_length"),
    ],
)
def test_what_is_refused_of_a_decoder_alone(change, field):
    config = json.loads(json.dumps(tiny.causal_backbone().get_config()))
    with pytest.raises(CheckpointError) as caught:
        read({**config, **change}, cls=SwitchCausalBackbone)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_heads": 0}, "config.num_heads"),
        ({"surprise": 1}, "config.surprise"),
        ({"dropout": 1.5}, "config.dropout"),
        ({"activation": "eval"}, "config.activation"),
        ({"encoder_sparse_step": "1"}, "config.encoder_sparse_step."),
        ({"num_encoder_layers": 1001}, "config.num_encoder_layers"),
        ({"router": "nearest"}, "config.router."),
        ({"router": 7}, "config.router.registered_name"),
        ({"name": "a/b"}, "config.name"),
        ({"dtype": "eval"}, "config.dtype.name"),
    ],
)
def test_what_is_refused(change, field):
    with pytest.raises(CheckpointError) as caught:
        read(config_through_json() | change)
    assert caught.value.field == field


def test_fields_may_be_left_out_where_there_is_a_default():
    config = config_through_json()
    for name in ("capacity", "dispatch", "trainable", "dtype", "name"):
        del config[name]
    assert "capacity" not in read(config)
    del config["hidden_dim"]
    with pytest.raises(CheckpointError, match="config.hidden_dim must be ther"):
        read(config)


def serialized(router):
    return json.loads(json.dumps(keras.saving.serialize_keras_object(router)))


@pytest.mark.parametrize("name", sorted(ROUTER_FIELDS))
def test_our_routers_are_known_by_their_names(name):
    cls, _ = ROUTER_FIELDS[name]
    assert keras.saving.get_registered_name(cls) == name
    mine = {"num_experts": 4, "seed": 3, "jitter": 0.02, "z_loss_weight": 0.5}
    mine = {key: mine[key] for key in mine if key in cls.settings}
    router = cls(**mine)
    again = read_router(PLACE, serialized(router))
    assert type(again) is cls
    for key in cls.settings:
        assert getattr(again, key) == mine.get(key, getattr(router, key))


def test_a_router_of_the_users_own_comes_by_an_argument():
    value = serialized(OwnRouter(slope=3.0))
    with pytest.raises(CheckpointError, match=r"let in by routers=\["):
        read_router(PLACE, value)
    again = read_router(PLACE, value, [OwnRouter])
    assert type(again) is OwnRouter and again.slope == 3.0
    value["config"]["surprise"] = 1
    with pytest.raises(CheckpointError, match="surprise"):
        read_router(PLACE, value, [OwnRouter])


def test_a_router_in_place_of_the_one_in_the_file():
    config = config_through_json(router=OwnRouter(), decoder_sparse_step=0)
    assert "router" not in read(config, {"router": SwitchRouter()})


def test_the_class_must_be_ours_or_the_callers():
    class Mine(SwitchTokenizer):
        pass

    value = serialized(SwitchTokenizer(proto=tiny.proto()))
    assert config_of(PLACE, value, Mine, "SwitchTokenizer") == value["config"]
    value["registered_name"] = value["class_name"] = "Mine"
    assert config_of(PLACE, value, Mine, "SwitchTokenizer")
    with pytest.raises(CheckpointError, match="registered_name must be"):
        config_of(PLACE, value, SwitchTokenizer, "SwitchTokenizer")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"extra_ids": 3, "add_eos": True, "sequence_length": 6},
        {"dtype": "string", "special_tokens_in_strings": True},
    ],
)
def test_a_tokenizer(arguments):
    tokenizer = SwitchTokenizer(proto=tiny.proto(), **arguments)
    config = json.loads(json.dumps(tokenizer.get_config()))
    again = SwitchTokenizer(proto=tiny.proto(), **read_tokenizer(PLACE, config))
    assert again.get_config() == tokenizer.get_config()


@pytest.mark.parametrize(
    "change",
    [
        {"proto": "/etc/passwd"},
        {"config_file": "../x"},
        {"extra_ids": 10**9},
        {"dtype": "float32"},
        {"dtype": {"config": {"name": "float32"}}},
        {"dtype": {"config": 7}},
        {"surprise": 1},
    ],
)
def test_a_tokenizer_that_is_refused(change):
    config = SwitchTokenizer(proto=tiny.proto()).get_config() | change
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(PLACE, config)
    assert caught.value.field == f"config.{next(iter(change))}"


def test_a_preprocessor():
    preprocessor = tiny.preprocessor()
    config = json.loads(json.dumps(preprocessor.get_config()))
    arguments = read_preprocessor(PLACE, config)
    again = SwitchSeq2SeqLMPreprocessor(preprocessor.tokenizer, **arguments)
    assert again.get_config() == preprocessor.get_config()
    with pytest.raises(CheckpointError, match="encoder_sequence_length"):
        read_preprocessor(PLACE, config | {"encoder_sequence_length": 0})

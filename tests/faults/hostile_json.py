"""Preset folders whose JSON says what it must not."""

import functools
import json

import keras

from tests.faults.hostile_files import Fault, change

_CONFIG = "config.json"
_HUGE = 10**400


@keras.saving.register_keras_serializable(package="hostile")
class Decoy(keras.layers.Layer):
    """A registered class that no preset may name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        import builtins

        builtins.hostile_code_ran = True


def faults() -> list[Fault]:
    """Faults of JSON."""
    return [
        *_of_text(),
        *_of_objects(),
        *_of_fields(),
        *_of_routers(),
        *_of_dtypes(),
        *_of_sizes(),
    ]


def _of_text():
    def text(content):
        data = content if isinstance(content, bytes) else content.encode()
        return lambda folder: (folder / _CONFIG).write_bytes(data)

    for name, content in (
        ("empty", ""),
        ("an open brace", "{"),
        ("a list", "[]"),
        ("a key twice", '{"a": 1, "a": 2}'),
        ("a key twice, deep down", '{"a": {"b": 1, "b": 1}}'),
        ("NaN", '{"a": NaN}'),
        ("minus infinity", '{"a": -Infinity}'),
        ("1e999", '{"a": 1e999}'),
        ("100,000 open brackets", "[" * 100_000),
        ("a million open braces", '{"a":' * 1_000_000),
        ("a million empty lists", '{"a": [' + "[]," * 1_000_000 + "0]}"),
        ("an endless string of quotes", '{"' + r"\"" * 1_000_000),
        ("a number of 5,000 digits", '{"a": ' + "9" * 5000 + "}"),
        ("UTF-16", '{"a": 1}'.encode("utf-16")),
        ("bytes that are no UTF-8", b'{"a": "\xff"}'),
        ("zeros behind the end", b'{"a": 1}\0\0\0'),
    ):
        yield Fault(f"JSON: {name}", text(content), _CONFIG, "backbone")


def _of_objects():
    lambda_layer = keras.saving.serialize_keras_object(
        keras.layers.Lambda(lambda x: x)
    )
    for name, fields in (
        ("eval", {"registered_name": "builtins>eval", "class_name": "eval"}),
        ("os.system", {"module": "os", "class_name": "system"}),
        (
            "a registered class of another package",
            {"registered_name": "hostile>Decoy", "class_name": "Decoy"},
        ),
        ("a Lambda layer", lambda_layer),
        ("a class without a name", {"registered_name": None}),
        ("a name that is a list", {"registered_name": ["keras_switch"]}),
        ("another class' name", {"class_name": "SwitchTokenizer"}),
        ("a module that is a number", {"module": 7}),
        ("a config that is a list", {"config": []}),
        ("a config that is text", {"config": "config.json"}),
        ("a field more", {"build_config": {"input_shape": [1, 2]}}),
        ("a function", {"class_name": "function", "config": "get_file"}),
    ):
        edit = functools.partial(_update, fields=fields)
        spoil = change(_CONFIG, edit)
        yield Fault(f"names {name}", spoil, _CONFIG, "backbone")
    for field in ("class_name", "config", "registered_name", "module"):
        edit = functools.partial(_without, field=field)
        spoil = change(_CONFIG, edit)
        yield Fault(f"says no {field}", spoil, _CONFIG, "backbone")


def _update(content, fields):
    content.update(fields)


def _without(content, field):
    del content[field]


def field(name, value, part=_CONFIG):
    """A function that puts a value into the config of a JSON file."""

    def edit(content):
        content["config"][name] = value

    return change(part, edit)


def shown(value):
    """A value, for the name of a case."""
    text = "a number of 401 digits" if value == _HUGE else json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


_FIELDS = (
    ("surprise", 1),
    ("__class__", "os.system"),
    ("num_heads", 0),
    ("num_heads", -2),
    ("num_heads", True),
    ("num_heads", 2.0),
    ("num_heads", "2"),
    ("num_heads", None),
    ("num_heads", [2]),
    ("num_heads", {"value": 2}),
    ("num_heads", _HUGE),
    ("num_heads", 2**31),
    ("hidden_dim", 0),
    ("vocabulary_size", -1),
    ("num_encoder_layers", 1001),
    ("num_encoder_layers", 10**9),
    ("num_decoder_layers", 0),
    ("num_experts", 0),
    ("num_experts", None),
    ("key_value_dim", 0),
    ("encoder_sparse_step", -1),
    ("encoder_sparse_step", "1"),
    ("encoder_sparse_step", [0, 0]),
    ("encoder_sparse_step", [1]),
    ("encoder_sparse_step", [True]),
    ("encoder_sparse_step", [0.0]),
    ("encoder_sparse_step", _HUGE),
    ("dispatch", "scatter"),
    ("capacity_factor", 0),
    ("capacity_factor", -1.5),
    ("capacity_factor", _HUGE),
    ("capacity_factor", "1.25"),
    ("eval_capacity_factor", 0.0),
    ("min_capacity", 0),
    ("capacity", -1),
    ("group_size", 0),
    ("activation", "hostile>Decoy"),
    ("activation", "builtins.eval"),
    ("activation", {"class_name": "Decoy", "config": {}}),
    ("activation", None),
    ("dropout", 1.0),
    ("dropout", -0.1),
    ("dropout", True),
    ("expert_dropout", 2),
    ("layer_norm_epsilon", 0),
    ("relative_attention_num_buckets", 0),
    ("relative_attention_max_distance", -5),
    ("tie_embedding_weights", 1),
    ("tie_embedding_weights", "false"),
    ("init_scale", 0),
    ("trainable", "yes"),
    ("name", "../../etc"),
    ("name", 7),
    ("name", ""),
    ("name", "n" * 1000),
    ("name", "a\nb"),
)


def _of_fields():
    for name, value in _FIELDS:
        # The name of a field that is refused stands in the error.
        yield Fault(
            f"{name} is {shown(value)}", field(name, value), name, "backbone"
        )
    for name in ("vocabulary_size", "hidden_dim", "num_heads"):

        def edit(content, name=name):
            del content["config"][name]

        yield Fault(f"no {name}", change(_CONFIG, edit), name, "backbone")

    def heads(content):
        content["config"] |= {"key_value_dim": None, "num_heads": 3}

    spoil = change(_CONFIG, heads)
    yield Fault("16 wide with 3 heads", spoil, "hidden_dim", "backbone")


def _router(**fields):
    def edit(content):
        content["config"]["router"] = {
            "module": "keras_switch.layers.routers",
            "class_name": "TopKRouter",
            "config": {"k": 2},
            "registered_name": "keras_switch>TopKRouter",
        } | fields

    return change(_CONFIG, edit)


def _of_routers():
    for name, fields in (
        (
            "a registered class",
            {"registered_name": "hostile>Decoy", "class_name": "Decoy"},
        ),
        (
            "the base class",
            {"registered_name": "keras_switch>Router", "class_name": "Router"},
        ),
        ("a Lambda layer", {"class_name": "Lambda", "registered_name": None}),
        ("a field more", {"config": {"k": 2, "initializer": "zeros"}}),
        ("k of 0", {"config": {"k": 0}}),
        ("k above its experts", {"config": {"k": 5}}),
        (
            "k above the experts it names",
            {"config": {"k": 3, "num_experts": 2}},
        ),
        ("experts of its own number", {"config": {"num_experts": 7}}),
        ("a jitter of 2", {"config": {"jitter": 2}}),
        ("a jitter of text", {"config": {"jitter": "0.1"}}),
        ("a policy of its own", {"config": {"second_policy": "eval"}}),
        ("a seed that is an object", {"config": {"seed": {"a": 1}}}),
        ("a negative loss weight", {"config": {"z_loss_weight": -1.0}}),
        ("a threshold of 2", {"config": {"second_threshold": 2.0}}),
        ("a config that is a list", {"config": [2]}),
    ):
        # What is wrong with two fields together is said of the model.
        names = "k must" if name.startswith("k above") else "router"
        spoil = _router(**fields)
        yield Fault(f"a router with {name}", spoil, names, "backbone")
    for value in ("nearest", "hostile>Decoy", 7, [], {}, True):
        spoil = field("router", value)
        yield Fault(f"router is {shown(value)}", spoil, "router", "backbone")
    yield Fault(
        "a decoder's router that looks ahead",
        field("decoder_router", "expert_choice"),
        "decoder_router",
        "backbone",
        preset="ahead",
    )


def _policy(kind, **config):
    return {
        "module": "keras",
        "class_name": kind,
        "config": config,
        "registered_name": None,
    }


def _map(policies, **fields):
    config = {"default_policy": None, "policy_map": policies} | fields
    return _policy("DTypePolicyMap", **config)


def _of_dtypes():
    int8 = _policy("QuantizedDTypePolicy", mode="int8", source_name=None)
    for name, value in (
        ("eval", "eval"),
        ("float8", "float8_e4m3fn"),
        ("a number", 32),
        ("a class of another package", _policy("Decoy")),
        ("a policy of a module", _policy("DTypePolicy") | {"module": "os"}),
        (
            "a policy registered by a name",
            _policy("DTypePolicy") | {"registered_name": "hostile>Decoy"},
        ),
        ("a policy with a field more", _policy("DTypePolicy", x=1)),
        ("a policy of an unknown name", _policy("DTypePolicy", name="f")),
        ("a mode that is unknown", _policy("QuantizedDTypePolicy", mode="x")),
        ("no mode", _policy("QuantizedDTypePolicy")),
        ("GPTQ", _policy("GPTQDTypePolicy", mode="gptq/4/-1")),
        ("blocks of 0", _policy("Int4DTypePolicy", mode="int4/0")),
        ("a mode that is a list", _policy("Int4DTypePolicy", mode=["int4/8"])),
        (
            "a history of a billion",
            _policy(
                "QuantizedFloat8DTypePolicy",
                mode="float8",
                amax_history_length=10**9,
            ),
        ),
        ("a map without policies", _policy("DTypePolicyMap")),
        ("a map in a map", _map({"a": _map({})})),
        ("a map of a list", _map([])),
        ("a pattern that never ends", _map({"(a+)+$": int8})),
        ("a default that is unknown", _map({}, default_policy="eval")),
    ):
        spoil = field("dtype", value)
        yield Fault(f"dtype: {name}", spoil, "dtype", "backbone")


def _of_sizes():
    for name, fields, names in (
        ("a terabyte of experts", {"num_experts": 2**28}, "size"),
        ("a terabyte of words", {"vocabulary_size": 2**31 - 1}, "size"),
        (
            "1,000 layers of a gigabyte",
            {"num_encoder_layers": 1000, "intermediate_dim": 2**24},
            "size",
        ),
    ):
        edit = functools.partial(_config, fields=fields)
        for load in ("backbone", "no weights"):
            label = "with weights" if load == "backbone" else "without"
            yield Fault(f"{name}, {label}", change(_CONFIG, edit), names, load)
    for name, fields in (
        ("a hundred megabytes of words", {"vocabulary_size": 2**21}),
        ("a hundred megabytes of experts", {"num_experts": 2**14}),
        ("500 layers", {"num_encoder_layers": 500}),
    ):
        edit = functools.partial(_config, fields=fields)
        label = f"{name}, of which the files hold none"
        yield Fault(label, change(_CONFIG, edit), "size", "backbone")


def _config(content, fields):
    content["config"].update(fields)

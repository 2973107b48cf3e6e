"""Folders of `transformers` that are not what they must be."""

import functools
import json
import os
import struct

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.faults.hostile_files import (
    SECRET,
    Fault,
    change,
    flip,
    pickled,
    pipe,
    replace,
)

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_INDEX, _SPIECE = "model.safetensors.index.json", "spiece.model"


def faults() -> list[Fault]:
    """Faults of folders of `transformers`."""
    return [
        fault._replace(preset=fault.preset.replace("good", "whole"))
        for part in (
            _of_configurations(),
            _of_links(),
            _of_headers(),
            _of_tensors(),
            _of_indices(),
            _of_tokenizers(),
            _of_tokenizer_json(),
        )
        for fault in part
    ]


def _field(name, value, part=_CONFIG):
    return change(part, lambda content: content.update({name: value}))


_FIELDS = (
    ("model_type", "bert"),
    ("model_type", ["t5"]),
    ("d_model", 0),
    ("d_model", True),
    ("d_model", "16"),
    ("d_model", 16.0),
    ("d_model", 10**400),
    ("d_model", 2**40),
    ("vocab_size", -1),
    ("vocab_size", 2**31 - 1),
    ("num_layers", 10**9),
    ("num_layers", -1),
    ("num_decoder_layers", 1001),
    ("num_heads", 0),
    ("d_kv", None),
    ("d_ff", [32]),
    ("num_experts", 2**30),
    ("num_experts", 0),
    ("num_sparse_encoder_layers", -1),
    ("num_sparse_decoder_layers", 10**9),
    ("expert_capacity", 0),
    ("expert_capacity", True),
    ("router_jitter_noise", -0.5),
    ("router_jitter_noise", 10**400),
    ("router_bias", True),
    ("router_bias", "no"),
    ("dense_act_fn", "eval"),
    ("dense_act_fn", {"class_name": "Lambda"}),
    ("dropout_rate", "0.1"),
    ("dropout_rate", -1),
    ("layer_norm_epsilon", None),
    ("tie_word_embeddings", 1),
    ("pad_token_id", 7),
    ("eos_token_id", "1"),
    ("decoder_start_token_id", 5),
)


def _of_configurations():
    for name, value in _FIELDS:
        shown = json.dumps(value)
        shown = shown if len(shown) < 40 else "a number of 401 digits"
        yield Fault(f"transformers: {name} is {shown}", _field(name, value), "")
    for name, text in (
        ("a key twice", '{"model_type": "t5", "model_type": "t5"}'),
        ("NaN", '{"model_type": "t5", "d_ff": NaN}'),
        ("1e999", '{"model_type": "t5", "dropout_rate": 1e999}'),
        ("a list", "[]"),
        ("100,000 brackets", '{"a": ' + "[" * 100_000),
        ("an endless string", '{"' + r"\"" * 500_000),
    ):
        yield Fault(
            f"transformers: a configuration that is {name}",
            functools.partial(_write, name=_CONFIG, text=text),
            _CONFIG,
        )


def _write(folder, name, text):
    (folder / name).write_text(text)


def _of_links():
    out = f"../{SECRET}"
    for part in (_CONFIG, _WEIGHTS, _SPIECE, "tokenizer_config.json"):
        yield Fault(
            f"transformers: {part} is a link out", replace(part, out), part
        )
        yield Fault(f"transformers: {part} is a pipe", pipe(part), part)
    yield Fault(
        "transformers: a pickle in place of the weights",
        lambda folder: (
            (folder / _WEIGHTS).unlink(),
            pickled("pytorch_model.bin")(folder),
        ),
        "pickle",
    )
    yield Fault(
        "transformers: weights that are a pickle", pickled(_WEIGHTS), _WEIGHTS
    )
    yield Fault(
        "transformers: a vocabulary that is a pickle", pickled(_SPIECE), _SPIECE
    )


def _header(edit):
    """Edits the header of the weights: JSON behind its length."""

    def spoil(folder):
        data = (folder / _WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header, rest = data[8 : 8 + length], data[8 + length :]
        header = edit(header)
        length = struct.pack("<Q", len(header))
        (folder / _WEIGHTS).write_bytes(length + header + rest)

    return spoil


def _entries(edit):
    def on_json(header):
        content = json.loads(header)
        name = sorted(n for n in content if n != "__metadata__")[0]
        edit(content, name)
        return json.dumps(content).encode()

    return _header(on_json)


def _of_headers():
    cut = functools.partial(_cut, name=_WEIGHTS)
    for name, spoil in (
        ("cut in half", functools.partial(cut, part=0.5)),
        ("cut to 4 bytes", functools.partial(cut, part=0.0)),
        ("with a header of 2**63 bytes", _length(2**63)),
        ("with a header longer than the file", _length(10**6)),
        ("with a header of no bytes", _length(0)),
        ("whose header is no JSON", _header(lambda h: b"{" * len(h))),
        ("whose header is a list", _header(lambda h: b"[]")),
        (
            "with a tensor that overlaps others",
            _entries(lambda c, n: c[n].update(data_offsets=[4, 8])),
        ),
        (
            "with a tensor behind the end",
            _entries(lambda c, n: c[n].update(data_offsets=[0, 2**40])),
        ),
        (
            "with a negative size",
            _entries(lambda c, n: c[n].update(shape=[-1, 4])),
        ),
        (
            "with a terabyte in a tensor",
            _entries(lambda c, n: c[n].update(shape=[2**40])),
        ),
        (
            "with sizes whose product overflows",
            _entries(lambda c, n: c[n].update(shape=[2**33, 2**33])),
        ),
        (
            "with a dtype that is none",
            _entries(lambda c, n: c[n].update(dtype="PICKLE")),
        ),
        (
            "with a tensor that the header forgets",
            _entries(lambda c, n: c.pop(n) and None),
        ),
    ):
        yield Fault(f"transformers: weights {name}", spoil, "")


def _cut(folder, name, part):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: max(int(len(data) * part), 4)])


def _length(value):
    def spoil(folder):
        data = (folder / _WEIGHTS).read_bytes()
        (folder / _WEIGHTS).write_bytes(struct.pack("<Q", value) + data[8:])

    return spoil


def _tensors(edit):
    def spoil(folder):
        tensors = load_file(folder / _WEIGHTS)
        edit(tensors, sorted(tensors)[-1])
        save_file(tensors, folder / _WEIGHTS)

    return spoil


def _put(function):
    def edit(tensors, name):
        tensors[name] = np.ascontiguousarray(function(tensors[name].copy()))

    return edit


def _poke(value):
    def function(values):
        values.reshape(-1)[-1] = value
        return values

    return function


def _of_tensors():
    for name, edit in (
        ("NaN", _put(_poke(np.nan))),
        ("infinity", _put(_poke(np.inf))),
        ("a tensor turned", _put(np.transpose)),
        ("a tensor of one dimension", _put(lambda v: v.reshape(-1)[:1])),
        ("float64", _put(lambda v: v.astype("float64"))),
        ("int8", _put(lambda v: v.astype("int8"))),
        ("booleans", _put(lambda v: v > 0)),
        ("a tensor less", lambda tensors, name: tensors.pop(name)),
        ("a tensor more", lambda t, n: t.update(surprise=t[n].copy())),
        ("a tensor of another name", lambda t, n: t.update(x=t.pop(n))),
        (
            "a copy of the embedding that differs",
            lambda t, n: t.update(
                {"encoder.embed_tokens.weight": t["shared.weight"] + 1}
            ),
        ),
    ):
        yield Fault(f"transformers: {name} in the weights", _tensors(edit), "")


def _of_indices():
    def places(edit):
        return change(_INDEX, lambda content: edit(content["weight_map"]))

    def all_in(name):
        return places(lambda m: m.update(dict.fromkeys(m, name)))

    first = "model-00001-of-00009.safetensors"
    for name, spoil in (
        ("../secret", all_in(f"../{SECRET}")),
        ("an absolute path", all_in("/etc/passwd")),
        ("a path in a folder", all_in("a/model-00001-of-00002.safetensors")),
        ("a pickle", all_in("pytorch_model-00001-of-00002.bin")),
        ("a number", all_in(7)),
        ("a shard that is not there", all_in(first)),
        ("nothing", places(lambda m: m.clear())),
        ("a tensor less", places(lambda m: m.popitem() and None)),
        (
            "a tensor more",
            places(lambda m: m.update(surprise=next(iter(m.values())))),
        ),
        ("no map", change(_INDEX, lambda content: {})),
    ):
        yield Fault(
            f"transformers: an index of {name}", spoil, "", preset="shards"
        )
    yield Fault(
        "transformers: an index of a million files",
        functools.partial(
            _write,
            name=_INDEX,
            text='{"weight_map": {'
            + ",".join(f'"{i}":"a"' for i in range(1_000_000))
            + "}}",
        ),
        _INDEX,
        preset="shards",
    )


def _of_tokenizers():
    for name, spoil in (
        (
            "an empty vocabulary",
            functools.partial(_write, name=_SPIECE, text=""),
        ),
        ("half a vocabulary", functools.partial(_cut, name=_SPIECE, part=0.5)),
        (
            "minus one sentinels",
            _field("extra_ids", -1, "tokenizer_config.json"),
        ),
        (
            "a billion sentinels",
            _field("extra_ids", 10**9, "tokenizer_config.json"),
        ),
        ("true sentinels", _field("extra_ids", True, "tokenizer_config.json")),
        (
            "a configuration that is no JSON",
            functools.partial(_write, name="tokenizer_config.json", text="{"),
        ),
        (
            "added tokens that are not there",
            functools.partial(
                _write, name="added_tokens.json", text='{"<evil>": 2}'
            ),
        ),
    ):
        yield Fault(f"transformers: {name}", spoil, "", "tokenizer")


def _without_model(folder):
    os.unlink(folder / _SPIECE)


def _of_tokenizer_json():
    for name, edit in (
        ("no model", lambda c: c.update(model=None)),
        ("another kind of model", lambda c: c["model"].update(type="BPE")),
        ("a vocabulary of text", lambda c: c["model"].update(vocab="abc")),
        (
            "scores that are text",
            lambda c: c["model"].update(vocab=[["a", "b"]] * 60),
        ),
        ("a normalizer of code", lambda c: c.update(normalizer={"type": "X"})),
    ):
        yield Fault(
            f"transformers: tokenizer.json with {name}",
            functools.partial(
                _both, first=_without_model, then=change("tokenizer.json", edit)
            ),
            "tokenizer.json",
            "tokenizer",
        )
    yield Fault(
        "transformers: no tokenizer at all",
        functools.partial(
            _both,
            first=_without_model,
            then=lambda folder: os.unlink(folder / "tokenizer.json"),
        ),
        "",
        "tokenizer",
    )
    yield Fault(
        "transformers: a flipped bit in the vocabulary's wire format",
        flip(_SPIECE, 0.0),
        _SPIECE,
        "tokenizer",
    )


def _both(folder, first, then):
    first(folder)
    then(folder)

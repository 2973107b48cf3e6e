"""Encoder and decode step as ONNX files, which run without Keras."""

import os
import pathlib

from keras_switch.convert.rules import check_plain
from keras_switch.files import atomic_folder
from keras_switch.layers.validation import check_number
from keras_switch.models.decoding import encode
from keras_switch.models.switch_seq_2_seq_lm import SwitchSeq2SeqLM
from keras_switch.ops.export import check_onnx, write_onnx


def export_onnx(
    lm: SwitchSeq2SeqLM,
    folder: str | os.PathLike,
    batch_size: int = 1,
    input_length: int = 128,
    max_length: int = 64,
) -> None:
    """Writes `encoder.onnx` and `decoder_step.onnx`.

    The encoder runs once for an input. It takes int32 `encoder_token_ids` and
    `encoder_padding_mask`, `[B, S]`, padded at the right, and returns, for
    each decoder layer `i`, `cross_key_i` and `cross_value_i`,
    `[B, K, S, H]`.

    The decode step reads one token of each row. It takes int32 `token_ids`,
    `[B, 1]`, first the start token's 0; int32 `position`, `[]`, from 0 on; the
    encoder's mask and outputs; and `self_key_i` and `self_value_i`,
    `[B, K, T, H]`, at first zeros. It returns float32 `logits`, `[B, V]`, of
    the token that comes next, and `next_self_key_i` and `next_self_value_i`,
    which the next step takes.

    `B`, `S` and `T` are fixed: `batch_size`, `input_length`, `max_length`. As
    in `generate` a token goes through its own expert alone, and a step reads
    no other.

    Args:
        lm: The model, in float32, neither quantized nor with adapters. Only
            torch can write it.
        folder: A folder that does not exist yet, or is empty. It is made whole
            beside its name, then renamed.
        batch_size: Rows of every call, at least 1.
        input_length: Columns of the encoder's arrays, at least 1.
        max_length: Most steps, at least 1.

    Raises:
        ValueError: if an argument is not as above, rows of a batch would
            change each other's results, or a layer cannot be written.
        RuntimeError: on JAX and TensorFlow.
        ImportError: without the packages of the extra `onnx`.
        FileExistsError: if the folder holds something.

    Example:

    ```python
    keras_switch.convert.export_onnx(lm, "served", input_length=32)
    encoder = onnxruntime.InferenceSession("served/encoder.onnx")
    cross = encoder.run(
        None, {"encoder_token_ids": ids, "encoder_padding_mask": mask}
    )
    ```
    """
    check_onnx()
    _check_model(lm, batch_size)
    check_number("batch_size", batch_size, whole=True, at_least=1)
    check_number("input_length", input_length, whole=True, at_least=1)
    check_number("max_length", max_length, whole=True, at_least=1)
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"folder must not exist, or be empty; received {folder}."
        )
    rows = (batch_size, input_length)
    read = {
        "encoder_token_ids": (rows, "int32"),
        "encoder_padding_mask": (rows, "int32"),
    }
    step = {
        "token_ids": ((batch_size, 1), "int32"),
        "position": ((), "int32"),
        "encoder_padding_mask": (rows, "int32"),
        **_caches(lm, "self", batch_size, max_length),
        **_caches(lm, "cross", batch_size, input_length),
    }
    with atomic_folder(folder) as temporary:
        for name, function, inputs in (
            ("encoder", _read, read),
            ("decoder_step", _step, step),
        ):
            write_onnx(
                lm,
                lambda f=function, **tensors: f(lm, tensors),
                inputs,
                temporary / f"{name}.onnx",
            )


def _check_model(lm, batch_size):
    if not isinstance(lm, SwitchSeq2SeqLM):
        raise ValueError(
            f"lm must be a SwitchSeq2SeqLM; received a {type(lm).__name__}."
        )
    if lm.compute_dtype != "float32":
        raise ValueError(
            "lm must compute in float32 (from_preset has dtype=); received "
            f"{lm.compute_dtype}."
        )
    check_plain("lm", lm.backbone)
    if lm.is_batch_dependent and batch_size != 1:
        raise ValueError(
            "batch_size must be 1 where experts have a capacity in "
            "evaluation: the rows of a batch change each other's results; "
            f"received batch_size={batch_size}."
        )


def _names(kind, layers):
    """Of the arrays of a cache, pair after pair."""
    return [
        (f"{kind}_key_{layer}", f"{kind}_value_{layer}")
        for layer in range(layers)
    ]


def _caches(lm, kind, rows, length):
    found = {}
    layers = lm.backbone.stacks["decoder"]
    for names, layer in zip(_names(kind, len(layers)), layers, strict=True):
        attention = layer.self_attention
        heads, width = attention.num_key_value_heads, attention.key_value_dim
        spec = ((rows, heads, length, width), "float32")
        found |= dict.fromkeys(names, spec)
    return found


def _read(lm, inputs):
    output = encode(lm, inputs)[0]["encoder_output"]
    layers = lm.backbone.stacks["decoder"]
    found = {}
    for names, layer in zip(_names("cross", len(layers)), layers, strict=True):
        pair = layer.cross_attention_layer.keys_values(output)
        found |= dict(zip(names, pair, strict=True))
    return found


def _step(lm, inputs):
    layers = len(lm.backbone.stacks["decoder"])
    own, cross = (
        [
            tuple(inputs[name] for name in names)
            for names in _names(kind, layers)
        ]
        for kind in ("self", "cross")
    )
    hidden_states, caches = lm.backbone.call_decoder(
        inputs["token_ids"],
        encoder_padding_mask=inputs["encoder_padding_mask"],
        caches=list(zip(own, cross, strict=True)),
        cache_update_index=inputs["position"],
    )
    found = {"logits": lm._logits(hidden_states)[:, 0]}  # [B, V]
    for names, (pair, _) in zip(
        _names("next_self", layers), caches, strict=True
    ):
        found |= dict(zip(names, pair, strict=True))
    return found

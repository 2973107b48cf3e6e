"""Generation as a SavedModel, which TensorFlow Serving runs without Keras."""

import os
import pathlib
import tempfile
from typing import Any

import keras
from keras import ops

from keras_switch.files import atomic_folder
from keras_switch.layers.validation import check_number
from keras_switch.models.generation_inputs import (
    check_request,
    generated_names,
)
from keras_switch.ops.export import check_saved_model, endpoint_options
from keras_switch.ops.serving import add_text_endpoint, check_text, kept_ids


def export_saved_model(
    lm: Any,
    folder: str | os.PathLike,
    batch_size: int | None = None,
    input_length: int = 128,
    max_length: int = 64,
    stop_token_ids: Any = "auto",
    text: bool = False,
) -> None:
    """Writes a SavedModel with an endpoint `generate`, the default signature.

    The endpoint takes int32 arrays of token ids and their masks, padded at the
    right: `encoder_token_ids` and `encoder_padding_mask`, `[B, input_length]`;
    of a decoder alone `token_ids` and `padding_mask`, `[B, max_length]`, which
    hold the prompt. It returns what `generate` does, `[B, max_length]`, and a
    third array, `decoder_finite_mask` (or `finite_mask`), false where logits
    were NaN or infinite. The sampler is the one the model is compiled with.

    Args:
        lm: A task of this library.
        folder: A folder that does not exist yet, or is empty. It is made whole
            beside its name, then renamed.
        batch_size: Rows of every call, or `None` for any number of them.
        input_length: Columns of the encoder's arrays, at least 1.
        max_length: Of the generated sequence, its start or prompt counted; at
            least 2.
        stop_token_ids: As for `generate`.
        text: Whether there is a second signature, `generate_text`, from
            strings `texts`, `[B]`, to strings `texts`, `[B]`. Inputs of more
            than `input_length` tokens (prompts: `max_length`) are cut. The
            vocabulary is in the SavedModel, which then needs the operations
            of tensorflow-text, whichever signature is called.

    Raises:
        ValueError: if an argument is not as above, the sampler draws at random,
            or rows of a batch would change each other's results; or for text
            without a preprocessor.
        ImportError: for text without tensorflow-text.
        RuntimeError: on torch, which has no SavedModel.
        FileExistsError: if the folder holds something.

    Example:

    ```python
    lm.compile(sampler="greedy")
    keras_switch.convert.export_saved_model(lm, "served/1", max_length=32)
    served = tf.saved_model.load("served/1")
    served.generate(
        {"encoder_token_ids": ids, "encoder_padding_mask": mask}
    )
    ```
    """
    check_saved_model()
    if batch_size is not None:
        check_number("batch_size", batch_size, whole=True, at_least=1)
    check_number("input_length", input_length, whole=True, at_least=1)
    check_number("max_length", max_length, whole=True, at_least=2)
    if text:
        _check_text(lm)
    stops = check_request(
        lm,
        stop_token_ids=stop_token_ids,
        seed=None,
        max_cache_bytes=1,
        max_length=max_length,
        max_new_tokens=None,
        strip_prompt=False,
        truncate=False,
        allow_batch_dependent=False,
    ).stop_token_ids
    _check_model(lm, batch_size)
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"folder must not exist, or be empty; received {folder}."
        )
    lengths = _lengths(lm, input_length, max_length)
    signature = {
        name: keras.InputSpec(
            shape=(batch_size, length), dtype="int32", name=name
        )
        for name, length in lengths.items()
    }
    archive = keras.export.ExportArchive()
    # Not the task: with it would come its tokenizer, whose operations of
    # tensorflow-text a server does not know.
    archive.track(lm.backbone)
    archive.add_endpoint(
        "generate",
        lambda inputs: _generate(lm, inputs, max_length, stops),
        input_signature=[signature],
        **endpoint_options(),
    )
    with atomic_folder(folder) as temporary:
        if not text:
            archive.write_out(str(temporary), verbose=False)
            return
        with tempfile.TemporaryDirectory() as arrays:
            archive.write_out(arrays, verbose=False)
            _add_text(lm, arrays, temporary, batch_size, lengths)


def _check_text(lm):
    if lm.preprocessor is None:
        raise ValueError(
            "text must be False for a model without a preprocessor, which "
            "knows the vocabulary; received text=True, preprocessor=None."
        )
    check_text()


def _add_text(lm, source, target, batch_size, lengths):
    """The tokenizer round the endpoint of `source`, written to `target`."""
    tokenizer = lm.preprocessor.tokenizer
    names = generated_names(lm.input_names)
    # encoder_token_ids -> encoder_sequence_length
    own = {
        name.replace("token_ids", "sequence_length"): length
        for name, length in lengths.items()
        if name.endswith("token_ids")
    }

    def pack(texts):
        packed = lm.preprocessor.generate_preprocess(texts, **own)
        return {name: packed[name] for name in lengths}

    def unpack(outputs):
        ids = kept_ids(
            outputs[names.ids],
            outputs[names.mask],
            tokenizer.special_token_ids,
            tokenizer.vocabulary_size(),
            tokenizer.token_to_id(""),
        )
        return tokenizer.detokenize(ids)

    add_text_endpoint(
        source, target, pack, unpack, tokenizer.graph_tokenizer, batch_size
    )


def _check_model(lm, batch_size):
    if getattr(lm, "sampler", None) is None:
        raise ValueError(
            "lm must be compiled, for its sampler: lm.compile(sampler="
            "'greedy'), for instance."
        )
    if getattr(lm.sampler, "variables", []):
        raise ValueError(
            "sampler must not draw at random, as a SavedModel would draw the "
            "same each time: compile the model with 'greedy' or 'beam'; "
            f"received a {type(lm.sampler).__name__}."
        )
    if lm.is_batch_dependent and batch_size != 1:
        raise ValueError(
            "batch_size must be 1 where experts have a capacity in "
            "evaluation: the rows of a batch change each other's results; "
            f"received batch_size={batch_size}."
        )


def _lengths(lm, input_length, max_length):
    """Columns of each array that the endpoint takes."""
    if "encoder_token_ids" in lm.input_names:
        names = ("encoder_token_ids", "encoder_padding_mask")
        return dict.fromkeys(names, input_length)
    return dict.fromkeys(lm.input_names, max_length)


def _generate(lm, inputs, max_length, stops):
    names = generated_names(lm.input_names)
    if names.ids not in inputs:
        rows = ops.shape(next(iter(inputs.values())))[0]
        start = ops.zeros((rows, max_length), "int32")
        first = ops.cast(ops.arange(max_length) == 0, "int32")
        inputs = {**inputs, names.ids: start, names.mask: start + first}
    outputs = dict(lm.generate_step(inputs, stop_token_ids=stops))
    ids = outputs[names.ids]
    outputs[names.ids] = ops.where(outputs[names.mask], ids, 0)
    return outputs

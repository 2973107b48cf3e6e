"""Checkpoints in the layout of Hugging Face `transformers`, in and out."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from keras import ops

from keras_switch.convert import rules
from keras_switch.convert.checkpoint import assign, theirs
from keras_switch.convert.configuration import Configuration
from keras_switch.convert.hub import download
from keras_switch.convert.huggingface_config import (
    configuration_of,
    read_configuration,
)
from keras_switch.convert.safetensors_files import (
    INDEX,
    WEIGHTS,
    Tensors,
    safetensors_package,
)
from keras_switch.files import (
    atomic_folder,
    file_inside,
    read_json,
)
from keras_switch.models import (
    SwitchBackbone,
    SwitchCausalBackbone,
    SwitchCausalLM,
    SwitchSeq2SeqLM,
    SwitchTokenizer,
)
from keras_switch.models.backbone_arguments import is_decoder_only
from keras_switch.models.preset_budget import check_size
from keras_switch.models.presets import LAYOUTS, Layout

_EMBEDDING, _LOGITS = rules.embedding_name(rules.HUGGINGFACE), "lm_head.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def is_huggingface(folder: str | os.PathLike) -> bool:
    """Whether a folder is laid out as `transformers` lays it out.

    A Keras preset has a `config.json` as well, but its own says
    `registered_name`, and one of `transformers` says `model_type`.

    Raises:
        CheckpointError: if the folder's `config.json` is not JSON.
    """
    if not os.path.lexists(pathlib.Path(folder) / "config.json"):
        return False
    return "model_type" in read_json(file_inside(folder, "config.json")[0])


def load_backbone(
    folder: str | os.PathLike,
    load_weights: bool = True,
    max_bytes: int | None = None,
    **arguments: Any,
) -> SwitchBackbone | SwitchCausalBackbone:
    """Makes a backbone from a folder in Hugging Face layout.

    Weights are read tensor by tensor from memory-mapped files, one file open at
    a time: at its peak it takes the model, a file's pages and a sparse layer's
    kernel.

    Args:
        folder: Holds `config.json` of model type `switch_transformers`, `t5`
            or `mixtral`, and `model.safetensors` or its shards and their index.
        load_weights: Whether to load weights.
        max_bytes: Refuse a model whose weights would take more memory;
            `None`: more than is free.
        **arguments: Arguments of the backbone to override. Evaluation is
            dropless unless a `capacity` is given: a number, or `"checkpoint"`
            for the `expert_capacity` of `config.json`, with which
            `transformers` drops tokens in evaluation as well.

    Returns:
        A `SwitchBackbone`, without a sparse layer for a `t5`; or a
        `SwitchCausalBackbone`.

    Raises:
        CheckpointError: if anything is not as it must be.
    """
    folder = pathlib.Path(folder)
    _check_links(folder)
    path = folder / "config.json"
    configuration = read_configuration(path)
    if arguments.get("capacity") == "checkpoint":
        arguments["capacity"] = configuration.expert_capacity
    arguments = {**configuration.arguments, **arguments}
    check_size(path, arguments, max_bytes)
    # Found before memory is taken for the model.
    tensors = Tensors(folder) if load_weights else None
    if load_weights:
        count = sum(map(math.prod, tensors.shapes.values()))
        check_size(folder, arguments, max_bytes, count)
    alone = is_decoder_only(arguments)
    backbone = (SwitchCausalBackbone if alone else SwitchBackbone)(**arguments)
    if load_weights:
        _assign(backbone, configuration, tensors)
        tensors.close()
    return backbone


def _check_links(folder):
    """Refuses links that lead out of the folder, whatever is read of it."""
    for name in sorted(os.listdir(folder)):
        if name.endswith((".json", ".safetensors", ".model")):
            file_inside(folder, name)


def _assign(backbone, configuration, tensors):
    entries = rules.entries(backbone, configuration.table)
    shapes = tensors.shapes
    embedding = rules.embedding_name(configuration.table)
    aliases = {}
    if embedding == _EMBEDDING:
        aliases = {name: embedding for name in _COPIES}
    if backbone.tie_embedding_weights:
        aliases[_LOGITS] = embedding
    elif _LOGITS not in shapes:
        # Tied but not scaled, which is untied with equal kernels.
        entries = [_from_embedding(entry, embedding) for entry in entries]
    assign(
        backbone,
        entries,
        tensors.read,
        shapes,
        aliases=aliases,
        dtypes=tensors.dtypes,
        file=tensors.folder,
    )


def _from_embedding(entry, embedding):
    if entry.sources != (_LOGITS,):
        return entry
    return entry._replace(sources=(embedding,))


def load_tokenizer(
    folder: str | os.PathLike, **arguments: Any
) -> SwitchTokenizer:
    """Makes a tokenizer from a folder in Hugging Face layout.

    Args:
        folder: Holds `spiece.model` or `tokenizer.json`.
        **arguments: Arguments of `SwitchTokenizer` to override.

    Raises:
        CheckpointError: if the folder has no tokenizer of this kind.
    """
    from keras_switch.convert.tokenizer import read_proto

    _check_links(pathlib.Path(folder))
    proto, extra_ids = read_proto(folder)
    return SwitchTokenizer(**{"extra_ids": extra_ids, **arguments}, proto=proto)


def has_tokenizer(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a tokenizer that can be read.

    Mixtral's, which is Llama's, cannot.
    """
    config = read_json(file_inside(folder, "config.json")[0])
    if config["model_type"] == "mixtral":
        return False
    files = ("spiece.model", "tokenizer.json")
    return any((pathlib.Path(folder) / name).is_file() for name in files)


def export_to_transformers(
    model: SwitchBackbone
    | SwitchSeq2SeqLM
    | SwitchCausalBackbone
    | SwitchCausalLM,
    folder: str | os.PathLike,
    max_shard_bytes: int = 5 << 30,
) -> None:
    """Writes a model as `transformers` loads it.

    A `SwitchCausalBackbone` is written as a `mixtral`; of the others, one
    without sparse layers and with gated activations as a `t5`, any other as
    `switch_transformers`. The folder is made whole beside
    its name, then renamed.

    Args:
        model: A task, whose tokenizer is written too, or a backbone.
        folder: A folder that does not exist yet, or is empty.
        max_shard_bytes: Most bytes of one file.

    Raises:
        ValueError: if `transformers` cannot represent the model, and why.
        FileExistsError: if the folder holds something.
    """
    backbone = getattr(model, "backbone", model)
    preprocessor = getattr(model, "preprocessor", None)
    configuration = configuration_of(backbone)
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"folder must not exist, or be empty; received {folder}."
        )
    if configuration.table is rules.MIXTRAL:
        configuration.config.update(_tokens_of(preprocessor))
    with atomic_folder(folder) as temporary:
        _write(temporary, backbone, configuration, max_shard_bytes)
        if preprocessor is not None:
            from keras_switch.convert.tokenizer import write_tokenizer

            write_tokenizer(preprocessor.tokenizer, temporary)


_SPECIAL = (
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _tokens_of(preprocessor):
    """Special tokens of a decoder alone: our tokenizer's, or Mixtral's."""
    ids = (1, 2, None) if preprocessor is None else (0, 1, 0)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return dict(zip(names, ids, strict=True))


def _write(folder, backbone, configuration: Configuration, max_shard_bytes):
    _write_json(folder / "config.json", configuration.config)
    config = configuration.config
    generation = {n: config[n] for n in _SPECIAL if n in config}
    _write_json(folder / "generation_config.json", generation)
    shards = _shards(backbone, configuration, max_shard_bytes)
    width = len(shards)
    weight_map, total = {}, 0
    for number, entries in enumerate(shards, start=1):
        file = WEIGHTS
        if width > 1:
            file = f"model-{number:05}-of-{width:05}.safetensors"
        tensors = _tensors(backbone, entries)
        _save(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(values.nbytes for values in tensors.values())
    if width > 1:
        metadata = {"total_size": total}
        index = {"metadata": metadata, "weight_map": weight_map}
        _write_json(folder / INDEX, index)


def _shards(backbone, configuration, max_shard_bytes):
    """Entries, in lists of at most so many bytes (or of one entry)."""
    size = np.dtype("float32").itemsize
    shards, room = [[]], max_shard_bytes
    for entry in rules.entries(backbone, configuration.table):
        need = size * int(np.prod(entry.shape))
        if need > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(entry)
        room -= need
    return shards


def _tensors(backbone, entries):
    targets = {v.path: v for v in rules.variables(backbone)}
    tensors = {}
    for entry in entries:
        values = ops.convert_to_numpy(ops.cast(targets[entry.path], "float32"))
        tensors |= theirs(entry, values)
    if _EMBEDDING in tensors and not backbone.tie_embedding_weights:
        # `transformers` ties the stacks' embeddings with the logits' only.
        tensors |= {name: tensors[_EMBEDDING] for name in _COPIES}
    return tensors


def _save(tensors, path):
    safetensors_package()
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


LAYOUTS["hf://"] = Layout(
    matches=is_huggingface,
    load_backbone=load_backbone,
    has_tokenizer=has_tokenizer,
    load_tokenizer=load_tokenizer,
    download=download,
    export=export_to_transformers,
)

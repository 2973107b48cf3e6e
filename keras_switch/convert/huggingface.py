"""Checkpoints in the layout of Hugging Face `transformers`, in and out."""

import json
import math
import os
import pathlib
import re
from typing import Any

import numpy as np
from keras import ops

from keras_switch.convert import rules
from keras_switch.convert.checkpoint import assign, theirs
from keras_switch.convert.hub import download
from keras_switch.convert.huggingface_config import (
    Configuration,
    configuration_of,
    read_configuration,
)
from keras_switch.files import (
    CheckpointError,
    atomic_folder,
    file_inside,
    read_json,
)
from keras_switch.models import (
    SwitchBackbone,
    SwitchSeq2SeqLM,
    SwitchTokenizer,
)
from keras_switch.models.preset_budget import check_size
from keras_switch.models.presets import LAYOUTS, Layout

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EMBEDDING, _LOGITS = "shared.weight", "lm_head.weight"
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
) -> SwitchBackbone:
    """Makes a backbone from a folder in Hugging Face layout.

    Weights are read tensor by tensor from memory-mapped files, one file open at
    a time: at its peak it takes the model, a file's pages and a sparse layer's
    kernel.

    Args:
        folder: Holds `config.json` of model type `switch_transformers` or
            `t5`, and `model.safetensors` or its shards and their index.
        load_weights: Whether to load weights.
        max_bytes: Refuse a model whose weights would take more memory;
            `None`: more than is free.
        **arguments: Arguments of `SwitchBackbone` to override. Evaluation is
            dropless unless a `capacity` is given: a number, or `"checkpoint"`
            for the `expert_capacity` of `config.json`, with which
            `transformers` drops tokens in evaluation as well.

    Returns:
        A `SwitchBackbone`; without a sparse layer for a `t5`.

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
    tensors = _Tensors(folder) if load_weights else None
    if load_weights:
        count = sum(map(math.prod, tensors.shapes.values()))
        check_size(folder, arguments, max_bytes, count)
    backbone = SwitchBackbone(**arguments)
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
    aliases = {name: _EMBEDDING for name in _COPIES}
    if backbone.tie_embedding_weights:
        aliases[_LOGITS] = _EMBEDDING
    elif _LOGITS not in shapes:
        # Tied but not scaled, which is untied with equal kernels.
        entries = [_from_embedding(entry) for entry in entries]
    assign(
        backbone,
        entries,
        tensors.read,
        shapes,
        aliases=aliases,
        dtypes=tensors.dtypes,
        file=tensors.folder,
    )


def _from_embedding(entry):
    if entry.sources != (_LOGITS,):
        return entry
    return entry._replace(sources=(_EMBEDDING,))


class _Tensors:
    """The tensors of a folder's safetensors files, by name.

    One file is open at a time: pages of a mapped file that were read count as
    this process's memory until it is closed.
    """

    def __init__(self, folder):
        self.folder = folder
        self.shapes, self.dtypes, self._paths = {}, {}, {}
        self._path = self._file = None
        for name, tensors in _files(folder).items():
            self._list(folder / name, tensors)

    def _open(self, path):
        if path != self._path:
            safetensors = _safetensors()
            self.close()
            try:
                self._file = safetensors.safe_open(path, framework="np")
            except (OSError, safetensors.SafetensorError) as error:
                raise CheckpointError(
                    path, "content", "a whole safetensors file", error
                ) from None
            self._path = path
        return self._file

    def close(self):
        self._path = self._file = None

    def _list(self, path, expected):
        file = self._open(path)
        names = set(file.keys())
        if expected is not None and names != expected:
            differ = sorted(names ^ expected)[0]
            raise CheckpointError(
                path, differ, "in the file and in its index alike", "one only"
            )
        for name in names:
            part = file.get_slice(name)
            self.shapes[name] = tuple(part.get_shape())
            kind = part.get_dtype()
            self.dtypes[name] = _DTYPES.get(kind, kind)
            self._paths[name] = path

    def read(self, name):
        return self._open(self._paths[name]).get_tensor(name)


def _safetensors():
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            "Checkpoints in Hugging Face layout need safetensors: "
            'pip install "keras-switch[convert]".'
        ) from None
    return safetensors


def _files(folder):
    """File names, and the tensors that the index says are in each."""
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    index = read_json(folder / INDEX, max_bytes=16 << 20)
    shards = {}
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(
            folder / INDEX, "weight_map", "an object of file names", where
        )
    for name, shard in where.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise CheckpointError(
                folder / INDEX,
                name,
                "in a file called model-00001-of-00002.safetensors or so",
                repr(shard),
            )
        shards.setdefault(shard, set()).add(name)
    for shard in shards:
        if not (folder / shard).is_file():
            raise CheckpointError(folder, shard, "there", "no such file")
    return shards


def _no_weights(folder):
    for name in _PICKLES:
        if (folder / name).exists():
            return CheckpointError(
                folder,
                name,
                f"{WEIGHTS}: a pickle can run code and is never opened",
                "a pickle",
                "Convert it where you trust it: "
                'AutoModelForSeq2SeqLM.from_pretrained("...")'
                '.save_pretrained("...").',
            )
    return CheckpointError(
        folder, WEIGHTS, f"there, or {INDEX}", "neither of them"
    )


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
    """Whether a folder holds a tokenizer that can be read."""
    files = ("spiece.model", "tokenizer.json")
    return any((pathlib.Path(folder) / name).is_file() for name in files)


def export_to_transformers(
    model: SwitchBackbone | SwitchSeq2SeqLM,
    folder: str | os.PathLike,
    max_shard_bytes: int = 5 << 30,
) -> None:
    """Writes a model as `transformers` loads it.

    A model without sparse layers and with gated activations is written as a
    `t5`, any other as `switch_transformers`. The folder is made whole beside
    its name, then renamed.

    Args:
        model: A `SwitchSeq2SeqLM`, whose tokenizer is written too, or a
            `SwitchBackbone`.
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
    with atomic_folder(folder) as temporary:
        _write(temporary, backbone, configuration, max_shard_bytes)
        if preprocessor is not None:
            from keras_switch.convert.tokenizer import write_tokenizer

            write_tokenizer(preprocessor.tokenizer, temporary)


def _write(folder, backbone, configuration: Configuration, max_shard_bytes):
    _write_json(folder / "config.json", configuration.config)
    generation = {
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
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
    _safetensors()
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

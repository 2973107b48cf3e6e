"""Models and their parts from a preset folder, without trusting it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sentencepiece

from keras_switch.layers.routing import Router
from keras_switch.models.preset_arrays import WeightFiles
from keras_switch.models.preset_budget import check_size
from keras_switch.models.preset_config import (
    config_of,
    read_backbone,
    read_preprocessor,
    read_tokenizer,
)
from keras_switch.models.preset_fields import Field, check_fields
from keras_switch.models.preset_folder import (
    CONFIG,
    INDEX,
    MAX_VOCABULARY,
    PREPROCESSOR,
    TASK,
    TASK_WEIGHTS,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    PresetFolder,
)
from keras_switch.models.preset_weights import load_weights


class Options(NamedTuple):
    """What a caller may say of how a model is loaded."""

    load_weights: bool = True
    max_bytes: int | None = None  # of its weights; None: the free memory
    routers: Sequence[type[Router]] = ()  # classes of the caller's own


def load_backbone(
    cls: type, preset: PresetFolder, options: Options, overrides: Mapping
) -> Any:
    """Makes a backbone.

    Args:
        cls: A backbone of this library or a subclass.
        preset: The folder.
        options: See `Options`.
        overrides: Arguments that take the place of those in the folder.

    Raises:
        CheckpointError: if anything in the folder is not as it must be.
        ValueError: if an override is not.
    """
    place = preset.place(CONFIG)
    config = config_of(place, preset.json(CONFIG), cls, cls.preset_name)
    place = place / "config"
    given = read_backbone(place, config, cls, overrides, options.routers)
    # The policy in `given` is made from that in `overrides`.
    arguments = {**given, **overrides, "dtype": given["dtype"]}
    check_size(place.file, arguments, options.max_bytes)
    if not options.load_weights:
        return cls(**arguments)
    if not (preset.has(WEIGHTS) or preset.has(INDEX)):
        raise preset.place(WEIGHTS, "weights").refuse(
            "there",
            "none",
            "Pass load_weights=False to start from random ones.",
        )
    files = WeightFiles(preset)
    try:
        check_size(files.whole.file, arguments, options.max_bytes, files.count)
        backbone = cls(**arguments)
        load_weights(backbone, files)
    finally:
        files.close()
    return backbone


def load_tokenizer(cls: type, preset: PresetFolder, overrides: Mapping) -> Any:
    """Makes a tokenizer; as `load_backbone`."""
    place = preset.place(TOKENIZER)
    config = config_of(place, preset.json(TOKENIZER), cls, "SwitchTokenizer")
    arguments = {**read_tokenizer(place / "config", config), **overrides}
    tokenizer = cls(**arguments)
    if "proto" not in overrides:
        _set_vocabulary(tokenizer, preset)
    return tokenizer


def _set_vocabulary(tokenizer, preset):
    place = preset.place(VOCABULARY)
    proto = preset.bytes(VOCABULARY, MAX_VOCABULARY)
    try:
        # Before TensorFlow's copy of SentencePiece, which is an older one.
        pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
        if not pieces.get_piece_size():
            raise ValueError("one without pieces")
        tokenizer.set_proto(proto)
    except (RuntimeError, ValueError) as error:
        raise place.refuse(
            "a SentencePiece model for this tokenizer", str(error)
        ) from None


def load_preprocessor(
    cls: type, preset: PresetFolder, overrides: Mapping
) -> Any:
    """Makes a preprocessor, or the default one of a tokenizer that has none;
    as `load_backbone`."""
    arguments = {}
    if preset.has(PREPROCESSOR):
        place = preset.place(PREPROCESSOR)
        value = preset.json(PREPROCESSOR)
        config = config_of(place, value, cls, cls.preset_name)
        arguments = read_preprocessor(place / "config", config, cls.preset_name)
        _check_same(place / "config.tokenizer", config, preset, TOKENIZER)
    tokenizer = load_tokenizer(cls.tokenizer_cls, preset, {})
    return cls(**{"tokenizer": tokenizer, **arguments, **overrides})


def load_task(
    cls: type, preset: PresetFolder, options: Options, overrides: Mapping
) -> Any:
    """Makes a task.

    Args:
        cls: A task of this library or a subclass.
        preset: The folder.
        options: See `Options`.
        overrides: `dtype`, `backbone`, `preprocessor`, and arguments of `cls`.

    Raises:
        CheckpointError: if anything in the folder is not as it must be.
        ValueError: if an override is not.
    """
    own = dict(overrides)
    dtype = {"dtype": own.pop("dtype")} if "dtype" in own else {}
    config = _task_config(cls, preset)
    if "preprocessor" not in own:
        own["preprocessor"] = _preprocessor(cls, preset, config)
    if "backbone" not in own:
        own["backbone"] = load_backbone(
            cls.backbone_cls, preset, options, dtype
        )
    _check_vocabulary(preset, **own)
    return cls(**({"name": config["name"]} if config else {}) | own)


def _task_config(cls, preset):
    """The config in `task.json`, or nothing where there is none.

    What it says of the backbone and the preprocessor stands in files of
    their own, too: two answers would be one too many.
    """
    if preset.has(TASK_WEIGHTS):
        raise preset.place(TASK_WEIGHTS, "file").refuse(
            "absent: a task has no weights but its backbone's", "it"
        )
    if not preset.has(TASK):
        return {}
    place = preset.place(TASK)
    config = config_of(place, preset.json(TASK), cls, cls.preset_name)
    place = place / "config"
    others = {k: v for k, v in config.items() if k not in _PARTS}
    check_fields(place, others, {"name": Field(str, required=True)})
    _check_same(place / "backbone", config, preset, CONFIG)
    if config.get("preprocessor") is not None:
        _check_same(place / "preprocessor", config, preset, PREPROCESSOR)
    return config


_PARTS = ("backbone", "preprocessor")


def _check_same(place, config, preset, name):
    """Refuses a part that is another than the file of its own says."""
    value = config.get(place.field.rpartition(".")[2])
    if value != preset.json(name):
        raise place.refuse(f"what {name} holds", "something else")


def _preprocessor(cls, preset, config):
    named = config.get("preprocessor") if config else True
    if named is None or not preset.has(TOKENIZER):
        return None
    return load_preprocessor(cls.preprocessor_cls, preset, {})


def _check_vocabulary(preset, backbone, preprocessor, **_):
    tokenizer = getattr(preprocessor, "tokenizer", None)
    if getattr(tokenizer, "proto", None) is None:
        return
    rows, pieces = backbone.vocabulary_size, tokenizer.vocabulary_size()
    if pieces > rows:
        raise preset.place(CONFIG, "config.vocabulary_size").refuse(
            f"at least {pieces}, as many as the tokenizer has", rows
        )

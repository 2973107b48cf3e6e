"""Which layout a folder is in, and a model from any of them."""

import os
import pathlib
from typing import Any

from keras_switch.convert import rules
from keras_switch.convert.huggingface import is_huggingface
from keras_switch.convert.huggingface_config import configuration_of
from keras_switch.convert.t5x import load_t5x
from keras_switch.convert.upcycle import UnitGateRouter
from keras_switch.files import file_inside, read_json
from keras_switch.models import (
    SwitchBackbone,
    SwitchCausalLM,
    SwitchSeq2SeqLM,
)
from keras_switch.models.preset_config import ROUTER, ROUTER_FIELDS

# A preset may have this router, too, which lies above what reads presets.
ROUTER_FIELDS["keras_switch>UnitGateRouter"] = (UnitGateRouter, ROUTER)


def kind_of(folder: str | os.PathLike) -> str:
    """The layout of a folder.

    Args:
        folder: Any folder.

    Returns:
        `"keras"`, `"huggingface"` or `"t5x"`.

    Raises:
        ValueError: if it is none of them.
        CheckpointError: if its `config.json` is not JSON.
    """
    folder = pathlib.Path(folder)
    if is_huggingface(folder):
        return "huggingface"
    if (folder / "config.json").is_file():
        return "keras"
    if (folder / "checkpoint").is_file():
        return "t5x"
    raise ValueError(
        "folder must hold config.json (a Keras preset or transformers) or "
        f"checkpoint (T5X); received {folder}."
    )


def load(
    folder: str | os.PathLike, **arguments: Any
) -> SwitchSeq2SeqLM | SwitchCausalLM:
    """Makes a model from a folder in any of the layouts, with its weights.

    Args:
        folder: See `kind_of`.
        **arguments: As for `from_preset` of the task, or for a T5X checkpoint
            of `load_t5x`.

    Returns:
        A `SwitchSeq2SeqLM`, or a `SwitchCausalLM` for a decoder alone; without
        preprocessor if the folder has no tokenizer that can be read.
    """
    if kind_of(folder) == "t5x":
        return SwitchSeq2SeqLM(load_t5x(folder, **arguments))
    config = read_json(file_inside(folder, "config.json")[0])
    alone = (
        config.get("model_type") == "mixtral"
        or config.get("registered_name") == "keras_switch>SwitchCausalBackbone"
    )
    cls = SwitchCausalLM if alone else SwitchSeq2SeqLM
    return cls.from_preset(os.fspath(folder), **arguments)


def table_of(kind: str, backbone: SwitchBackbone) -> rules.Table:
    """The table that says where a backbone's weights lie.

    Args:
        kind: `"huggingface"` or `"t5x"`.
        backbone: Decides which of the tables for `transformers` it is.

    Raises:
        ValueError: if `transformers` cannot represent the backbone.
    """
    return rules.T5X if kind == "t5x" else configuration_of(backbone).table

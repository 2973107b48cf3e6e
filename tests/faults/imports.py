"""Hostile and broken folders of `transformers` and T5X, refused at once."""

import functools
import shutil

import keras

from keras_switch import convert
from keras_switch.models import SwitchSeq2SeqLM, SwitchTokenizer
from tests.faults import hostile_huggingface, hostile_t5x
from tests.faults.guard import digest, refused
from tests.faults.hostile_files import here, plant_secret
from tests.faults.runner import Case, shared
from tests.models import tiny

_LOADERS = {
    "": SwitchSeq2SeqLM.from_preset,
    "tokenizer": SwitchTokenizer.from_preset,
    "t5x": convert.load_t5x,
}
_QUICK = 40
SMALL = {
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_experts": 2,
}


def prepare() -> None:
    """Writes the folders that the cases spoil."""
    from tests.convert import t5x_writer

    keras.utils.set_random_seed(3)
    lm = tiny.lm(preprocessor=tiny.preprocessor(), **SMALL)
    lm.export_to_transformers("whole")
    convert.export_to_transformers(lm, "shards", max_shard_bytes=9000)
    t5x_writer.write("t5x", t5x_writer.parameters_of(lm.backbone))


def cases(quick: bool) -> list[Case]:
    """All cases, or some."""
    found = [
        Case(f"nothing wrong with {name} (it must load)", load)
        for name, load in (
            ("transformers", functools.partial(_loads, "whole")),
            ("shards of transformers", functools.partial(_loads, "shards")),
            ("T5X", functools.partial(_loads, "t5x")),
        )
    ]
    for module in (hostile_huggingface, hostile_t5x):
        for fault in module.faults():
            found.append(Case(fault.name, functools.partial(_refuse, fault)))
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two cases have one name"
    return found[::_QUICK] if quick else found


def _loads(name):
    backbone = convert.load(shared() / name, **_arguments(name)).backbone
    whole = convert.load(shared() / "whole", dropout=0.0).backbone
    assert digest(backbone) == digest(whole)


def _arguments(name):
    return {"dropout": 0.0, "init_scale": 2.0} if name == "t5x" else {}


def _refuse(fault):
    # It must stay as it is; it also warms up what loading needs.
    whole = shared() / ("t5x" if fault.load == "t5x" else "whole")
    model = convert.load(whole)
    shutil.copytree(shared() / fault.preset, "folder", symlinks=True)
    plant_secret()
    folder = here() / "folder"
    fault.spoil(folder)
    error = refused(_LOADERS[fault.load], folder, model)
    assert fault.names in str(error), f"it says: {error}"

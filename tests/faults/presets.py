"""Hostile and broken preset folders: each refused clearly, at once.

Whoever writes a folder can write its manifest, too, so every case has a true
one, but for those that are about the manifest.
"""

import functools
import shutil

import keras

from keras_switch.models import (
    SwitchBackbone,
    SwitchSeq2SeqLM,
    SwitchSeq2SeqLMPreprocessor,
    SwitchTokenizer,
)
from tests.faults import (
    hostile_files,
    hostile_json,
    hostile_parts,
    hostile_weights,
)
from tests.faults.guard import digest, refused
from tests.faults.hostile_files import seal
from tests.faults.runner import Case, shared
from tests.models import tiny

_LOADERS = {
    "": SwitchSeq2SeqLM.from_preset,
    "backbone": SwitchBackbone.from_preset,
    "tokenizer": SwitchTokenizer.from_preset,
    "preprocessor": SwitchSeq2SeqLMPreprocessor.from_preset,
    "no weights": functools.partial(
        SwitchBackbone.from_preset, load_weights=False
    ),
    "float16": functools.partial(SwitchBackbone.from_preset, dtype="float16"),
    "unverified": functools.partial(
        SwitchSeq2SeqLM.from_preset, allow_unverified=True
    ),
}
_QUICK = 60
SMALL = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 0,
    "router": "top_k",
    "decoder_router": "switch",
    "key_value_dim": 6,
}


def prepare() -> None:
    """Writes the presets that the cases spoil."""
    keras.utils.set_random_seed(3)
    lm = tiny.lm(preprocessor=tiny.preprocessor(), **SMALL)
    lm.save_to_preset("good")
    lm.backbone.save_to_preset("shards", max_shard_size=2e-5)
    tiny.backbone(**SMALL | {"decoder_sparse_step": 1}).save_to_preset("ahead")


def cases(quick: bool) -> list[Case]:
    """All cases, or some."""
    found = [
        Case("nothing wrong (it must load)", _loads),
        Case("nothing wrong, in shards (it must load)", _loads_shards),
    ]
    modules = (hostile_json, hostile_parts, hostile_files, hostile_weights)
    for module in modules:
        for fault in module.faults():
            found.append(Case(fault.name, functools.partial(_refuse, fault)))
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two cases have one name"
    return found[::_QUICK] if quick else found


def _loads():
    lm = SwitchSeq2SeqLM.from_preset(str(shared() / "good"))
    assert lm.preprocessor is not None
    assert digest(lm) == digest(
        SwitchSeq2SeqLM.from_preset(str(shared() / "good"))
    )


def _loads_shards():
    good = SwitchBackbone.from_preset(str(shared() / "good"))
    again = SwitchBackbone.from_preset(str(shared() / "shards"))
    assert digest(again) == digest(good)


def _refuse(fault):
    # It must stay as it is; it also warms up what loading needs.
    model = SwitchSeq2SeqLM.from_preset(str(shared() / "good"))
    _LOADERS[fault.load](str(shared() / "good"))
    shutil.copytree(shared() / fault.preset, "preset")
    hostile_files.plant_secret()
    fault.spoil(hostile_files.here() / "preset")
    if fault.sealed:
        seal(hostile_files.here() / "preset")
    folder = hostile_files.here() / "preset"
    error = refused(_LOADERS[fault.load], folder, model)
    assert fault.names in str(error), f"it says: {error}"

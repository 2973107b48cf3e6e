import json
import pathlib
import shutil

import numpy as np
import pytest

from keras_switch.models import (
    SwitchBackbone,
    SwitchCausalBackbone,
    SwitchCausalLM,
    SwitchSeq2SeqLM,
    presets,
)
from keras_switch.models.presets import (
    find_preset,
    preset_paths,
    resolve_preset,
)

NAMES = {
    "switch_base_8",
    "switch_base_16",
    "switch_base_32",
    "switch_base_64",
    "switch_base_128",
    "switch_base_256",
    "switch_large_128",
    "switch_xxl_128",
    "switch_c_2048",
    "switch_mini",
    "st_moe_base",
    "st_moe_large",
    "st_moe_32b",
    "t5_base",
    "t5_large",
    "t5_xxl",
    "t5_mini",
}
CAUSAL = {
    "fairseq_moe_15b",
    "fairseq_moe_52b",
    "fairseq_moe_207b",
    "fairseq_moe_1_1t",
    "glam_0_1b_64",
    "glam_1_7b_32",
    "glam_1_7b_64",
    "glam_1_7b_128",
    "glam_1_7b_256",
    "glam_8b_64",
    "glam_64b_64",
    "switch_causal_mini",
}


def config(name):
    path = pathlib.Path(preset_paths()[name]) / "config.json"
    return json.loads(path.read_text())["config"]


def test_all_presets_are_listed_by_short_name():
    assert set(preset_paths()) == NAMES | CAUSAL
    assert set(SwitchBackbone.presets) == NAMES
    assert set(SwitchCausalBackbone.presets) == CAUSAL
    assert SwitchCausalLM.presets == SwitchCausalBackbone.presets
    assert SwitchSeq2SeqLM.presets == SwitchBackbone.presets


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        ("t5_base", "switch_base_8"),
        ("t5_large", "switch_large_128"),
        ("t5_xxl", "switch_xxl_128"),
        ("t5_mini", "switch_mini"),
    ],
)
def test_a_dense_twin_differs_in_its_experts_alone(dense, sparse):
    dense, sparse = config(dense), config(sparse)
    different = {k for k in sparse if dense[k] != sparse[k]}
    assert different == {
        "name",
        "num_experts",
        "encoder_sparse_step",
        "decoder_sparse_step",
    }


def test_sizes_of_the_bases_differ_in_the_number_of_experts_alone():
    base = config("switch_base_8")
    for experts in (16, 32, 64, 128, 256):
        name = f"switch_base_{experts}"
        wanted = {**base, "num_experts": experts, "name": name}
        assert config(name) == wanted


@pytest.mark.parametrize("name", ["switch_mini", "t5_mini"])
def test_a_short_name_makes_a_model(name):
    backbone = SwitchBackbone.from_preset(name, load_weights=False)
    wanted = config(name)
    made = backbone.get_config()
    assert {k: made[k] for k in wanted} == wanted
    lm = SwitchSeq2SeqLM(backbone)
    assert lm.preprocessor is None


def test_a_short_name_makes_a_decoder_alone():
    lm = SwitchCausalLM.from_preset("switch_causal_mini", load_weights=False)
    wanted = config("switch_causal_mini")
    made = lm.backbone.get_config()
    assert {k: made[k] for k in wanted} == wanted
    assert lm.preprocessor is None


@pytest.mark.parametrize("name", ["glam_8b_64", "fairseq_moe_15b"])
def test_a_large_shape_made_small(name):
    """All that a preset says but for its sizes makes a model that runs."""
    small = {
        "vocabulary_size": 20,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 6,
        "key_value_dim": 4,
        "num_experts": 4,
        "sparse_step": [0],
    }
    backbone = SwitchCausalBackbone.from_preset(
        name, load_weights=False, **small
    )
    first, second = (x.feed_forward for x in backbone.transformer_layers)
    assert first.router.k == 2
    glam = name.startswith("glam")
    assert first.activation == ("relu" if glam else "gelu")
    assert second.activation == ("gated-gelu" if glam else "gelu")
    ids = np.ones((1, 3), "int32")
    outputs = backbone({"token_ids": ids, "padding_mask": ids})
    assert outputs.shape == (1, 3, 8)


def test_st_moe_made_small():
    small = {
        "vocabulary_size": 20,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 6,
        "key_value_dim": 4,
        "num_encoder_layers": 4,
        "num_decoder_layers": 4,
        "num_experts": 4,
    }
    backbone = SwitchBackbone.from_preset(
        "st_moe_32b", load_weights=False, **small
    )
    for layers in backbone.stacks.values():
        extra = [layer.extra_feed_forward is not None for layer in layers]
        assert extra == [False, False, False, True]
        sparse = layers[3].feed_forward
        assert (sparse.capacity_factor, sparse.activation) == (
            1.25,
            "gated-gelu",
        )
        router = sparse.router
        assert (router.k, router.second_threshold) == (2, 0.2)
        assert (router.exploration, router.z_loss_weight) == ("argmax", 1e-3)
    ids = np.ones((1, 3), "int32")
    x = {name: ids for name in backbone.input}
    outputs = backbone(x)
    assert outputs["decoder_sequence_output"].shape == (1, 3, 8)


def test_sizes_of_st_moe_share_their_recipe():
    base = config("st_moe_base")
    different = set()
    for name in ("st_moe_large", "st_moe_32b"):
        other = config(name)
        different |= {k for k in base if base[k] != other[k]}
    assert different == {
        "name",
        "num_encoder_layers",
        "num_decoder_layers",
        "num_heads",
        "hidden_dim",
        "intermediate_dim",
        "key_value_dim",
        "num_experts",
    }


def test_a_task_of_a_preset_without_tokenizer_has_no_preprocessor():
    lm = SwitchSeq2SeqLM.from_preset("t5_mini", load_weights=False)
    assert lm.preprocessor is None


def test_arguments_override_the_preset():
    backbone = SwitchBackbone.from_preset(
        "switch_mini", load_weights=False, num_experts=2, dropout=0.3
    )
    assert (backbone.num_experts, backbone.dropout) == (2, 0.3)


@pytest.mark.parametrize("cls", [SwitchBackbone, SwitchSeq2SeqLM])
def test_weights_that_are_not_there_are_an_error_that_says_what_to_do(cls):
    with pytest.raises(ValueError, match="Pass load_weights=False"):
        cls.from_preset("switch_base_8")


@pytest.mark.parametrize("cls", [SwitchBackbone, SwitchSeq2SeqLM])
def test_unknown_arguments_are_refused(cls):
    with pytest.raises(ValueError, match="has no argument dropuot"):
        cls.from_preset("t5_mini", load_weights=False, dropuot=0.3)


def test_a_task_refuses_arguments_of_the_backbone():
    with pytest.raises(ValueError, match="has no argument num_experts"):
        SwitchSeq2SeqLM.from_preset(
            "switch_mini", load_weights=False, num_experts=8
        )


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="one of .*switch_base_128, .*swich_8"):
        SwitchBackbone.from_preset("swich_8")
    with pytest.raises(ValueError, match="received preset=8"):
        resolve_preset(8)


def test_folders_and_handles_are_left_alone(tmp_path):
    assert resolve_preset(str(tmp_path)) == str(tmp_path)
    assert resolve_preset(tmp_path) == str(tmp_path)
    assert resolve_preset("hf://a/b") == "hf://a/b"


def test_a_handle_that_nothing_here_downloads(tmp_path):
    with pytest.raises(ValueError, match="must start with hf://; received"):
        find_preset("kaggle://a/b/keras/c")


def test_what_is_of_this_package_is_known_by_its_place(tmp_path):
    path = preset_paths()["t5_mini"]
    assert find_preset("t5_mini") == (path, None, True)
    assert find_preset(path).built_in
    copy = shutil.copytree(path, tmp_path / "t5_mini")
    assert find_preset(copy) == (str(copy), None, False)


def test_an_installed_package_has_the_folder_inside(tmp_path, monkeypatch):
    shutil.copytree(
        preset_paths()["switch_base_8"], tmp_path / "presets/switch_base_8"
    )
    (tmp_path / "presets" / "__pycache__").mkdir()
    folders = (str(tmp_path / "presets"), *presets._FOLDERS)
    monkeypatch.setattr(presets, "_FOLDERS", folders)
    assert preset_paths() == {
        "switch_base_8": str(tmp_path / "presets" / "switch_base_8")
    }

"""Checkpoints of other libraries, in and out, and dense models to sparse."""

from keras_switch.convert.huggingface import (
    export_to_transformers as export_to_transformers,
)
from keras_switch.convert.huggingface import load_backbone as load_backbone
from keras_switch.convert.huggingface import load_tokenizer as load_tokenizer
from keras_switch.convert.layouts import kind_of as kind_of
from keras_switch.convert.layouts import load as load
from keras_switch.convert.layouts import table_of as table_of
from keras_switch.convert.onnx import export_onnx as export_onnx
from keras_switch.convert.prune import extract_dense as extract_dense
from keras_switch.convert.prune import merge_experts as merge_experts
from keras_switch.convert.prune import prune_experts as prune_experts
from keras_switch.convert.saved_model import (
    export_saved_model as export_saved_model,
)
from keras_switch.convert.t5x import load_t5x as load_t5x
from keras_switch.convert.upcycle import UnitGateRouter as UnitGateRouter
from keras_switch.convert.upcycle import upcycle as upcycle
from keras_switch.convert.upcycle import upcycle_optimizer as upcycle_optimizer

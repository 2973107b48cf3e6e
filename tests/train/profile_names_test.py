"""Names and groups of operations, of texts that the backends wrote."""

import pytest

from keras_switch_train import profile_names
from keras_switch_train.profile_names import Operation

# Cut short where nothing is read.
PROGRAM = """HloModule jit_step, is_scheduled=true, layout={(f32[8,4])->f32[]}

%fused_computation (p.1: f32[8,4], p.2: f32[4,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  %p.2 = f32[4,4]{1,0} parameter(1)
  ROOT %dot.7 = f32[8,4]{1,0} dot(%p.1, %p.2), lhs_contracting_dims={1}
}

%fused_computation.1 (p.3: f32[8,4]) -> f32[4,8] {
  %p.3 = f32[8,4]{1,0} parameter(0)
  %constant.5 = f32[] constant(0)
  %max.2 = f32[8,4]{1,0} maximum(%p.3, %constant.5)
  ROOT %transpose.3 = f32[4,8]{1,0} transpose(%max.2), dimensions={1,0}
}

%fused_computation.2 (p.4: f32[8,4]) -> f32[4,8] {
  %p.4 = f32[8,4]{1,0} parameter(0)
  ROOT %transpose.4 = f32[4,8]{1,0} transpose(%p.4), dimensions={1,0}
}

ENTRY %main.9 (x.1: f32[8,4], w.1: f32[4,4]) -> f32[4,8] {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %ynn_fusion.12 = f32[8,4]{1,0} fusion(%x.1, %w.1), kind=kCustom, \
calls=%fused_computation, metadata={op_name="jit(step)/transpose(jvp(experts))\
/dot_general" stack_frame_id=5}
  %transpose_copy_fusion.1 = f32[4,8]{1,0} fusion(%ynn_fusion.12), kind=kLoop, \
calls=%fused_computation.1, metadata={op_name="jit(step)/jvp(router)/jit(relu)\
/max"}
  %transpose_copy_fusion.2 = f32[4,8]{1,0} fusion(%x.1), kind=kLoop, \
calls=%fused_computation.2, metadata={op_name="jit(step)/jvp()/transpose"}
  %while.3 = (s32[], /*index=1*/u32[4]{0}) while(%tuple.1), condition=%c, \
body=%b, metadata={op_name="jit(step)/jvp(router)/while/body/while"}
  %copy.4.clone = u32[4]{0} copy(%y)
  ROOT %call.1 = f32[4]{0} custom-call(%y), custom_call_target="__onednn$matmul"
}
"""


def test_instructions_of_a_program():
    names = profile_names.of_xla(PROGRAM)
    assert names["ynn_fusion.12"] == Operation(
        "product", "ynn_fusion", "experts/dot_general, backward"
    )
    assert names["transpose_copy_fusion.1"] == Operation(
        "elementwise", "transpose_copy_fusion", "router/relu/max"
    )
    assert names["transpose_copy_fusion.2"] == Operation(
        "copy", "transpose_copy_fusion", "transpose"
    )
    assert names["while.3"] == Operation("control", "while", "router")
    assert names["copy.4.clone"] == Operation("copy", "copy", "")
    assert names["call.1"] == Operation(
        "product", "custom-call __onednn$matmul", ""
    )


def test_an_instruction_of_an_unknown_program():
    found = profile_names.unknown_of_xla("bitcast_gather_fusion.3")
    assert found == Operation("gather", "bitcast_gather_fusion", "")


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "gradient_tape/switch_layer_1/experts_1/MatMul/MatMul_1:"
            "_MklBatchMatMulV2",
            ("product", "_MklBatchMatMulV2", "experts/MatMul/MatMul_1, back"),
        ),
        ("layer/router/TopKV2:TopKV2", ("sort", "TopKV2", "layer/router/TopK")),
        ("mul_1:Mul", ("elementwise", "Mul", "mul_1")),
        ("EagerLocalExecute: __inference_step_811", None),
        ("KernelAndDeviceFunc::Run", None),
        ("ParallelFor", None),
    ],
)
def test_events_of_tensorflow(name, expected):
    found = profile_names.of_tensorflow(name)
    if expected is None:
        assert found is None
    else:
        assert found[:2] == expected[:2] and found[2].startswith(expected[2])


def test_events_of_torch():
    node = "autograd::engine::evaluate_function: BmmBackward0"
    name = profile_names.of_torch
    assert name("aten::bmm", ["BmmBackward0", node]) == Operation(
        "product", "aten::bmm", "Bmm, backward"
    )
    assert name("aten::bmm", ["aten::matmul", "aten::einsum"]) == Operation(
        "product", "aten::bmm", "einsum"
    )
    assert name("aten::mm", []) == Operation("product", "aten::mm", "")
    assert name(node, []) == Operation("runtime", "autograd::engine", "")


@pytest.mark.parametrize(
    "group, words",
    [
        ("product", "dot _MklFusedMatMul _MklBatchMatMulV2 aten::addmm Einsum"),
        ("sort", "sort TopKV2 aten::argsort"),
        ("gather", "gather scatter dynamic-slice GatherV2 aten::index_select"),
        ("random", "rng-bit-generator StatelessRandomUniformV2 aten::uniform_"),
        ("reduction", "reduce reduce-window Sum ArgMax _MklSoftmax aten::all"),
        ("control", "while conditional StatelessWhile PartitionedCall"),
        ("copy", "copy transpose bitcast ConcatV2 aten::copy_ aten::to"),
        ("elementwise", "add select Relu SelectV2 aten::threshold_backward"),
        ("runtime", "ReluBackward0 CustomGradientFunctionBackward"),
    ],
)
def test_groups(group, words):
    assert group in profile_names.GROUPS
    for word in words.split():
        assert profile_names.group_of([word]) == group, word


def test_the_group_of_a_fusion():
    assert profile_names.group_of(["transpose", "add", "dot"]) == "product"
    assert profile_names.group_of(["transpose", "add"]) == "elementwise"
    assert profile_names.group_of(["transpose", "pad"]) == "copy"

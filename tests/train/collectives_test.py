from keras_switch_train.collectives import Collective, by_kind, collectives

PROGRAM = """\
HloModule jit_step, num_partitions=8
  %p = f32[2,4]{1,0} parameter(0)
  %all-to-all.1 = (f32[1,2,4]{2,1,0}, f32[1,2,4]{2,1,0}) all-to-all(%a, %b), \
channel_id=1, metadata={op_name="jit(step)/encoder_layer_1/constraint"}
  ROOT %r = bf16[2,16]{1,0} all-reduce-start(%p), channel_id=2
  %x = s32[3]{0} all-gather(%y), dimensions={0}
  %g = (f32[2]{0:T(128)}, f32[8]{0:T(128)}) all-gather-start(%p), channel_id=3
  %c = (f32[2], f32[2], u32[]{:S(2)}, u32[]) collective-permute-start(%p)
  %not-one = f32[2]{0} fusion(%all-gather), calls=%f
"""


def test_collectives_are_found_with_their_bytes():
    assert collectives(PROGRAM) == [
        Collective("all-to-all", 64, "jit(step)/encoder_layer_1/constraint"),
        Collective("all-reduce", 64, ""),
        Collective("all-gather", 12, ""),
        Collective("all-gather", 32, ""),
        Collective("collective-permute", 8, ""),
    ]


def test_they_are_summed_by_kind():
    found = by_kind(collectives(PROGRAM))
    assert found["all-to-all"] == (1, 64)
    assert found["reduce-scatter"] == (0, 0)

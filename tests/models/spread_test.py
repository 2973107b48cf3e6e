import keras
import pytest
from keras import ops

import keras_switch
from keras_switch.models import spread
from tests.mesh import one_device
from tests.models import tiny

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has no layouts"
)


@keras.saving.register_keras_serializable("spread_test")
class BiasedRouter(keras_switch.SwitchRouter):
    """Has a weight that the library knows nothing of."""

    def build(self, input_shape):
        super().build(input_shape)
        self.gain = self.add_weight(name="gain", shape=(self.num_experts,))


def test_six_experts_on_four_devices():
    """Refused before a weight is made: there is but one device here."""
    config = tiny.backbone(num_experts=6).get_config()
    with one_device.spread(one_device.layout_map((4, 1))):
        with pytest.raises(ValueError, match="num_experts must be a multiple"):
            spread.check_shapes(config)


def test_heads_that_a_mesh_would_split():
    """Their widths it divides: 2 heads of 6 by 4."""
    config = tiny.causal_backbone().get_config()
    config |= {"num_heads": 4, "num_key_value_heads": 2, "key_value_dim": 6}
    config |= {"num_experts": 8, "vocabulary_size": 152}
    with one_device.spread(one_device.layout_map((2, 4))):
        with pytest.raises(ValueError, match="^num_key_value_heads must be"):
            spread.check_shapes(config)


def test_a_rule_with_a_typo():
    layouts = one_device.layout_map()
    layouts[".*/expert/wi/kernel"] = (None, None, None)
    with one_device.spread(layouts):
        with pytest.raises(ValueError, match="expert/wi/kernel' matches none"):
            tiny.backbone()


def test_a_weight_that_no_rule_means():
    with one_device.spread():
        with pytest.raises(ValueError, match="router/gain has none"):
            tiny.backbone(router=BiasedRouter())
    layouts = one_device.layout_map()
    layouts[".*router/gain"] = (None,)
    with one_device.spread(layouts):
        tiny.backbone(router=BiasedRouter())


def test_weights_and_slots_lie_as_the_rules_say():
    with one_device.spread():
        lm = tiny.lm(hidden_dim=128, intermediate_dim=128)
        lm.optimizer.build(lm.trainable_variables)
    layouts = {v.path: v._layout.axes for v in lm.trainable_variables}
    path = "encoder_layer_1/feed_forward/experts/wi/kernel"
    assert layouts[path] == ("batch", None, "model")
    slots = {
        v.path.rpartition("wi_kernel_")[2]: v._layout.axes
        for v in lm.optimizer.variables
        if "encoder_layer_1_feed_forward_experts_wi" in v.path
    }
    assert slots == {"row": ("batch", None), "column": ("batch", "model")}


def test_slots_of_any_optimizer_lie_where_their_weight_does():
    with one_device.spread():
        lm = tiny.lm()
        lm.compile(keras.optimizers.Adam())
        lm._lay_out()
        lm.optimizer.build(lm.trainable_variables)
    layouts = {
        v.path.partition("/")[2]: v._layout.axes
        for v in lm.optimizer.variables
        if v._layout is not None
    }
    wi = "encoder_layer_1_feed_forward_experts_wi_kernel_momentum"
    assert layouts[wi] == ("batch", None, "model")


def test_a_map_of_keras_is_left_to_keras():
    mesh = keras.distribution.DeviceMesh((1,), ("batch",), ["cpu:0"])
    with one_device.spread(keras.distribution.LayoutMap(mesh)):
        backbone = tiny.backbone()
    assert ops.shape(backbone.token_embedding.embeddings)[0] == tiny.VOCABULARY

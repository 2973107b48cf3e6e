"""Keras layers of Switch Transformers."""

from keras_switch.layers.attention import Attention as Attention
from keras_switch.layers.attention import (
    RelativePositionBias as RelativePositionBias,
)
from keras_switch.layers.experts import Experts as Experts
from keras_switch.layers.feed_forward import FeedForward as FeedForward
from keras_switch.layers.normalization import RMSNorm as RMSNorm
from keras_switch.layers.routers import ExpertChoiceRouter as ExpertChoiceRouter
from keras_switch.layers.routers import TopKRouter as TopKRouter
from keras_switch.layers.routing import Router as Router
from keras_switch.layers.routing import RouterIndices as RouterIndices
from keras_switch.layers.routing import SwitchRouter as SwitchRouter
from keras_switch.layers.switch_layer import SwitchLayer as SwitchLayer
from keras_switch.layers.transformer_layer import (
    TransformerLayer as TransformerLayer,
)

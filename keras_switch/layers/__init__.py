"""Keras layers of Switch Transformers."""

from keras_switch.layers.attention import Attention as Attention
from keras_switch.layers.attention import (
    RelativePositionBias as RelativePositionBias,
)
from keras_switch.layers.base_router import BaseRouter as BaseRouter
from keras_switch.layers.expert_choice_router import (
    ExpertChoiceRouter as ExpertChoiceRouter,
)
from keras_switch.layers.expert_dense import ExpertDense as ExpertDense
from keras_switch.layers.expert_stack import ExpertStack as ExpertStack
from keras_switch.layers.experts import Experts as Experts
from keras_switch.layers.feed_forward import FeedForward as FeedForward
from keras_switch.layers.group_limited_router import (
    GroupLimitedRouter as GroupLimitedRouter,
)
from keras_switch.layers.hash_router import HashRouter as HashRouter
from keras_switch.layers.loss_free_router import (
    LossFreeRouter as LossFreeRouter,
)
from keras_switch.layers.no_token_left_behind_router import (
    NoTokenLeftBehindRouter as NoTokenLeftBehindRouter,
)
from keras_switch.layers.noisy_top_k_router import (
    NoisyTopKRouter as NoisyTopKRouter,
)
from keras_switch.layers.normalization import LayerNorm as LayerNorm
from keras_switch.layers.normalization import RMSNorm as RMSNorm
from keras_switch.layers.positions import CausalBias as CausalBias
from keras_switch.layers.positions import PositionEmbedding as PositionEmbedding
from keras_switch.layers.random_router import RandomRouter as RandomRouter
from keras_switch.layers.routes import RouterIndices as RouterIndices
from keras_switch.layers.routes import RouterMask as RouterMask
from keras_switch.layers.routing import Router as Router
from keras_switch.layers.routing import SwitchRouter as SwitchRouter
from keras_switch.layers.soft_router import SoftRouter as SoftRouter
from keras_switch.layers.switch_layer import SwitchLayer as SwitchLayer
from keras_switch.layers.top_k_router import TopKRouter as TopKRouter
from keras_switch.layers.transformer_layer import (
    TransformerLayer as TransformerLayer,
)

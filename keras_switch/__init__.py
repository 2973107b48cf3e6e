"""keras_switch: Switch Transformers for Keras 3.

Importing it registers every class with Keras, so that saved models load.
"""

from keras_switch import versions as versions  # refuses wrong ones at once

# isort: split

from keras_switch import analysis as analysis
from keras_switch import callbacks as callbacks
from keras_switch import communication as communication
from keras_switch import convert as convert
from keras_switch import data as data
from keras_switch import distillation as distillation
from keras_switch import files as files
from keras_switch import layers as layers
from keras_switch import losses as losses
from keras_switch import models as models
from keras_switch import optimizers as optimizers
from keras_switch import resume as resume
from keras_switch import schedules as schedules
from keras_switch import sharding as sharding
from keras_switch import tasks as tasks
from keras_switch.callbacks import RoutingAlarm as RoutingAlarm
from keras_switch.callbacks import RoutingMonitor as RoutingMonitor
from keras_switch.callbacks import StabilityGuard as StabilityGuard
from keras_switch.distillation import Distiller as Distiller
from keras_switch.distillation import (
    initialize_from_teacher as initialize_from_teacher,
)
from keras_switch.files import CheckpointError as CheckpointError
from keras_switch.layers import BaseRouter as BaseRouter
from keras_switch.layers import ExpertChoiceRouter as ExpertChoiceRouter
from keras_switch.layers import GroupLimitedRouter as GroupLimitedRouter
from keras_switch.layers import HashRouter as HashRouter
from keras_switch.layers import LossFreeRouter as LossFreeRouter
from keras_switch.layers import NoisyTopKRouter as NoisyTopKRouter
from keras_switch.layers import (
    NoTokenLeftBehindRouter as NoTokenLeftBehindRouter,
)
from keras_switch.layers import RandomRouter as RandomRouter
from keras_switch.layers import Router as Router
from keras_switch.layers import RouterIndices as RouterIndices
from keras_switch.layers import RouterMask as RouterMask
from keras_switch.layers import SoftRouter as SoftRouter
from keras_switch.layers import SwitchLayer as SwitchLayer
from keras_switch.layers import SwitchRouter as SwitchRouter
from keras_switch.layers import TopKRouter as TopKRouter
from keras_switch.models import BeamSampler as BeamSampler
from keras_switch.models import SwitchBackbone as SwitchBackbone
from keras_switch.models import SwitchCausalBackbone as SwitchCausalBackbone
from keras_switch.models import SwitchCausalLM as SwitchCausalLM
from keras_switch.models import (
    SwitchCausalLMPreprocessor as SwitchCausalLMPreprocessor,
)
from keras_switch.models import SwitchSeq2SeqLM as SwitchSeq2SeqLM
from keras_switch.models import (
    SwitchSeq2SeqLMPreprocessor as SwitchSeq2SeqLMPreprocessor,
)
from keras_switch.models import SwitchTokenizer as SwitchTokenizer
from keras_switch.parameters import count_parameters as count_parameters
from keras_switch.resume import ResumableCheckpoint as ResumableCheckpoint

__version__ = "0.1.0"

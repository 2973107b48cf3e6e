"""keras_switch: Switch Transformers for Keras 3.

Importing it registers every class with Keras, so that saved models load.
"""

from keras_switch import callbacks as callbacks
from keras_switch import losses as losses
from keras_switch.callbacks import RoutingMonitor as RoutingMonitor
from keras_switch.layers import ExpertChoiceRouter as ExpertChoiceRouter
from keras_switch.layers import Router as Router
from keras_switch.layers import RouterIndices as RouterIndices
from keras_switch.layers import SwitchLayer as SwitchLayer
from keras_switch.layers import SwitchRouter as SwitchRouter
from keras_switch.layers import TopKRouter as TopKRouter

__version__ = "0.1.0"

"""Callbacks that watch routers and numbers while `fit` runs."""

from keras_switch.callbacks.routing_alarm import RoutingAlarm as RoutingAlarm
from keras_switch.callbacks.routing_monitor import (
    RoutingMonitor as RoutingMonitor,
)
from keras_switch.callbacks.stability_guard import (
    StabilityGuard as StabilityGuard,
)

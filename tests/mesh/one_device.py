"""A mesh of one device: what a mesh runs, where one device is all there is."""

import contextlib

import keras

from keras_switch import sharding


def layout_map(shape=(1, 1)):
    """Layouts for a mesh; of its devices only the first need be there."""
    devices = [f"cpu:{i}" for i in range(shape[0] * shape[1])]
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    return sharding.get_layout_map(mesh)


@contextlib.contextmanager
def spread(layouts=None):
    """What is made within the block lies on the mesh."""
    layouts = layout_map() if layouts is None else layouts
    distribution = keras.distribution.ModelParallel(layout_map=layouts)
    with distribution.scope():
        yield distribution

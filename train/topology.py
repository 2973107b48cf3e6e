"""TPUs that need not be there: their own compiler runs on any machine."""

import importlib.util
import math
import os
from typing import Any

from keras_switch_train import flags, mesh

# Both cores of a chip are one device, as JAX has them where there are TPUs.
_MEGACORE = {"v4": {"chip_config_name": "megacore"}}


def start(name: str) -> None:
    """Spreads what is made from here on over the chips of a topology.

    Programs can be compiled for them, and no more: a variable cannot be made.

    Args:
        name: As `--topology`: a generation and its chips, `"v4:8x8x8"`.

    Raises:
        UsageError: without libtpu, for a topology it does not know, or a mesh
            of another size.
    """
    import jax
    import keras
    import numpy as np

    sizes = mesh.axes()
    devices = _devices(name)
    if len(devices) != math.prod(sizes.values()):
        raise flags.UsageError(
            f"--mesh must use all devices of --topology={name}, "
            f"{len(devices)}; received a mesh of {math.prod(sizes.values())}."
        )
    names = [f"tpu:{i}" for i in range(len(devices))]
    with flags.blame("mesh"):
        distribution = mesh.distribution_of(sizes, names, flags.LAYOUT.value)
    # Keras would look for them among those of this machine.
    distribution.device_mesh._backend_mesh = jax.sharding.Mesh(
        np.reshape(devices, tuple(sizes.values())), tuple(sizes)
    )
    keras.distribution.set_distribution(distribution)


def _devices(name: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise flags.UsageError(
            "--topology needs the compiler of TPUs: pip install libtpu, for "
            "this JAX."
        )
    # There is no TPU, and nobody to ask about one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nor one that two processes must not share.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    others = _MEGACORE.get(name.partition(":")[0], {})
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=name, **others
        ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise flags.UsageError(
            "--topology must be one that libtpu knows, such as v4:8x8x8 or "
            f"v6e:16x16; received {name}: {error}"
        ) from error

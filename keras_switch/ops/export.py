"""What backends need to export a model."""

from typing import Any

import keras


def check_saved_model() -> None:
    """Refuses to write a SavedModel where the backend cannot.

    Raises:
        RuntimeError: on torch.
    """
    if keras.backend.backend() == "torch":
        raise RuntimeError(
            "A SavedModel needs the TensorFlow or JAX backend; this is torch. "
            "Save the model with save_to_preset, and export the preset with "
            "KERAS_BACKEND=tensorflow."
        )


def endpoint_options() -> dict[str, Any]:
    """What `keras.export.ExportArchive.add_endpoint` is to be given.

    Gradients are of no use to a server, and JAX cannot trace them where the
    number of rows is not known.
    """
    if keras.backend.backend() == "jax":
        return {"jax2tf_kwargs": {"with_gradient": False}}
    return {}

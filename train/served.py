"""Generation by a SavedModel, asked as a model of Keras is."""

import os
from typing import Any

import numpy as np


class ServedModel:
    """A SavedModel of `keras_switch.convert.export_saved_model`.

    TensorFlow runs it; neither the classes nor the weights of the model are
    needed.

    Args:
        folder: Of the SavedModel.

    Raises:
        ValueError: if there is none, or it does not generate.
    """

    is_batch_dependent = False  # such models are not exported

    def __init__(self, folder: str):
        import tensorflow as tf

        if not os.path.isfile(os.path.join(folder, "saved_model.pb")):
            raise ValueError(
                f"must be the folder of a SavedModel; received {folder!r}."
            )
        # The variables are in it: without it they are gone.
        self._loaded = tf.saved_model.load(folder)
        self._call = self._loaded.signatures.get("serving_default")
        arrays = self._call.structured_input_signature[1] if self._call else {}
        self._lengths = {name: spec.shape[1] for name, spec in arrays.items()}
        if not any(name.endswith("token_ids") for name in self._lengths):
            raise ValueError(
                "must be of a SavedModel that takes token ids, as "
                "keras_switch.convert.export_saved_model writes; "
                f"{folder!r} takes {sorted(self._lengths)}."
            )

    def generate(
        self, inputs: dict[str, Any], **request: Any
    ) -> dict[str, Any]:
        """Generated ids and their masks.

        Args:
            inputs: int arrays by name, `[B, T]`; those that the SavedModel
                does not take are left out.
            **request: As for `generate` of a model, of which `strip_prompt` is
                heeded; lengths and stops are the SavedModel's own.

        Raises:
            ValueError: if it takes fewer tokens.
            FloatingPointError: if logits are not finite.
        """
        from keras_switch.models.generation_inputs import generated_names

        arrays = {
            name: self._padded(name, inputs[name]) for name in self._lengths
        }
        outputs = {k: v.numpy() for k, v in self._call(**arrays).items()}
        names = generated_names(outputs)
        mask = outputs[names.mask].astype(bool)
        if (mask & ~outputs[names.finite].astype(bool)).any():
            raise FloatingPointError("logits of the SavedModel are not finite.")
        if request.get("strip_prompt") and names.mask in arrays:
            mask &= np.asarray(arrays[names.mask]) == 0
        return {names.ids: outputs[names.ids], names.mask: mask}

    def _padded(self, name, array):
        import tensorflow as tf

        array, length = np.asarray(array, "int32"), self._lengths[name]
        if array.shape[1] > length:
            raise ValueError(
                f"{name} must have at most {length} columns, which the "
                f"SavedModel takes; received {array.shape[1]}."
            )
        missing = length - array.shape[1]
        return tf.constant(np.pad(array, [(0, 0), (0, missing)]))

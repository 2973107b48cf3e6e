import keras
import pytest

from keras_switch.ops.export import check_saved_model, endpoint_options


def test_only_torch_is_refused():
    if keras.backend.backend() != "torch":
        return check_saved_model()
    with pytest.raises(RuntimeError, match="SavedModel needs"):
        check_saved_model()


def test_only_jax_has_options():
    assert bool(endpoint_options()) == (keras.backend.backend() == "jax")

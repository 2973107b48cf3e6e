"""Random numbers that a backend draws without Keras' seed generators."""

import keras
import numpy as np


def random_state() -> dict[str, np.ndarray]:
    """The state of the backend's own generators, by name.

    On torch, Keras draws the masks of a dropout without a seed from them. The
    other backends have none.
    """
    if keras.backend.backend() != "torch":
        return {}
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"cuda/{index}"] = state
    return {name: state.numpy().copy() for name, state in states.items()}


def set_random_state(states: dict[str, np.ndarray]) -> None:
    """Sets what `random_state` returned."""
    if keras.backend.backend() != "torch":
        return
    import torch

    for name, state in states.items():
        state = torch.from_numpy(np.array(state))
        device, _, index = name.partition("/")
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, int(index))

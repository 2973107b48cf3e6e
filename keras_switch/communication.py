"""What tokens on their way to experts cost: bytes between devices."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_switch.layers.routes import RouterMask
from keras_switch.layers.validation import check_number


class AllToAll(NamedTuple):
    """Bytes of one all-to-all, from tokens to experts, by what is sent.

    With as many devices as groups of experts, and tokens spread evenly, one
    part in `num_groups` of each stays where it is. Experts answer with as
    many bytes again, and a training step doubles both.
    """

    by_slot: int | None  # every slot of every expert, full or not; None: no C
    by_edge: int  # a row for each expert of a token
    by_device: int  # a row for each device that holds experts of a token
    num_tokens: int  # that go to an expert
    devices_per_token: float  # mean, of tokens that go to an expert


def all_to_all_bytes(
    routes: Any,
    num_experts: int,
    num_groups: int,
    hidden_dim: int,
    capacity: int | None = None,
    itemsize: int = 2,
) -> AllToAll:
    """Counts, from routes, what an all-to-all would send.

    Experts lie on `num_groups` devices, equally many neighbours on each.
    `SwitchLayer` sends buffers `[G, E, C, D]`, which is `by_slot`, whatever
    the router: a limit on the groups of a token saves nothing there. It saves
    where rows are sent, each once to a device, `by_device`, as DeepSeek's
    kernels do. Edges over the capacity are not sent.

    Args:
        routes: `RouterIndices`, as `SwitchLayer(..., return_routing=True)`
            returns them.
        num_experts: int, `E`.
        num_groups: int, devices, by which `E` can be divided.
        hidden_dim: int, `D`.
        capacity: int, slots of an expert in a group of tokens, `C`; `None`
            where nothing is dropped: then there is no `by_slot`.
        itemsize: int, bytes of a number, 2 in bfloat16.

    Returns:
        An `AllToAll`.

    Raises:
        ValueError: if an argument is out of its range, or the routes mix
            tokens.

    Example:

    ```python
    layer = keras_switch.SwitchLayer(16, 64, router="group_limited")
    y, routes = layer(x, return_routing=True)
    sent = keras_switch.communication.all_to_all_bytes(routes, 16, 4, 32)
    ```
    """
    _check_groups(num_experts, num_groups)
    check_number("hidden_dim", hidden_dim, whole=True, at_least=1)
    check_number("itemsize", itemsize, whole=True, at_least=1)
    if isinstance(routes, RouterMask):
        raise ValueError(
            "routes must be RouterIndices; received a RouterMask: every token "
            "is in every slot, so nothing but slots can be sent."
        )
    token, expert, slot = (
        keras.ops.convert_to_numpy(field) for field in routes[:3]
    )
    sent = expert < num_experts  # [G, M]
    if capacity is not None:
        check_number("capacity", capacity, whole=True, at_least=1)
        sent &= slot < capacity
    group = np.broadcast_to(np.arange(len(token))[:, None], token.shape)
    device = expert // (num_experts // num_groups)
    rows = np.stack([group[sent], token[sent], device[sent]])  # [3, edges]
    copies = np.unique(rows, axis=1).shape[1]
    tokens = np.unique(rows[:2], axis=1).shape[1]
    row = hidden_dim * itemsize
    slots = None
    if capacity is not None:
        slots = len(token) * num_experts * capacity * row
    return AllToAll(
        by_slot=slots,
        by_edge=int(sent.sum()) * row,
        by_device=copies * row,
        num_tokens=tokens,
        devices_per_token=copies / max(tokens, 1),
    )


def expected_devices(
    num_experts: int, k: int, num_groups: int, group_limit: int | None = None
) -> float:
    """Devices of a token on average, if every choice were as likely.

    A token has `k` distinct experts of `num_experts`, of which equally many
    lie on each of `num_groups` devices. A device is none of the token's with
    probability `C(E - E / N, k) / C(E, k)`. With a limit of `M` groups the
    same holds among the `M` devices that the token may go to.

    Args:
        num_experts: int, `E`.
        k: int, experts of a token.
        num_groups: int, `N`, by which `E` can be divided.
        group_limit: int, `M`, at most `N`; `None`: no limit.

    Returns:
        A float from 1 to `min(k, M)`. Times the tokens and the bytes of a
        row, it is what `AllToAll.by_device` is on average.

    Raises:
        ValueError: if an argument is out of its range.
    """
    _check_groups(num_experts, num_groups)
    limit = num_groups if group_limit is None else group_limit
    name = "group_limit"
    check_number(name, limit, whole=True, at_least=1, below=num_groups + 1)
    size = num_experts // num_groups
    reach = limit * size
    check_number("k", k, whole=True, at_least=1, below=reach + 1)
    missed = math.comb(reach - size, k) / math.comb(reach, k)
    return limit * (1 - missed)


def _check_groups(num_experts, num_groups):
    check_number("num_experts", num_experts, whole=True, at_least=1)
    check_number("num_groups", num_groups, whole=True, at_least=1)
    if num_experts % num_groups:
        raise ValueError(
            "num_experts must be a multiple of num_groups; received "
            f"num_experts={num_experts}, num_groups={num_groups}."
        )

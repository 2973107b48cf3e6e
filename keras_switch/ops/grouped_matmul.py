"""Rows sorted by expert times each expert's own matrix: the dropless product.

`[N, D]` rows, of which the first `sizes[0]` belong to expert 0 and so on,
times `[E, D, F]`. Rows after the last expert's come out 0. Four forms of the
same product:

- `grouped_matmul_reference`: plain, every row through every expert.
- `_batched`: a batched matmul over buffers of one capacity, where every
  expert's rows fit in it. Costs `E * capacity` rows.
- `_blocks`: a loop over blocks of rows, of which only the blocks that exist
  are visited. Costs the rows there are and one copy of an expert's matrix for
  each block; never touches an expert without rows.
- `_loop`: one matmul for each expert that has rows, with sizes read on the
  host; only where tensors have values while Python runs.

`grouped_matmul` chooses between them at run time by the largest expert, so
that a balanced batch runs at the speed of the batched matmul and a collapsed
one still costs no more than its rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_switch.ops.compiled import compiled
from keras_switch.ops.expert_matmul import (
    expert_matmul,
    expert_matmul_transposed,
    expert_outer,
    fewest_rows,
)
from keras_switch.ops.indexing import has_values, static_size, upstream_of

BLOCK_ROWS = 64
# Eighths of the mean expert that the largest one may have for the batched form,
# which is the faster one. Each is a branch of the program, to be compiled, and
# the largest sets its memory.
CAPACITIES = (10, 16)
_OF_FEED_FORWARDS = (9, 10, 12, 16)
# With few rows chance alone makes one expert large.
_FEW_ROWS, _OF_FEW = 64, (32,)


def grouped_matmul(rows: Any, sizes: Any, kernel: Any) -> Any:
    """Multiplies each expert's rows by its kernel.

    Args:
        rows: `[N, D]`, sorted by expert.
        sizes: int32 `[E]`, rows of each expert; their sum is at most `N`.
        kernel: `[E, D, F]`, in the dtype of `rows`.

    Returns:
        `[N, F]`; 0 for rows that belong to no expert. Differentiable in
        `rows` and `kernel`.
    """
    kernel = ops.convert_to_tensor(kernel)

    def forward(rows, kernel):
        def grad(*args, upstream=None):
            upstream = upstream_of(args, upstream)
            return (
                _product(upstream, sizes, kernel, True),
                _kernel_gradient(rows, upstream, sizes, kernel),
            )

        return _product(rows, sizes, kernel, False), grad

    return ops.custom_gradient(forward)(rows, kernel)


def grouped_matmul_reference(rows: Any, sizes: Any, kernel: Any) -> Any:
    """The plain form: every row times every kernel, then its own is kept."""
    num_experts = ops.shape(kernel)[0]
    every = ops.einsum("nd,edf->enf", rows, kernel)
    owner = _owners(rows, sizes)  # [N]
    experts = ops.arange(num_experts, dtype="int32")
    mine = ops.expand_dims(experts, -1) == ops.expand_dims(owner, 0)  # [E, N]
    zero = ops.zeros((), dtype=every.dtype)
    return ops.sum(ops.where(ops.expand_dims(mine, -1), every, zero), axis=0)


@compiled("transpose")
def _product(rows: Any, sizes: Any, kernel: Any, transpose: bool) -> Any:
    """Chooses the form of the product with the kernels, or with their
    transposes."""
    if has_values(sizes):
        return _loop(rows, sizes, kernel, transpose)
    capacities = _capacities(rows, kernel)
    branches = [
        lambda rows, sizes, kernel, c=c: _batched(
            rows, sizes, kernel, transpose, c
        )
        for c in capacities
    ]
    branches.append(lambda *args: _blocks(*args, transpose))
    return _by_largest(sizes, capacities, branches, (rows, sizes, kernel))


@compiled("feed_forward")
def grouped_feed_forward(
    feed_forward: Callable[..., Any], rows: Any, sizes: Any, kernels: Any
) -> Any:
    """Applies each expert's whole feed-forward to its rows.

    Unlike `grouped_matmul` of each kernel it copies no row of the hidden layer,
    which is wider. Its gradient is not to be used: see `with_gradient_of`.

    Args:
        feed_forward: of a product, rows and the kernels. The product takes
            rows and a kernel. Eager JAX compiles once for each such function,
            so give the same one each time.
        rows: `[N, D]`, sorted by expert.
        sizes: int32 `[E]`, rows of each expert; their sum is at most `N`.
        kernels: a sequence of tensors `[E, ...]`.

    Returns:
        `[N, D]`; 0 for rows that belong to no expert.
    """

    def in_buffers(capacity, rows, sizes, *kernels):
        multiply = functools.partial(_multiply, transpose=False)
        buffers = _buffers(rows, sizes, capacity)
        return _from_buffers(
            feed_forward(multiply, buffers, *kernels), rows, sizes
        )

    def in_blocks(rows, sizes, *kernels):
        def multiply(rows, kernel):
            return _blocks(rows, sizes, kernel, transpose=False)

        return feed_forward(multiply, rows, *kernels)

    count = static_size(ops.shape(rows)[0])
    eighths = _OF_FEED_FORWARDS
    if count is not None and count <= _FEW_ROWS * kernels[0].shape[0]:
        eighths += _OF_FEW
    capacities = _capacities(rows, *kernels, eighths=eighths)
    branches = [functools.partial(in_buffers, c) for c in capacities]
    branches.append(in_blocks)
    return _by_largest(sizes, capacities, branches, (rows, sizes, *kernels))


@compiled()
def _kernel_gradient(rows: Any, upstream: Any, sizes: Any, kernel: Any) -> Any:
    """`[N, D]`, `[N, F]` -> `[E, D, F]`: each expert's outer products."""
    if has_values(sizes):
        return _loop_outer(rows, upstream, sizes)
    capacities = _capacities(rows, kernel)
    branches = [
        lambda rows, upstream, sizes, c=c: expert_outer(
            _buffers(rows, sizes, c, zero_empty=True),
            _buffers(upstream, sizes, c),
        )
        for c in capacities
    ]
    branches.append(_blocks_outer)
    return _by_largest(sizes, capacities, branches, (rows, upstream, sizes))


def _by_largest(
    sizes: Any, capacities: list, branches: list, operands: tuple
) -> Any:
    """Runs the first branch whose capacity holds the largest expert."""
    if not capacities:
        return branches[-1](*operands)
    largest = ops.max(sizes)
    index = sum(ops.cast(largest > c, "int32") for c in capacities)
    return ops.switch(index, branches, *operands)


def _capacities(rows: Any, *kernels: Any, eighths: tuple = CAPACITIES) -> list:
    """Capacities of the batched forms; none where there are fewer rows than
    experts (a decode step), since they would read every expert's kernel."""
    count, num_experts = ops.shape(rows)[0], kernels[0].shape[0]
    known = static_size(count)
    if known is not None and known < num_experts:
        return []
    ceilings = [
        (count * n + 8 * num_experts - 1) // (8 * num_experts) for n in eighths
    ]
    if known is None:
        return ceilings
    # With enough rows every form gives a row the same bits.
    fewest = max(map(fewest_rows, kernels))
    return sorted({max(c, fewest) for c in ceilings})


def _multiply(buffers: Any, kernel: Any, transpose: bool) -> Any:
    """`[E, C, D]` -> `[E, C, F]`, or the other way round."""
    if transpose:
        return expert_matmul_transposed(buffers, kernel)
    return expert_matmul(buffers, kernel, same_bits=True)


def _loop(rows: Any, sizes: Any, kernel: Any, transpose: bool) -> Any:
    """One matmul for each expert that has rows."""
    width = kernel.shape[1] if transpose else kernel.shape[2]
    count = rows.shape[0]
    fewest = fewest_rows(kernel)
    rows = _padded(rows, fewest) if count else rows
    parts, start = [], 0
    for expert, size in enumerate(ops.convert_to_numpy(sizes).tolist()):
        if size:
            matrix = kernel[expert]
            matrix = ops.transpose(matrix) if transpose else matrix
            window = rows[start : start + max(size, fewest)]
            parts.append(ops.matmul(window, matrix)[:size])
            start += size
    parts.append(ops.zeros((count - start, width), rows.dtype))
    return ops.concatenate(parts, axis=0)


def _loop_outer(rows: Any, upstream: Any, sizes: Any) -> Any:
    parts, start = [], 0
    for size in ops.convert_to_numpy(sizes).tolist():
        mine = ops.transpose(rows[start : start + size])
        parts.append(ops.matmul(mine, upstream[start : start + size]))
        start += size
    return ops.stack(parts)


def _starts(sizes: Any) -> Any:
    return ops.cumsum(sizes) - sizes  # [E]


def _owners(rows: Any, sizes: Any) -> Any:
    """The expert of each row, `E` for rows of none: int32 `[N]`."""
    places = ops.arange(ops.shape(rows)[0], dtype="int32")
    owner = ops.searchsorted(ops.cumsum(sizes), places, side="right")
    return ops.cast(owner, "int32")


def _buffers(
    rows: Any, sizes: Any, capacity: Any, zero_empty: bool = False
) -> Any:
    """Rows copied to buffers of one capacity: `[N, D]` -> `[E, C, D]`."""
    count, width = ops.shape(rows)
    num_experts = sizes.shape[0]
    slots = ops.expand_dims(ops.arange(capacity, dtype="int32"), 0)  # [1, C]
    index = ops.expand_dims(_starts(sizes), -1) + slots  # [E, C]
    flat = ops.reshape(ops.minimum(index, count - 1), (num_experts * capacity,))
    taken = ops.reshape(
        ops.take(rows, flat, axis=0), (num_experts, capacity, width)
    )
    if not zero_empty:
        return taken
    filled = ops.expand_dims(slots < ops.expand_dims(sizes, -1), -1)
    return ops.where(filled, taken, ops.zeros((), dtype=rows.dtype))


def _batched(
    rows: Any, sizes: Any, kernel: Any, transpose: bool, capacity: Any
) -> Any:
    buffers = _buffers(rows, sizes, capacity)  # [E, C, D]
    return _from_buffers(_multiply(buffers, kernel, transpose), rows, sizes)


def _from_buffers(outputs: Any, rows: Any, sizes: Any) -> Any:
    """`[E, C, F]` -> `[N, F]`, what `_buffers` has done undone."""
    num_experts, capacity, width = ops.shape(outputs)
    owner = _owners(rows, sizes)  # [N]
    mine = ops.minimum(owner, num_experts - 1)
    start = ops.take(_starts(sizes), mine)
    places = ops.arange(ops.shape(rows)[0], dtype="int32")
    slot = ops.minimum(places - start, capacity - 1)
    flat = ops.reshape(outputs, (num_experts * capacity, width))
    taken = ops.take(flat, mine * capacity + slot, axis=0)
    return _zero_ownerless(taken, owner, num_experts)


def _zero_ownerless(outputs: Any, owner: Any, num_experts: Any) -> Any:
    owned = ops.expand_dims(owner < num_experts, -1)
    return ops.where(owned, outputs, ops.zeros((), dtype=outputs.dtype))


def _block_list(sizes: Any, block: int) -> tuple[Any, Any]:
    """Blocks of each expert, and the running count: int32 `[E]` each."""
    blocks = (sizes + block - 1) // block
    return blocks, ops.cumsum(blocks)


def _block(index: Any, sizes: Any, block: int) -> tuple[Any, Any, Any]:
    """Expert, first row and number of rows of one block of the list."""
    blocks, ends = _block_list(sizes, block)
    expert = ops.searchsorted(ends, ops.reshape(index, (1,)), side="right")[0]
    expert = ops.minimum(ops.cast(expert, "int32"), sizes.shape[0] - 1)
    nth = index - ops.take(ends - blocks, expert)
    start = ops.take(_starts(sizes), expert) + nth * block
    return expert, start, ops.take(sizes, expert) - nth * block


def _run_of(x: Any, start: Any, count: int) -> Any:
    """`count` entries of axis 0 from `start` on, known only at run time."""
    if keras.backend.backend() == "tensorflow":
        # XLA would compile a slice of TensorFlow's anew for every `start`.
        places = ops.arange(count, dtype="int32")
        return ops.take(x, start + places, axis=0)
    rest = ops.shape(x)[1:]
    return ops.slice(x, (start,) + (0,) * len(rest), (count, *rest))


def _padded(rows: Any, block: int) -> Any:
    return ops.pad(rows, ((0, block), (0, 0)))


def _blocks(rows: Any, sizes: Any, kernel: Any, transpose: bool) -> Any:
    block, count = _block_rows(rows, kernel), ops.shape(rows)[0]
    padded = _padded(rows, block)
    out_width = kernel.shape[1] if transpose else kernel.shape[2]
    total = _block_list(sizes, block)[1][-1]

    def body(index, outputs):
        expert, start, _ = _block(index, sizes, block)
        part = _run_of(padded, start, block)
        matrix = _run_of(kernel, expert, 1)
        part = _multiply(ops.expand_dims(part, 0), matrix, transpose)[0]
        # What a block writes past its expert's last row, the next block
        # writes again: blocks go in ascending order.
        return index + 1, ops.slice_update(outputs, (start, 0), part)

    outputs = ops.zeros((count + block, out_width), dtype=rows.dtype)
    _, outputs = ops.while_loop(
        lambda index, _: index < total,
        body,
        (ops.zeros((), dtype="int32"), outputs),
    )
    owner = _owners(rows, sizes)
    return _zero_ownerless(outputs[:count], owner, kernel.shape[0])


def _blocks_outer(rows: Any, upstream: Any, sizes: Any) -> Any:
    block, num_experts = BLOCK_ROWS, sizes.shape[0]
    left, right = _padded(rows, block), _padded(upstream, block)
    d, f = ops.shape(rows)[1], ops.shape(upstream)[1]
    total = _block_list(sizes, block)[1][-1]
    places = ops.expand_dims(ops.arange(block, dtype="int32"), -1)

    def body(index, outputs):
        expert, start, mine = _block(index, sizes, block)
        part = _run_of(left, start, block)
        part = ops.where(places < mine, part, ops.zeros((), dtype=part.dtype))
        other = _run_of(right, start, block)
        so_far = _run_of(outputs, expert, 1)
        added = so_far + expert_outer(
            ops.expand_dims(part, 0), ops.expand_dims(other, 0)
        )
        return index + 1, ops.slice_update(outputs, (expert, 0, 0), added)

    _, outputs = ops.while_loop(
        lambda index, _: index < total,
        body,
        (
            ops.zeros((), dtype="int32"),
            ops.zeros((num_experts, d, f), dtype=rows.dtype),
        ),
    )
    return outputs


def _block_rows(rows: Any, kernel: Any) -> int:
    known = static_size(ops.shape(rows)[0])
    if known is None:
        return BLOCK_ROWS
    return max(fewest_rows(kernel), min(BLOCK_ROWS, known))

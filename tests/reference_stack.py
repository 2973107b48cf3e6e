"""What `reference.py` needs for experts that are stacks of blocks."""

import numpy as np


def blocks_of(values):
    """The banks of a stack, from `block_0_wi` and so on."""
    count = len([name for name in values if name.endswith("_wo")])
    return [
        {
            name.removeprefix(f"block_{i}_"): value
            for name, value in values.items()
            if name.startswith(f"block_{i}_")
        }
        for i in range(count)
    ]


def normalize(row):
    """LayerNorm without weights, and what it divided by."""
    centred = row - row.mean()
    deviation = np.sqrt((centred**2).mean() + 1e-5)
    return centred / deviation, deviation

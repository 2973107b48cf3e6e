"""The learning-rate schedule of T5 and the Switch Transformer."""

import keras
from keras import ops

from keras_switch.layers.validation import check_number


@keras.saving.register_keras_serializable(package="keras_switch")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """`base / sqrt(max(step, warmup_steps))`: flat first, then falling.

    For the first `warmup_steps` steps the rate stays at
    `base / sqrt(warmup_steps)`, which with the defaults is 0.01; after that it
    falls with the square root of the step. This is the schedule T5 and the
    Switch Transformer pre-train with. It needs no warm-up from zero because
    Adafactor bounds the size of an update; with another optimizer, or in half
    precision, `linear_warmup=True` climbs there in a straight line instead.

    Args:
        base: Rate that step 1 would have without warm-up, positive.
        warmup_steps: Step at which the rate begins to fall, positive.
        linear_warmup: Whether to climb from 0 to `base / sqrt(warmup_steps)`
            during the warm-up instead of starting there.
        name: Optional name of the operation.

    Call arguments:
        step: Integer scalar, the number of steps taken.

    Returns:
        A float32 scalar.

    Example:

    ```python
    schedule = keras_switch.schedules.InverseSquareRoot(1.0, 10_000)
    float(schedule(0)), float(schedule(40_000))  # 0.01, 0.005
    ```

    Reference:
        [T5 (Raffel et al., 2020)](https://arxiv.org/abs/1910.10683), section
        3.1.2.
    """

    def __init__(
        self,
        base: float = 1.0,
        warmup_steps: int = 10_000,
        linear_warmup: bool = False,
        name: str = "inverse_square_root",
    ):
        super().__init__()
        check_number("base", base, above=0)
        check_number("warmup_steps", warmup_steps, at_least=1)
        self.base = base
        self.warmup_steps = warmup_steps
        self.linear_warmup = linear_warmup
        self.name = name

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = self.base * ops.rsqrt(ops.maximum(step, self.warmup_steps))
        if self.linear_warmup:
            rate = rate * ops.minimum(step / self.warmup_steps, 1.0)
        return rate

    def get_config(self):
        return {
            "base": self.base,
            "warmup_steps": self.warmup_steps,
            "linear_warmup": self.linear_warmup,
            "name": self.name,
        }

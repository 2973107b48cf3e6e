r"""Fills in blanks, or goes on with a text.

    python train/generate.py --preset=runs/switch_mini/preset \
        --prompt="The president <extra_id_0> on Tuesday that <extra_id_1>."

prints each prompt and the model's answer; where a prompt has blanks, written
<extra_id_0>, <extra_id_1> and so on, also the text with the blanks filled in.
Without --prompt, prompts are read from standard input, one a line.
"""

import sys

from absl import flags as absl_flags

from keras_switch_train import blanks, flags

_PROMPT = absl_flags.DEFINE_multi_string(
    "prompt", [], "A text; may be given several times."
)
_SAMPLER = absl_flags.DEFINE_enum(
    "sampler",
    "greedy",
    ["greedy", "beam", "top_k", "top_p", "random"],
    "How the next token is chosen.",
)
_MAX_LENGTH = absl_flags.DEFINE_integer(
    "max_length",
    None,
    "Most tokens of an answer. Default: what the preset was trained with.",
    lower_bound=2,
)


def main() -> None:
    # Prompts.
    prompts = _PROMPT.value or [line.strip() for line in sys.stdin]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise flags.UsageError("--prompt must hold some text.")

    # Model.
    import keras

    from keras_switch import models

    keras.utils.set_random_seed(flags.SEED.value)
    with flags.blame("preset"):
        lm = models.SwitchSeq2SeqLM.from_preset(
            flags.PRESET.value, dtype=flags.DTYPE.value
        )
    lm.compile(sampler=_SAMPLER.value, jit_compile=flags.jit_compile())

    # Answers.
    answers = lm.generate(prompts, max_length=_MAX_LENGTH.value)
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"prompt: {prompt}\nanswer: {answer.strip()}")
        if "<extra_id_0>" in prompt:
            print(f"filled: {blanks.fill_in(prompt, answer)}")
        print()


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=("backend", "dtype", "preset", "retain_heap", "seed"),
        trained=True,
    )


if __name__ == "__main__":
    run()

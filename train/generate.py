r"""Fills in blanks, or goes on with a text.

    python train/generate.py --preset=runs/switch_mini/preset \
        --prompt="The president <extra_id_0> on Tuesday that <extra_id_1>."

prints each prompt and the model's answer; where a prompt has blanks, written
<extra_id_0>, <extra_id_1> and so on, also the text with the blanks filled in.
A preset of a decoder alone goes on with the prompt. Without --prompt, prompts
are read from standard input, one a line.
"""

import sys

from absl import flags as absl_flags

from keras_switch_train import flags

_PROMPT = absl_flags.DEFINE_multi_string(
    "prompt", [], "A text; may be given several times."
)
_SAMPLER = absl_flags.DEFINE_enum(
    "sampler",
    "greedy",
    ["greedy", "beam", "top_k", "top_p", "random", "contrastive"],
    "How the next token is chosen.",
)
_MAX_LENGTH = absl_flags.DEFINE_integer(
    "max_length",
    None,
    "Most tokens of an answer, its start counted. Default: what the preset "
    "was trained with.",
    lower_bound=2,
)
_MAX_NEW_TOKENS = absl_flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Most tokens of an answer, without its start.",
    lower_bound=1,
)
_TRUNCATE = absl_flags.DEFINE_bool(
    "truncate",
    False,
    "Cut prompts that are longer than what the preset was trained with; "
    "otherwise they are refused.",
)


def main() -> None:
    # Prompts.
    prompts = _PROMPT.value or [line.strip() for line in sys.stdin]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise flags.UsageError("--prompt must hold some text.")
    if _MAX_LENGTH.value and _MAX_NEW_TOKENS.value:
        raise flags.UsageError(
            "--max_length and --max_new_tokens exclude each other."
        )

    # Model.
    from keras_switch import convert
    from keras_switch.models.fill_mask import fill_in, number_blanks
    from keras_switch.models.presets import find_preset

    with flags.blame("preset"):
        folder = find_preset(flags.PRESET.value).folder
        lm = convert.load(folder, dtype=flags.DTYPE.value)
    if lm.preprocessor is None:
        raise flags.UsageError(
            "--preset must have a tokenizer; it holds a model alone."
        )
    lm.compile(sampler=_SAMPLER.value, jit_compile=flags.jit_compile())

    # Answers.
    numbered = [number_blanks(prompt) for prompt in prompts]
    try:
        with flags.blame("prompt"):
            answers = lm.generate(
                numbered,
                max_length=_MAX_LENGTH.value,
                max_new_tokens=_MAX_NEW_TOKENS.value,
                seed=flags.SEED.value,
                truncate=_TRUNCATE.value,
            )
    except FloatingPointError as error:
        raise flags.UsageError(f"--preset: {error}") from error
    for prompt, text, answer in zip(prompts, numbered, answers, strict=True):
        print(f"prompt: {prompt}\nanswer: {answer.strip()}")
        if "<extra_id_0>" in text:
            print(f"filled: {fill_in(text, answer, mark='[{}]')}")
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

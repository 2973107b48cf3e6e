r"""Writes a trained model for a server that runs no Keras.

    python train/export.py --preset=runs/section/preset \
        --output=served/1 --format=saved_model

writes a SavedModel that generates, for TensorFlow Serving or
tf.saved_model.load: token ids go in and come out. JAX and TensorFlow write it.
With --text it has a second signature, generate_text, from strings to strings,
and needs the operations of tensorflow-text.

    python train/export.py --preset=runs/section/preset \
        --output=served/onnx --format=onnx --backend=torch

writes encoder.onnx and decoder_step.onnx, for ONNX Runtime and the like: the
caller chooses each token and puts it into the next step. Only torch writes
them, with the packages of `pip install keras-switch[onnx,torch]`.

docs/shipping.md shows how either is run. Arrays are as long as the preset was
trained with, unless told otherwise. The same command once more finds that
nothing is left to do. convert.py writes what the package transformers loads.
"""

from absl import flags as absl_flags

from keras_switch_train import flags, made_by

_FORMAT = absl_flags.DEFINE_enum(
    "format", None, ["saved_model", "onnx"], "What to write."
)
_ROWS = absl_flags.DEFINE_integer(
    "rows",
    None,
    "Rows of every call. Default: any number of a SavedModel, 1 of ONNX.",
    lower_bound=1,
)
_ENCODER_LENGTH = absl_flags.DEFINE_integer(
    "encoder_length",
    None,
    "Tokens of an encoder row, for a model that has an encoder. Default: the "
    "preset's.",
    lower_bound=1,
)
_DECODER_LENGTH = absl_flags.DEFINE_integer(
    "decoder_length",
    None,
    "Tokens of a generated row, its start or prompt counted. Default: the "
    "preset's.",
    lower_bound=2,
)
_SEARCH = absl_flags.DEFINE_enum(
    "search", "greedy", ["greedy", "beam"], "How a SavedModel chooses tokens."
)
_TEXT = absl_flags.DEFINE_bool(
    "text", False, "Whether a SavedModel takes and returns strings, too."
)


def main() -> None:
    made_by.check_output(flags.OUTPUT.value)

    # Model.
    from keras_switch import convert
    from keras_switch.models.presets import find_preset

    with flags.blame("preset"):
        folder = find_preset(flags.PRESET.value).folder
        settings = _settings(folder)
        if made_by.is_done(flags.OUTPUT.value, settings):
            return
        lm = convert.load(folder, dtype=flags.DTYPE.value)
    lengths = _lengths(lm)
    stops = None
    if lm.preprocessor is not None:
        stops = (lm.preprocessor.tokenizer.end_token_id,)

    # Write.
    with made_by.folder(flags.OUTPUT.value, settings) as temporary:
        _write(lm, temporary, lengths, stops)
    told = ", ".join(f"{name} {value}" for name, value in lengths.items())
    print(f"{flags.OUTPUT.value} is written: {told}, answers end at {stops}")


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=("backend", "dtype", "output", "preset", "retain_heap"),
        requires=("output", "format"),
        trained=True,
    )


def _write(lm, folder, lengths, stops):
    from keras_switch import convert

    if _TEXT.value and _FORMAT.value == "onnx":
        raise flags.UsageError("--text goes with --format=saved_model.")
    try:
        with flags.blame("format"):
            if _FORMAT.value == "onnx":
                convert.export_onnx(lm, folder, _ROWS.value or 1, **lengths)
                return
            lm.compile(sampler=_SEARCH.value)
            convert.export_saved_model(
                lm,
                folder,
                _ROWS.value,
                stop_token_ids=stops,
                text=_TEXT.value,
                **lengths,
            )
    except ImportError as error:
        raise flags.UsageError(f"--format: {error}") from error


def _settings(folder):
    told = (_FORMAT, _ROWS, _ENCODER_LENGTH, _DECODER_LENGTH, flags.DTYPE)
    if _FORMAT.value == "saved_model":
        told += (_SEARCH, _TEXT)
    values = {flag.name: flag.value for flag in told}
    return made_by.settings("export", folder, **values)


def _lengths(lm):
    """Of the two sides, from the flags or else from the preprocessor."""
    wanted = {
        "input_length": (_ENCODER_LENGTH, "encoder_sequence_length"),
        "max_length": (_DECODER_LENGTH, "decoder_sequence_length"),
    }
    if "encoder_token_ids" not in lm.input_names:
        if _ENCODER_LENGTH.value:
            raise flags.UsageError(
                "--encoder_length goes with an encoder; --preset has none."
            )
        wanted = {"max_length": (_DECODER_LENGTH, "sequence_length")}
    lengths = {}
    for name, (flag, trained) in wanted.items():
        lengths[name] = flag.value or getattr(lm.preprocessor, trained, None)
        if lengths[name] is None:
            raise flags.UsageError(
                f"--{flag.name} must be given, as --preset has no tokenizer."
            )
    return lengths


if __name__ == "__main__":
    run()

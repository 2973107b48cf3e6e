r"""Reports what the routers of a trained model do with held-out text.

    python train/analyze.py --preset=runs/switch_mini/preset \
        --workdir=runs/switch_mini/analysis

prints a table with a row for every sparse layer and, for each of them, the
tokens that its experts take for themselves. The work directory gets the same
numbers as routing.json, and plots of load, drop, confidence, entropy and
token-by-expert specialisation as PNG.

How to read it: a max/mean load of 1 is balanced, of the number of experts
collapsed. "Dropped" is what the capacity of training would drop; the model
itself runs dropless here. The entropy given the token is that of the expert
once the token's id is known: 0 means that the id alone decides.
"""

from absl import flags as absl_flags

from keras_switch_train import corpus, flags

_BATCHES = absl_flags.DEFINE_integer(
    "batches", 16, "Held-out batches to route.", lower_bound=1
)


def main() -> None:
    workdir = flags.make_workdir()

    # Model.
    from keras_switch import analysis, models
    from keras_switch_train import report

    with flags.blame("preset"):
        backbone = models.SwitchBackbone.from_preset(
            flags.PRESET.value, dtype=flags.DTYPE.value
        )
        tokenizer = models.SwitchTokenizer.from_preset(flags.PRESET.value)
    if not analysis.sparse_layers(backbone):
        raise flags.UsageError(
            "--preset must be of a model with a sparse layer; received "
            f"{flags.PRESET.value!r}, which has none."
        )

    # Data.
    documents = corpus.load()
    corpus.write_vocabulary(tokenizer, workdir)
    held_out = corpus.make_held_out(
        documents.held_out, tokenizer, _BATCHES.value, workdir
    )

    # Report.
    report.write(backbone, held_out, tokenizer, workdir)
    print(f"Plots and routing.json are in {workdir}")


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=(
            "backend",
            "batch_size",
            "corpus",
            "dtype",
            "input_length",
            "objective",
            "preset",
            "retain_heap",
            "workdir",
        ),
        requires=("workdir",),
        trained=True,
    )


if __name__ == "__main__":
    run()

"""One arm of `study.py`, trained in a process of its own on one core.

    python -m keras_switch_train.study_worker runs/study/arms/switch-seed0 3

reads `arm.json` in that folder, trains to its last step and writes `curve.csv`,
a row for each evaluation; `routing.json` follows where there are routers. The
number is that of the core. Killed, the same command goes on where it was.
"""

import json
import os
import sys
from typing import Any

from keras_switch_train import heap


def main(folder: str) -> None:
    """Trains the arm of a folder."""
    with open(os.path.join(folder, "arm.json"), encoding="utf-8") as file:
        arm = json.load(file)
    import keras

    from keras_switch import resume
    from keras_switch_train import study_curve

    keras.utils.set_random_seed(arm["seed"])
    data = _Data(arm)
    model = make_model(arm, data.tokenizer.vocabulary_size())
    checkpoint = resume.ResumableCheckpoint(
        os.path.join(folder, "checkpoints"),
        data=data.pipeline,
        save_every=arm["eval_every"],
        keep=1,
    )
    curve = study_curve.Curve(os.path.join(folder, "curve.csv"))
    model.fit(
        checkpoint.dataset(),
        steps_per_epoch=arm["eval_every"],
        epochs=arm["steps"] // arm["eval_every"],
        validation_data=data.held_out().dataset(),
        callbacks=[curve, checkpoint],
        shuffle=False,
        verbose=0,
    )
    _write_ends(model, data, folder)


class _Data:
    """The batches of an arm."""

    def __init__(self, arm):
        from keras_switch import data, models

        self._arm = arm
        self._data = data
        self.tokenizer = models.SwitchTokenizer(proto=arm["vocabulary"])
        train, self._held_out = data.split_documents(
            data.read_corpus(arm["corpus"])
        )
        self._objective = data.PrefixLM(arm["prefix_fraction"])
        self.pipeline = data.Pipeline(
            self._encode(train),
            self._objective,
            arm["input_length"],
            batch_size=arm["batch_size"],
            seed=arm["seed"],
        )

    def _encode(self, documents):
        cache = self._data.cache_directory()
        vocabulary = self._arm["vocabulary"]
        return self._data.encode_documents(documents, vocabulary, cache)

    def held_out(self, domain=None):
        """Batches of held-out documents, of one domain or of all."""
        documents = [
            d for d in self._held_out if domain in (None, _domain_of(d))
        ]
        batches = self._arm["eval_batches"]
        if domain is not None:  # there are several, and each runs eagerly too
            batches = -(-batches // 2)
        return self._data.HeldOut(
            self._encode(documents),
            self._objective,
            self._arm["input_length"],
            batch_size=self._arm["batch_size"],
            max_rows=batches * self._arm["batch_size"],
        )

    def domains(self):
        return sorted({_domain_of(document) for document in self._held_out})


def _domain_of(document):
    return document.domain.partition("/")[0]  # without what it is about


def make_model(arm: dict[str, Any], vocabulary_size: int) -> Any:
    """The compiled model of an arm.

    Args:
        arm: From `study_arms.settings`.
        vocabulary_size: Of the tokenizer.

    Returns:
        A `SwitchSeq2SeqLM`.
    """
    import keras

    from keras_switch import models, optimizers, schedules

    arguments = dict(arm["backbone"])
    for name in ("router", "decoder_router"):
        if arm[name]:
            arguments[name] = make_router(**arm[name])
    backbone = models.SwitchBackbone(vocabulary_size, **arguments)
    model = models.SwitchSeq2SeqLM(backbone, preprocessor=None)
    warmup = arm["warmup_steps"]
    rate = schedules.InverseSquareRoot(
        arm["learning_rate"] * warmup**0.5, warmup, linear_warmup=True
    )
    optimizer = {
        "adam": keras.optimizers.Adam,
        "adafactor": optimizers.Adafactor,
    }[arm["optimizer"]]
    model.compile(
        optimizer(rate, global_clipnorm=1.0),
        weighted_metrics=[],
        # XLA makes TensorFlow slower on a CPU; torch compiles for minutes.
        jit_compile=keras.backend.backend() == "jax",
        routing_metrics="mean" if arm["router"] else None,
    )
    return model


def make_router(kind: str, half: bool = False, **arguments: Any) -> Any:
    """A router, or one whose probabilities are rounded to bfloat16."""
    import keras

    from keras_switch import layers

    base = {
        "switch": layers.SwitchRouter,
        "top_k": layers.TopKRouter,
        "expert_choice": layers.ExpertChoiceRouter,
    }[kind]
    if not half:
        return base(**arguments)

    class HalfRouter(base):
        """As if the router computed in bfloat16."""

        def _logits(self, tokens, training):
            logits = super()._logits(tokens, training)
            return keras.ops.cast(keras.ops.cast(logits, "bfloat16"), "float32")

    return keras.saving.register_keras_serializable("keras_switch_train")(
        HalfRouter
    )(**arguments)


def _write_ends(model, data, folder):
    """Parameters, and for each domain the loss and where its tokens go."""
    from keras_switch import analysis, files, parameters
    from keras_switch_train import report

    sparse = bool(analysis.sparse_layers(model.backbone))
    ends = {"parameters": parameters.count_parameters(model.backbone)}
    ends["domains"] = {
        domain: _ends_of(model, data.held_out(domain), sparse)
        for domain in data.domains()
    }
    if sparse:
        report.write(model.backbone, data.held_out(), data.tokenizer, folder)
    with files.atomic_write(os.path.join(folder, "ends.json")) as file:
        file.write_text(json.dumps(ends, indent=1), encoding="utf-8")


def _ends_of(model, held_out, sparse):
    from keras_switch import analysis

    logs = model.evaluate(held_out.dataset(), verbose=0, return_dict=True)
    ends = {"loss": float(logs["loss"])}
    if sparse:
        batches = (held_out.batch(i)[0] for i in range(len(held_out)))
        report = analysis.routing_report(model.backbone, batches)
        ends["load"] = {
            layer.name: layer.load.tolist() for layer in report.layers
        }
    return ends


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        # Before the backend counts its threads.
        os.sched_setaffinity(0, {int(sys.argv[2])})
    heap.retain()
    main(sys.argv[1])

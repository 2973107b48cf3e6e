"""One arm of `study.py`, trained in a process of its own on one core.

    python -m keras_switch_train.study_worker runs/study/arms/switch-seed0 3

reads `arm.json` in that folder, trains to its last step and writes `curve.csv`,
a row for each evaluation; `routing.json` follows where there are routers. The
number is that of the core. Killed, the same command goes on where it was.
"""

import contextlib
import fcntl
import json
import os
import sys
from typing import Any

from keras_switch_train import cores, heap


def main(folder: str) -> None:
    """Trains the arm of a folder.

    Raises:
        RuntimeError: if another process trains it.
    """
    with _lock(folder):
        _train(folder)


@contextlib.contextmanager
def _lock(folder):
    """Held by the process, so that it ends with it, however that dies."""
    with open(os.path.join(folder, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{folder} must be free; another process trains this arm. "
                "Wait for it, or stop it."
            ) from None
        yield


def _train(folder):
    with open(os.path.join(folder, "arm.json"), encoding="utf-8") as file:
        arm = json.load(file)
    import keras

    from keras_switch import resume
    from keras_switch_train import study_curve

    keras.utils.set_random_seed(arm["seed"])
    # Folders of arms may move with the folder of the study.
    study = os.path.dirname(os.path.dirname(os.path.abspath(folder)))
    data = _Data(arm, os.path.join(study, arm["vocabulary"]))
    model = make_model(arm, data.tokenizer.vocabulary_size())
    checkpoint = resume.ResumableCheckpoint(
        os.path.join(folder, "checkpoints"),
        data=data.pipeline,
        save_every=arm["eval_every"],
        keep=1,
    )
    parts = {}
    if arm.get("languages"):
        parts = {name: data.held_out(name).dataset() for name in data.domains()}
    curve = study_curve.Curve(os.path.join(folder, "curve.csv"), parts)
    watched = _watched(arm, data)
    model.fit(
        checkpoint.dataset(),
        steps_per_epoch=arm["eval_every"],
        epochs=arm["steps"] // arm["eval_every"],
        validation_data=data.held_out().dataset(),
        callbacks=[*watched, curve, checkpoint],
        shuffle=False,
        verbose=0,
    )
    _write_ends(model, data, folder, _chooses(arm))


def _watched(arm, data):
    """Where routers are compared: how many tokens change their expert."""
    from keras_switch_train import study_arms, study_curve

    if arm["name"] in study_arms.ROUTERS and _chooses(arm):
        return [study_curve.Churn(data.held_out().batch(0)[0])]
    return []


def _chooses(arm):
    """Whether tokens have experts that can be counted."""
    return bool(arm["router"]) and arm["router"]["kind"] != "soft"


class _Data:
    """The batches of an arm."""

    def __init__(self, arm, vocabulary):
        from keras_switch import data, models

        self._arm = arm
        self._data = data
        self._vocabulary = vocabulary
        self.tokenizer = models.SwitchTokenizer(proto=vocabulary)
        train, self._held_out = self._sides()
        self._objective = data.PrefixLM(arm["prefix_fraction"])
        self.pipeline = data.Pipeline(
            self._encode(train),
            self._objective,
            arm["input_length"],
            batch_size=arm["batch_size"],
            seed=arm["seed"],
            **arm.get("pipeline", {}),
        )

    def _sides(self):
        languages = self._arm.get("languages")
        if languages:
            messages = self._data.mediawiki_messages(languages)
            return self._data.split_messages(messages)
        corpus = self._data.read_corpus(self._arm["corpus"])
        return self._data.split_documents(corpus)

    def _encode(self, documents):
        cache = self._data.cache_directory()
        return self._data.encode_documents(documents, self._vocabulary, cache)

    def documents(self, domain):
        """Those held out of a domain, or of all."""
        return [d for d in self._held_out if domain in (None, _domain_of(d))]

    def held_out(self, domain=None, rows=1):
        """Batches of held-out documents, of one domain or of all; of so many
        rows at least, where an arm's own are few and batches run eagerly."""
        batches = self._arm["eval_batches"]
        if domain is not None:  # there are several, and each runs eagerly too
            batches = -(-batches // 2)
        return self._data.HeldOut(
            self._encode(self.documents(domain)),
            self._objective,
            self._arm["input_length"],
            batch_size=max(rows, self._arm["batch_size"]),
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
            arguments[name] = make_router(
                vocabulary_size=vocabulary_size, **arm[name]
            )
    backbone = models.SwitchBackbone(vocabulary_size, **arguments)
    model = models.SwitchSeq2SeqLM(backbone, preprocessor=None)
    warmup = arm["warmup_steps"]
    rate = schedules.InverseSquareRoot(
        arm["learning_rate"] * warmup**0.5, warmup, linear_warmup=True
    )
    others = {"global_clipnorm": 1.0, **arm.get("optimizer", {})}
    model.compile(
        optimizers.Adafactor(rate, **others),
        weighted_metrics=[],
        # XLA makes TensorFlow slower on a CPU; torch compiles for minutes.
        jit_compile=keras.backend.backend() == "jax",
        routing_metrics="mean" if arm["router"] else None,
    )
    return model


def make_router(kind: str, vocabulary_size: int, **arguments: Any) -> Any:
    """A router by its name; `"half"` is the Switch router in bfloat16."""
    from keras_switch.layers.routers import ROUTERS

    if kind == "hash":
        arguments["vocabulary_size"] = vocabulary_size
    return {**ROUTERS, "half": _half_router}[kind](**arguments)


def _half_router(**arguments):
    import keras
    from keras import ops

    from keras_switch import layers

    @keras.saving.register_keras_serializable("keras_switch_train")
    class HalfRouter(layers.SwitchRouter):
        """Jitter and product in bfloat16; the softmax is in float32 still."""

        def _logits(self, tokens, training):
            inputs = ops.cast(tokens, "bfloat16")
            if training:
                inputs = inputs * keras.random.uniform(
                    ops.shape(inputs),
                    1.0 - self.jitter,
                    1.0 + self.jitter,
                    dtype="bfloat16",
                    seed=self.seed_generator,
                )
            kernel = ops.cast(self.kernel, "bfloat16")
            return ops.cast(ops.matmul(inputs, kernel), "float32")

    return HalfRouter(**arguments)


_ROWS = 32


def _write_ends(model, data, folder, sparse):
    """Parameters, and for each domain the loss and where its tokens go."""
    from keras_switch import files, parameters
    from keras_switch_train import measure, report

    ends = {
        "machine": measure.header(),
        "parameters": parameters.count_parameters(model.backbone),
        "domains": {
            domain: {
                "documents": len(data.documents(domain)),
                **_ends_of(model, data.held_out(domain, _ROWS), sparse),
            }
            for domain in data.domains()
        },
    }
    if sparse:
        held_out = data.held_out(rows=_ROWS)
        report.write(model.backbone, held_out, data.tokenizer, folder)
    with files.atomic_write(os.path.join(folder, "ends.json")) as file:
        file.write_text(json.dumps(ends, indent=1), encoding="utf-8")


def _ends_of(model, held_out, sparse):
    from keras_switch import analysis

    logs = model.evaluate(held_out.dataset(), verbose=0, return_dict=True)
    batches = [held_out.batch(i) for i in range(len(held_out))]
    targets = sum(float(weight.sum()) for *_, weight in batches)
    ends = {"loss": float(logs["loss"]), "targets": round(targets)}
    if sparse:
        inputs = (x for x, *_ in batches)
        report = analysis.routing_report(model.backbone, inputs)
        ends["load"] = {
            layer.name: layer.load.tolist() for layer in report.layers
        }
    return ends


if __name__ == "__main__":
    cores.pin(int(sys.argv[2]))
    heap.retain()
    main(sys.argv[1])

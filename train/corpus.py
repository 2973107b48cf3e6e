"""What `--corpus` and `--objective` say, as documents and batches."""

import os
from typing import Any, NamedTuple

from absl import logging

from keras_switch_train import flags

# Ids of a vocabulary above its SentencePiece pieces.
_NUM_SENTINELS = 100
_VOCABULARY = "vocabulary.spm"


class Documents(NamedTuple):
    """The two sides of the corpus; no document is on both."""

    train: list
    held_out: list


def load() -> Documents:
    """Reads `--corpus`, fetching it where that is needed."""
    from keras_switch import data

    with flags.blame("corpus"):
        documents = data.read_corpus(flags.CORPUS.value)
        return Documents(*data.split_documents(documents))


def make_tokenizer(
    documents: list, vocabulary_size: int, folder: str, flag: str = "corpus"
) -> Any:
    """The tokenizer of `--preset`, or one trained on the documents.

    Args:
        documents: The training side.
        vocabulary_size: Of the model, sentinels included.
        folder: Where to write the vocabulary.
        flag: Which one is to blame if it can't be trained on them.

    Returns:
        A `SwitchTokenizer`.
    """
    from keras_switch import data, models

    preset = flags.PRESET.value
    if os.path.isfile(os.path.join(preset, "tokenizer.json")):
        tokenizer = models.SwitchTokenizer.from_preset(preset)
        write_vocabulary(tokenizer, folder)
        return tokenizer
    path = os.path.join(folder, _VOCABULARY)
    logging.info("training a SentencePiece vocabulary")
    with flags.blame(flag):
        texts = (document.text for document in documents)
        pieces = vocabulary_size - _NUM_SENTINELS
        data.train_sentencepiece(texts, pieces, path)
    return models.SwitchTokenizer(proto=path)


def write_vocabulary(tokenizer: Any, folder: str) -> None:
    """Writes a tokenizer's SentencePiece model, for the data to encode with."""
    from keras_switch import files

    with files.atomic_write(os.path.join(folder, _VOCABULARY)) as file:
        file.write_bytes(tokenizer.proto)


def make_pipeline(documents: list, tokenizer: Any, folder: str) -> Any:
    """The training batches of these flags.

    Args:
        documents: The training side.
        tokenizer: A `SwitchTokenizer`.
        folder: Where `make_tokenizer` put the vocabulary.

    Returns:
        A `keras_switch.data.Pipeline`.
    """
    from keras_switch import data

    with flags.blame("input_length"):
        return data.Pipeline(
            _encode(documents, folder),
            make_objective(tokenizer),
            flags.INPUT_LENGTH.value,
            batch_size=flags.BATCH_SIZE.value,
            seed=flags.SEED.value,
        )


def save(model: Any, tokenizer: Any, pipeline: Any, workdir: str) -> None:
    """Writes the preset, which cuts texts to the lengths of training.

    Args:
        model: Without a preprocessor; it gets one.
        tokenizer: A `SwitchTokenizer`.
        pipeline: What the model was trained on.
        workdir: As `--workdir`.
    """
    lengths = {
        "encoder_sequence_length": pipeline.input_length,
        "decoder_sequence_length": pipeline.target_length,
    }
    if "encoder_token_ids" not in model.input_names:
        lengths = {"sequence_length": pipeline.target_length}
    model.preprocessor = model.preprocessor_cls(tokenizer, **lengths)
    path = os.path.join(workdir, "preset")
    model.save_to_preset(path)
    logging.info("saved %s", path)


def tokens_per_step(pipeline: Any, steps: int = 8) -> float:
    """Mean tokens of a batch, inputs and targets, without padding."""
    masks = [
        array
        for step in range(steps)
        for name, array in pipeline.batch(step)[0].items()
        if name.endswith("padding_mask")
    ]
    return sum(int((mask > 0).sum()) for mask in masks) / steps


def _encode(documents, folder):
    from keras_switch import data

    path = os.path.join(folder, _VOCABULARY)
    return data.encode_documents(documents, path, data.cache_directory())


def make_objective(tokenizer: Any) -> Any:
    """What `--objective` says."""
    from keras_switch import data

    if flags.OBJECTIVE.value == "prefix_lm":
        return data.PrefixLM()
    if flags.OBJECTIVE.value == "next_token":
        return data.NextToken()
    return data.SpanCorruption(tokenizer.vocabulary_size())


def make_held_out(
    documents: list, tokenizer: Any, batches: int, folder: str
) -> Any:
    """A fixed set of held-out batches, a sample of the whole.

    Args:
        documents: The held-out side.
        tokenizer: A `SwitchTokenizer`.
        batches: How many, if there are as many.
        folder: Where `make_tokenizer` put the vocabulary.

    Returns:
        A `keras_switch.data.HeldOut`.
    """
    from keras_switch import data

    with flags.blame("input_length"):
        return data.HeldOut(
            _encode(documents, folder),
            make_objective(tokenizer),
            flags.INPUT_LENGTH.value,
            batch_size=flags.BATCH_SIZE.value,
            max_rows=batches * flags.BATCH_SIZE.value,
        )

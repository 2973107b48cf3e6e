"""One side of `benchmark.py --what=generate`, in a process of its own.

Arguments: the side, and the folder of a model. Answers `encoder_token_ids`,
`[B, S]`, and `new_tokens` with `seconds` and `token_ids`.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_switch_train import cores, workers


def ours(folder: str) -> Callable:
    """A function of ids and a number of tokens: what our model generates."""
    import keras_switch

    lm = keras_switch.SwitchSeq2SeqLM.from_preset(folder, preprocessor=None)
    # XLA makes TensorFlow slower on a CPU.
    jit_compile = os.environ["KERAS_BACKEND"] != "tensorflow"
    lm.compile(sampler="greedy", jit_compile=jit_compile)

    def generate(token_ids, new_tokens):
        shape = (len(token_ids), 1 + new_tokens)
        outputs = lm.generate(
            {
                "encoder_token_ids": token_ids,
                "encoder_padding_mask": np.ones_like(token_ids),
                "decoder_token_ids": np.zeros(shape, "int32"),
                "decoder_padding_mask": np.eye(1, shape[1], dtype="int32")
                .repeat(shape[0], axis=0)
                .astype("int32"),
            },
            stop_token_ids=None,
        )
        return np.asarray(outputs["decoder_token_ids"])

    return generate


def transformers(folder: str) -> Callable:
    """The same of `transformers`."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(len(cores.ids()))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()  # nosec B615

    @torch.inference_mode()
    def generate(token_ids, new_tokens):
        ids = torch.tensor(token_ids).long()
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
        ).numpy()

    return generate


def make(side: str, folder: str) -> Callable[..., dict[str, Any]]:
    """Loads a side; returns the function that answers requests."""
    generate = {"ours": ours, "transformers": transformers}[side](folder)

    def answer(encoder_token_ids, new_tokens):
        token_ids = np.array(encoder_token_ids, "int32")
        start = time.perf_counter()
        outputs = generate(token_ids, new_tokens)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "token_ids": outputs.tolist()}

    return answer


if __name__ == "__main__":
    workers.serve(make, sys.argv[1:])

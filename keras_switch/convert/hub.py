"""Folders from the Hugging Face Hub."""

from keras_switch.files import read_json

# What files are downloaded by; never a pickle, never code.
_TRANSFORMERS = ["*.json", "*.safetensors", "spiece.model"]
_KERAS = ["*.json", "*.weights.h5", "assets/tokenizer/vocabulary.spm"]


def download(handle: str) -> str:
    """Downloads a model from the Hugging Face Hub, at one commit.

    Args:
        handle: `"hf://org/name"`, or `"hf://org/name@revision"`.

    Returns:
        The folder: in the layout of `transformers`, or a Keras preset.

    Raises:
        CheckpointError: if its `config.json` is not JSON.
        ImportError: if the hub's client is missing.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ImportError(
            "hf:// handles need huggingface_hub: "
            'pip install "keras-switch[convert]".'
        ) from None
    name, _, revision = handle.removeprefix("hf://").partition("@")
    # One commit for all files: a branch may move between two of them.
    commit = hub.HfApi().model_info(name, revision=revision or None).sha
    config = hub.hf_hub_download(name, "config.json", revision=commit)
    theirs = "model_type" in read_json(config)
    return hub.snapshot_download(
        name,
        revision=commit,
        allow_patterns=_TRANSFORMERS if theirs else _KERAS,
    )

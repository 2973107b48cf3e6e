"""How models come from presets and go into them."""

from typing import Any

from keras_switch.models.preset_folder import PresetFolder
from keras_switch.models.preset_loader import Options
from keras_switch.models.preset_writer import is_open, preset_to_write
from keras_switch.models.presets import PresetListing, find_preset
from keras_switch.ops.export import check_saved_model, endpoint_options
from keras_switch.ops.state import is_writer, on_host, wait_for_all


class PresetModel:
    """What backbones and tasks have in common.

    It stands before KerasHub's class, whose loader looks classes up by what a
    file says.
    """

    presets = PresetListing()
    preset_part: str  # as for `preset_to_write`
    preset_name: str  # the class of this package, also of a subclass

    @classmethod
    def from_preset(
        cls,
        preset: str,
        load_weights: bool = True,
        *,
        allow_unverified: bool = False,
        max_bytes: int | None = None,
        routers: Any = (),
        **kwargs: Any,
    ) -> Any:
        """Makes a model from a preset.

        A preset is data: nothing that it says is run or looked up.

        Args:
            preset: A short name (see `presets`), a folder that
                `save_to_preset` wrote, or a folder in the layout of
                `transformers`; or the `hf://` handle of one of them.
            load_weights: Whether to load weights. Presets of this package
                carry none: pass `False`.
            allow_unverified: Whether a Keras preset may lack the manifest,
                as one that KerasHub wrote does.
            max_bytes: Refuse a model whose weights would take more memory;
                `None`: more than is free.
            routers: Classes of your own that the routers may be.
            **kwargs: Arguments to override. Of a backbone, its arguments; of
                a task, its arguments and `dtype`, and in the layout of
                `transformers` those of the backbone too. A preset without a
                tokenizer makes a task with `preprocessor=None`.

        Returns:
            A model of this class.

        Raises:
            CheckpointError: if anything in the preset is not as it must be.
            ValueError: if an argument is not.
        """
        folder, layout, built_in = find_preset(preset)
        if layout is not None:
            return cls._from_layout(
                layout, folder, load_weights, max_bytes=max_bytes, **kwargs
            )
        return cls._from_folder(
            PresetFolder(folder, allow_unverified, built_in),
            Options(load_weights, max_bytes, tuple(routers)),
            kwargs,
        )

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.export`: one pass of the model, without a cache.

        Generation is exported by `keras_switch.convert.export_saved_model`.

        Raises:
            RuntimeError: for a SavedModel on torch.
        """
        if format == "tf_saved_model":
            check_saved_model()
        if format == "tf_saved_model" and input_signature is None:
            # encoder_token_ids, encoder_padding_mask: of one length
            lengths = {
                name: "source" if name.startswith("encoder_") else "target"
                for name in self.input
            }
            kwargs = {**endpoint_options(lengths), **kwargs}
        super().export(filepath, format, verbose, input_signature, **kwargs)

    def save_to_preset(
        self, preset_dir: str, max_shard_size: float | None = 10
    ) -> None:
        """Writes a preset, whole or not at all, with its manifest.

        Where several processes share the model, each of them must call this,
        and needs memory of the host for the largest weight; the first one
        writes.

        Args:
            preset_dir: A folder. What is in it already stays, but for the
                parts of a preset that are written anew.
            max_shard_size: Most gigabytes of one file of weights.
        """
        if is_open(preset_dir):
            super().save_to_preset(preset_dir, max_shard_size)
            return
        with on_host(self.variables):
            if is_writer():
                with preset_to_write(preset_dir, self.preset_part) as folder:
                    super().save_to_preset(folder, max_shard_size)
        wait_for_all("save_to_preset")

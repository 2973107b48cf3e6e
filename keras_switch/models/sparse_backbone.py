"""What the backbones of this library have in common."""

import keras

from keras_switch.layers.feed_forward import FeedForward
from keras_switch.models.backbone_arguments import make_switch_layer, plain
from keras_switch.models.preset_loader import load_backbone
from keras_switch.models.presets import LAYOUTS
from keras_switch.sharding import get_layout_map


class SparseBackbone:
    """Stands before KerasHub's class, behind `PresetModel`.

    A subclass keeps its arguments as attributes, names them in
    `argument_names`, and lists its layers in `stacks`.
    """

    preset_part = "backbone"
    argument_names: tuple[str, ...] = ()  # those that make up a config

    get_layout_map = staticmethod(get_layout_map)

    @property
    def stacks(self) -> dict[str, list]:
        """The transformer layers, by `"encoder"` and `"decoder"`."""
        raise NotImplementedError

    @property
    def is_batch_dependent(self) -> bool:
        """Whether in evaluation a row's output may depend on other rows.

        So it is where a `SwitchLayer` says so of itself.
        """
        layers = [layer for stack in self.stacks.values() for layer in stack]
        found = (layer.feed_forward for layer in layers)
        return any(getattr(f, "is_batch_dependent", False) for f in found)

    def _keep(self, arguments):
        for name, value in arguments.items():
            setattr(self, name, plain(value))
        if self.key_value_dim is None:
            self.key_value_dim = self.hidden_dim // self.num_heads

    def _make_embedding(self, dtype):
        self.token_embedding = keras.layers.ReversibleEmbedding(
            self.vocabulary_size,
            self.hidden_dim,
            tie_weights=self.tie_embedding_weights,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
            reverse_dtype="float32",
            name="token_embedding",
            dtype=dtype,
        )
        self.token_embedding.build()
        embedding = self.token_embedding
        if not embedding.tie_weights and not embedding.quantization_mode:
            # Keras draws the logits kernel like the embedding, from N(0, 1).
            kernel = embedding.reverse_embeddings
            kernel.assign(kernel * self.hidden_dim**-0.5)

    def _make_feed_forward(self, is_sparse, router, dtype, **dense):
        if is_sparse:
            arguments = {n: getattr(self, n) for n in self.argument_names}
            return make_switch_layer(arguments, router, dtype=dtype)
        return self._make_dense("feed_forward", dtype, **dense)

    def _make_extra_feed_forward(self, is_sparse, dtype, **dense):
        if not (is_sparse and self.extra_feed_forward):
            return None
        return self._make_dense("extra_feed_forward", dtype, **dense)

    def _make_dense(self, name, dtype, **arguments):
        return FeedForward(
            self.intermediate_dim,
            activation=self.activation,
            dropout=self.dropout,
            init_scale=self.init_scale,
            name=name,
            dtype=dtype,
            **arguments,
        )

    def get_config(self):
        config = super().get_config()
        for name in self.argument_names:
            config[name] = plain(getattr(self, name))
        return config

    @classmethod
    def _from_folder(cls, folder, options, overrides):
        return load_backbone(cls, folder, options, overrides)

    @classmethod
    def _from_layout(cls, layout, folder, load_weights, **kwargs):
        backbone = layout.load_backbone(folder, load_weights, **kwargs)
        # A subclass of one's own gets what it is a subclass of.
        if not issubclass(cls, type(backbone)):
            raise ValueError(
                f"preset must hold a {cls.__name__}; received {folder}, which "
                f"holds a {type(backbone).__name__}. Load it by that class, or "
                "by its task."
            )
        return backbone

    def export_to_transformers(self, path: str) -> None:
        """Writes a new folder that `transformers` loads."""
        LAYOUTS["hf://"].export(self, path)

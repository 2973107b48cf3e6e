"""Switch Transformers with logits: training and generation."""

from typing import Any

import keras
import keras_hub
from keras import ops

from keras_switch.layers.switch_layer import SwitchLayer
from keras_switch.layers.validation import check_choice, check_number
from keras_switch.models.backbone_arguments import check_known
from keras_switch.models.presets import PresetListing, has_file, resolve_preset
from keras_switch.models.routing_metrics import RoutingMetrics
from keras_switch.models.switch_backbone import SwitchBackbone
from keras_switch.models.switch_seq_2_seq_lm_preprocessor import (
    SwitchSeq2SeqLMPreprocessor,
)


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchSeq2SeqLM(keras_hub.models.Seq2SeqLM):
    """A Switch Transformer that is trained on, and generates, text.

    The decoder's output times the transposed embedding (scaled by `D ** -0.5`)
    or, untied, times a kernel of its own; logits are float32. `fit` takes
    strings if there is a preprocessor, and arrays otherwise; its loss is the
    cross-entropy per real target token plus the auxiliary losses of the
    routers. `generate` decodes with a key-value cache and any KerasHub
    sampler.

    Args:
        backbone: A `SwitchBackbone`.
        preprocessor: A `SwitchSeq2SeqLMPreprocessor`, or `None` if inputs are
            tokenized already.
        **kwargs: `name`, `trainable` and `compile`.

    Call arguments:
        inputs: A dict of int tensors: `encoder_token_ids` and
            `encoder_padding_mask`, `[B, S]`; `decoder_token_ids` and
            `decoder_padding_mask`, `[B, T]`.

    Returns:
        Logits, float32 `[B, T, vocabulary_size]`.

    Example:

    ```python
    lm = keras_switch.SwitchSeq2SeqLM.from_preset("./my_preset")
    lm.fit(
        {
            "encoder_text": ["The <extra_id_0> walks in the park."],
            "decoder_text": ["<extra_id_0> dog"],
        },
        batch_size=1,
    )
    lm.generate("The <extra_id_0> walks in the park.", max_length=10)
    lm.save_to_preset("./my_preset")
    ```

    Reference:
        [Switch Transformers (Fedus et al., 2022)](https://arxiv.org/abs/2101.03961)
    """

    backbone_cls = SwitchBackbone
    preprocessor_cls = SwitchSeq2SeqLMPreprocessor
    presets = PresetListing()

    def __init__(
        self,
        backbone: SwitchBackbone,
        preprocessor: SwitchSeq2SeqLMPreprocessor | None = None,
        **kwargs: Any,
    ) -> None:
        known = ("name", "trainable", "compile")
        check_known("SwitchSeq2SeqLM", kwargs, known)
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        # === Functional model ===
        inputs = backbone.input
        outputs = self._logits(backbone(inputs)["decoder_sequence_output"])
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        sampler: Any = "greedy",
        routing_metrics: str | None = "layers",
        z_loss_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Configures training and generation.

        Args:
            optimizer: `"auto"` is Adafactor at a constant 0.001, with which T5
                and Switch Transformers are fine-tuned.
            loss: `"auto"` is the cross-entropy per target token of weight.
            weighted_metrics: `"auto"` is the accuracy per target token.
            sampler: Name or instance of a `keras_hub.samplers.Sampler`.
            routing_metrics: `"layers"` logs what the router of each sparse
                layer did, `"mean"` the mean over the layers, `None` nothing.
            z_loss_weight: Weight of the mean of `logsumexp(logits) ** 2` over
                target tokens, in training only. T5X pre-trains with 1e-4.
            **kwargs: Other arguments of `keras.Model.compile`.
        """
        check_choice("routing_metrics", routing_metrics, _ROUTING_METRICS)
        check_number("z_loss_weight", z_loss_weight, at_least=0)
        self._routing_choice = routing_metrics
        self._z_loss_weight = z_loss_weight
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = _default_optimizer()
        if isinstance(loss, str) and loss == "auto":
            # Keras' default reduction divides by padding, too.
            loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            )
        super().compile(
            optimizer,
            loss,
            weighted_metrics=weighted_metrics,
            sampler=sampler,
            **kwargs,
        )
        self._set_routing_metrics()

    def _set_routing_metrics(self):
        stacks = (
            self.backbone.encoder_transformer_layers,
            self.backbone.decoder_transformer_layers,
        )
        layers = {
            layer.name: layer.feed_forward
            for stack in stacks
            for layer in stack
            if isinstance(layer.feed_forward, SwitchLayer)
        }
        # Made once: Keras never forgets a metric that was set on a model.
        if layers and not hasattr(self, "_routing_metrics"):
            self._routing_metrics = RoutingMetrics(layers)
        if layers:
            self._routing_metrics.per_layer = self._routing_choice == "layers"

    @property
    def metrics(self):
        metrics = super().metrics
        if getattr(self, "_routing_choice", None) is not None:
            return metrics
        return [m for m in metrics if not isinstance(m, RoutingMetrics)]

    def compute_loss(
        self,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        training=True,
    ):
        # Here, because a metric updated inside a layer is lost on JAX.
        if self._routing_choice and hasattr(self, "_routing_metrics"):
            self._routing_metrics.update_state()
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if training and self._z_loss_weight:
            squares = ops.square(ops.logsumexp(y_pred, axis=-1))  # [B, T]
            loss = loss + self._z_loss_weight * _mean(squares, sample_weight)
        return loss

    def get_compile_config(self) -> dict:
        config = super().get_compile_config()
        if config:
            config["sampler"] = keras_hub.samplers.serialize(self.sampler)
            config["routing_metrics"] = self._routing_choice
            config["z_loss_weight"] = self._z_loss_weight
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compiles a model that is loaded, and makes room for its optimizer."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def quantize(
        self,
        mode: str | None = None,
        config: Any = None,
        filters: Any = None,
        **kwargs: Any,
    ) -> None:
        """Quantizes the weights in place; see `keras.Model.quantize`.

        Args:
            mode: `"int8"`, `"int4"` or `"float8"`.
            config: A `keras.quantizers.QuantizationConfig`.
            filters: Which layers.
        """
        # Keras' own trips over the tokenizer, a layer that is never built.
        self.backbone.quantize(mode, config=config, filters=filters, **kwargs)
        self.train_function = self.test_function = self.predict_function = None
        self.generate_function = None

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
    ) -> Any:
        """Generates text, or token ids where there is no preprocessor.

        Args:
            inputs: A string, a batch of strings, or a dict of them with
                `encoder_text` and `decoder_text`, the prompt. Without
                preprocessor, a dict of the model's four inputs.
            max_length: Length of the decoder's sequence, start and prompt
                counted; by default the preprocessor's.
            stop_token_ids: Ids that end a sequence, or `None`; `"auto"` is the
                tokenizer's `</s>`.
            strip_prompt: Whether to leave the prompt out of the result.

        Returns:
            A string or a list of them; without preprocessor, a dict of
            `decoder_token_ids` and `decoder_padding_mask`, `[B, T]`.
        """
        if max_length is not None:
            check_number("max_length", max_length, whole=True, at_least=1)
        if isinstance(inputs, dict):
            inputs = dict(inputs)  # The base class writes into it.
        whole = self.make_generate_function()
        if strip_prompt:
            # The base class looks for keys that only decoders have.
            self.generate_function = _without_prompt(whole)
        try:
            return super().generate(inputs, max_length, stop_token_ids)
        finally:
            self.generate_function = whole

    def generate_step(self, inputs: dict, stop_token_ids: Any = None) -> dict:
        """Generates from tokens; compiled by `make_generate_function`.

        Args:
            inputs: A dict of the model's four inputs. `decoder_padding_mask`
                marks the start token and the prompt.
            stop_token_ids: Ids that end a sequence, or `None`.

        Returns:
            A dict: `decoder_token_ids`, int `[B, T]`, and
            `decoder_padding_mask`, bool `[B, T]`, true up to the stop token.
        """
        token_ids = inputs["decoder_token_ids"]
        prompt_mask = ops.cast(inputs["decoder_padding_mask"], "bool")
        hidden_states, cache = self._read_prompt(inputs)
        lengths = ops.sum(ops.cast(prompt_mask, "int32"), axis=-1)
        token_ids = self.sampler(
            next=self._next_token,
            prompt=token_ids,
            cache=cache,
            # The start token is there, whatever the mask says.
            index=ops.maximum(ops.min(lengths), 1),
            mask=prompt_mask,
            stop_token_ids=stop_token_ids,
            hidden_states=hidden_states,
            model=self,
        )
        mask = _generated_mask(token_ids, prompt_mask, stop_token_ids)
        return {"decoder_token_ids": token_ids, "decoder_padding_mask": mask}

    def _read_prompt(self, inputs):
        """Fills the caches with the encoder's output and the prompt."""
        encoder_ids = inputs["encoder_token_ids"]
        decoder_ids = inputs["decoder_token_ids"]
        # One segment each: whatever the ids, the prompt may see the input.
        encoder_mask, decoder_mask = (
            ops.cast(ops.cast(inputs[name], "bool"), "int32")
            for name in ("encoder_padding_mask", "decoder_padding_mask")
        )
        encoder_output = self.backbone.call_encoder(encoder_ids, encoder_mask)
        hidden_states, caches = self.backbone.call_decoder(
            decoder_ids,
            padding_mask=decoder_mask,
            encoder_output=encoder_output,
            encoder_padding_mask=encoder_mask,
            caches=self._empty_caches(encoder_ids, decoder_ids),
            cache_update_index=0,
        )
        # All that the loop reads travels in it: samplers copy it for beams.
        return hidden_states, (caches, encoder_mask)

    def _next_token(self, prompt, cache, index):
        """Reads the token before `index`; returns logits, state and cache."""
        caches, encoder_mask = cache
        batch_size = ops.shape(prompt)[0]
        token_ids = ops.slice(prompt, [0, index - 1], [batch_size, 1])
        hidden_states, caches = self.backbone.call_decoder(
            token_ids,
            encoder_padding_mask=encoder_mask,
            caches=caches,
            cache_update_index=index - 1,
        )
        logits = self._logits(hidden_states)  # [B, 1, V]
        cache = (caches, encoder_mask)
        return logits[:, 0], hidden_states[:, 0], cache

    def _empty_caches(self, encoder_ids, decoder_ids):
        backbone = self.backbone
        batch_size, encoder_length = ops.shape(encoder_ids)
        heads = (backbone.num_heads, backbone.key_value_dim)
        return [
            tuple(
                ops.zeros((batch_size, 2, length, *heads), self.compute_dtype)
                for length in (ops.shape(decoder_ids)[1], encoder_length)
            )
            for _ in range(backbone.num_decoder_layers)
        ]

    def _logits(self, hidden_states):
        if self.backbone.tie_embedding_weights:
            # The embedding starts at variance 1, a logits kernel at 1 / D.
            hidden_states = hidden_states * self.backbone.hidden_dim**-0.5
        logits = self.backbone.token_embedding(hidden_states, reverse=True)
        return ops.cast(logits, "float32")  # [B, T, V]

    @classmethod
    def from_preset(
        cls, preset: str, load_weights: bool = True, **kwargs: Any
    ) -> "SwitchSeq2SeqLM":
        """Makes a model from a preset.

        Args:
            preset: A short name (see `SwitchSeq2SeqLM.presets`), a folder that
                `save_to_preset` wrote, or a handle that KerasHub knows.
            load_weights: Whether to load weights. Presets of this package
                carry none: pass `False`.
            **kwargs: `dtype`, or arguments of the model to override. A preset
                without a tokenizer makes a model with `preprocessor=None`.

        Returns:
            A `SwitchSeq2SeqLM`.
        """
        folder = resolve_preset(preset, load_weights)
        if not has_file(folder, "tokenizer.json"):
            kwargs.setdefault("preprocessor", None)
        return super().from_preset(folder, load_weights, **kwargs)


_ROUTING_METRICS = ("layers", "mean", None)


def _default_optimizer():
    # By name: models do not import optimizers. The package registers it.
    adafactor = keras.saving.get_registered_object("keras_switch>Adafactor")
    return adafactor(1e-3) if adafactor else keras.optimizers.Adam(1e-4)


def _mean(values, weights):
    if weights is None:
        return ops.mean(values)
    weights = ops.cast(weights, values.dtype)
    return ops.sum(values * weights) / ops.maximum(ops.sum(weights), 1e-7)


def _without_prompt(generate_function):
    def generate(inputs, stop_token_ids=None):
        outputs = generate_function(inputs, stop_token_ids=stop_token_ids)
        prompt = ops.cast(inputs["decoder_padding_mask"], "bool")
        mask = ops.cast(outputs["decoder_padding_mask"], "bool")
        mask = ops.logical_and(mask, ops.logical_not(prompt))
        return {**outputs, "decoder_padding_mask": mask}

    return generate


def _generated_mask(token_ids, prompt_mask, stop_token_ids):
    """True up to the first stop token that is not of the prompt."""
    if stop_token_ids is None:
        return ops.ones_like(token_ids, dtype="bool")
    stops = ops.zeros_like(token_ids, dtype="bool")
    for stop_token_id in stop_token_ids:
        stops = ops.logical_or(stops, token_ids == stop_token_id)
    stops = ops.logical_and(stops, ops.logical_not(prompt_mask))
    stops = ops.cast(stops, "int32")
    return ops.cumsum(stops, axis=-1) - stops == 0

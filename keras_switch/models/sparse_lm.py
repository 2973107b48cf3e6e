"""What the tasks of this library have in common."""

from typing import Any

import keras
import keras_hub
from keras import ops

from keras_switch.layers.switch_layer import SwitchLayer
from keras_switch.layers.validation import check_choice, check_number
from keras_switch.models import generation
from keras_switch.models.beam_sampler import BeamSampler
from keras_switch.models.decoding import decode
from keras_switch.models.generation_inputs import (
    check_request,
    generated_names,
    read_inputs,
)
from keras_switch.models.preset_loader import load_task
from keras_switch.models.presets import LAYOUTS
from keras_switch.models.routing_metrics import RoutingMetrics
from keras_switch.ops.state import fetched, process_count


class SparseLM:
    """Stands before KerasHub's task, behind `PresetModel`.

    One way to train, one way to generate. A subclass says in `input_names`
    which arrays its backbone takes, those of the generated sequence last.
    """

    preset_part = "task"
    input_names: tuple[str, ...] = ()

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
                and Switch Transformers are fine-tuned; with adapters
                (`enable_lora`, before or after) it is Adam at 0.01.
            loss: `"auto"` is the cross-entropy per target token of weight.
            weighted_metrics: `"auto"` is the accuracy per target token.
            sampler: Name or instance of a `keras_hub.samplers.Sampler`;
                `"beam"` is `keras_switch.BeamSampler`.
            routing_metrics: `"layers"` logs what the router of each sparse
                layer did, `"mean"` the mean over the layers, `None` nothing.
                `evaluate` so returns the fraction that a capacity dropped.
            z_loss_weight: Weight of the mean of `logsumexp(logits) ** 2` over
                target tokens, in training only. T5X pre-trains with 1e-4.
            **kwargs: Other arguments of `keras.Model.compile`.
        """
        check_choice("routing_metrics", routing_metrics, _ROUTING_METRICS)
        check_number("z_loss_weight", z_loss_weight, at_least=0)
        self._routing_choice = routing_metrics
        self._z_loss_weight = z_loss_weight
        self._choice = None
        if isinstance(optimizer, str) and optimizer == "auto":
            self._choice = self._has_adapters()
            optimizer = _default_optimizer(self._choice)
        if isinstance(loss, str) and loss == "auto":
            # Keras' default reduction divides by padding, too.
            loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            )
        super().compile(
            optimizer,
            loss,
            weighted_metrics=weighted_metrics,
            sampler=BeamSampler() if sampler == "beam" else sampler,
            **kwargs,
        )
        self._set_routing_metrics()

    def _set_routing_metrics(self):
        layers = {
            layer.name: layer.feed_forward
            for stack in self.backbone.stacks.values()
            for layer in stack
            if isinstance(layer.feed_forward, SwitchLayer)
        }
        # Made once: Keras never forgets a metric that was set on a model.
        if layers and not hasattr(self, "_routing_metrics"):
            self._routing_metrics = RoutingMetrics(layers)
        if layers:
            self._routing_metrics.per_layer = self._routing_choice == "layers"

    @property
    def is_batch_dependent(self) -> bool:
        """See the backbone."""
        return self.backbone.is_batch_dependent

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

    def get_weights(self) -> list:
        if process_count() == 1:
            return super().get_weights()
        # Keras reads only what lies in this process, which EarlyStopping
        # would stumble over.
        return [fetched(weight.value) for weight in self.weights]

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

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`.

        Raises:
            ValueError: also, if weights were frozen or adapters added since
                the optimizer was last used.
        """
        self._follow_adapters()
        self._check_optimizer()
        return super().fit(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        self._check_optimizer()
        return super().make_train_function(force or self._has_changed("train"))

    def make_test_function(self, force: bool = False) -> Any:
        return super().make_test_function(force or self._has_changed("test"))

    def make_predict_function(self, force: bool = False) -> Any:
        force = force or self._has_changed("predict")
        return super().make_predict_function(force)

    def make_generate_function(self) -> Any:
        if self._has_changed("generate"):
            self.generate_function = None
        return super().make_generate_function()

    def _has_changed(self, function):
        """Whether a function was compiled for other weights: TensorFlow's
        would go on without adapters, and train what has been frozen."""
        now = [(id(weight), weight.trainable) for weight in self.weights]
        before = self.__dict__.setdefault("_compiled_for", {}).get(function)
        self._compiled_for[function] = now
        return before not in (None, now)

    def _has_adapters(self):
        return any("/lora_kernel_" in v.path for v in self.trainable_variables)

    def _follow_adapters(self):
        """The default optimizer is one for what is trained."""
        choice = getattr(self, "_choice", None)  # None: not ours, or no compile
        adapters = self._has_adapters()
        if choice in (None, adapters) or self.optimizer.built:
            return
        optimizer = self.optimizer
        self._choice = adapters
        self.optimizer = _default_optimizer(adapters)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            self.optimizer = type(optimizer)(self.optimizer)

    def _check_optimizer(self):
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None or not optimizer.built:
            return
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        known = {id(v) for v in optimizer._trainable_variables}
        if known != {id(v) for v in self.trainable_variables}:
            raise ValueError(
                "The optimizer has trained other weights than those that are "
                "trainable now. Call compile() again after enable_lora(), and "
                "after a change of trainable."
            )

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
        *,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        truncate: bool = False,
        allow_batch_dependent: bool = False,
        max_cache_bytes: int = 2**32,
    ) -> Any:
        """Generates text, or token ids where there is no preprocessor.

        Calls of different sizes share what is compiled: rows and lengths are
        padded up to a power of two (from 128 on to a multiple of 128), and
        results cut back. A row does not depend on the rest of its batch,
        unless experts have a capacity in evaluation (`is_batch_dependent`):
        then rows and inputs are not padded, and a batch is refused. Several
        threads may call it; they take turns.

        Args:
            inputs: A string or a batch of strings: prompts, or texts for the
                encoder. With an encoder also a dict of them with
                `encoder_text` and, optionally, `decoder_text`, the prompt.
                Without preprocessor, a dict of the model's inputs, in which
                the last mask marks the prompt: the first tokens of each row.
                Or a `tf.data.Dataset` of batches of these. An empty batch
                gives an empty result.
            max_length: Length of the decoder's sequence, start and prompt
                counted; by default the preprocessor's, or that of the arrays.
            stop_token_ids: Ids that end a sequence, or `None`; `"auto"` is the
                tokenizer's `</s>`.
            strip_prompt: Whether to leave the prompt out of the result.
            max_new_tokens: Most tokens behind the prompt, instead of
                `max_length`.
            seed: Makes samplers draw the same each time, whatever was drawn
                before; what a row draws depends on its place in the batch and
                on the padded size of it. By default a sampler goes on from its
                own state.
            truncate: Whether to cut texts and prompts that are too long for
                the preprocessor's lengths (or `max_length`), or to refuse
                them.
            allow_batch_dependent: Whether to generate for several rows where
                they change each other's results.
            max_cache_bytes: Refuse what would take more memory than this (4
                GiB) for cached keys and values, by an estimate.

        Returns:
            A string or a list of them; without preprocessor, a dict of
            `decoder_token_ids` and `decoder_padding_mask` (`token_ids` and
            `padding_mask` without an encoder), `[B, T]`. What follows a stop
            token is left out; masked ids are 0.

        Raises:
            ValueError: if an argument is not as above; nothing has been run.
            FloatingPointError: if logits were NaN or infinite.
        """
        request = check_request(
            self,
            stop_token_ids=stop_token_ids,
            seed=seed,
            max_cache_bytes=max_cache_bytes,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            strip_prompt=strip_prompt,
            truncate=truncate,
            allow_batch_dependent=allow_batch_dependent,
        )
        batches, is_scalar = read_inputs(inputs, self)
        outputs = [
            generation.generate_batch(self, batch, request, part)
            for part, batch in enumerate(batches)
        ]
        if self.preprocessor is None:
            return generation.join(outputs, generated_names(self.input_names))
        texts = [text for batch in outputs for text in batch]
        return texts[0] if is_scalar else texts

    def generate_step(self, inputs: dict, stop_token_ids: Any = None) -> dict:
        """Generates from tokens; compiled by `make_generate_function`.

        Args:
            inputs: A dict of the model's inputs. The last mask marks the start
                token and the prompt.
            stop_token_ids: Ids that end a sequence, or `None`.

        Returns:
            A dict of `[B, T]`: `decoder_token_ids`, int; and two masks, bool:
            `decoder_padding_mask`, true up to the stop token, and
            `decoder_finite_mask`, false from where logits were not finite.
            Without an encoder, the same without `decoder_`.
        """
        return decode(self, inputs, stop_token_ids)

    def _logits(self, hidden_states):
        if self.backbone.tie_embedding_weights:
            # The embedding starts at variance 1, a logits kernel at 1 / D.
            hidden_states = hidden_states * self.backbone.hidden_dim**-0.5
        logits = self.backbone.token_embedding(hidden_states, reverse=True)
        return ops.cast(logits, "float32")  # [B, T, V]

    def export_to_transformers(self, path: str) -> None:
        """Writes a folder that `transformers` loads: `keras_switch.convert`.

        Args:
            path: A folder that does not exist yet, or is empty.
        """
        LAYOUTS["hf://"].export(self, path)

    @classmethod
    def _from_folder(cls, folder, options, overrides):
        return load_task(cls, folder, options, overrides)

    @classmethod
    def _from_layout(cls, layout, folder, load_weights, **kwargs):
        own = {k: kwargs.pop(k) for k in ("name", "trainable") if k in kwargs}
        if "preprocessor" in kwargs:
            own["preprocessor"] = kwargs.pop("preprocessor")
        elif layout.has_tokenizer(folder):
            own["preprocessor"] = cls.preprocessor_cls.from_preset(folder)
        backbone = cls.backbone_cls._from_layout(
            layout, folder, load_weights, **kwargs
        )
        return cls(backbone, **own)


_ROUTING_METRICS = ("layers", "mean", None)


def _default_optimizer(adapters):
    if adapters:
        # Adafactor's steps are relative to a weight, and adapters start at 0.
        return keras.optimizers.Adam(1e-2)
    # By name: models do not import optimizers. The package registers it.
    adafactor = keras.saving.get_registered_object("keras_switch>Adafactor")
    return adafactor(1e-3) if adafactor else keras.optimizers.Adam(1e-4)


def _mean(values, weights):
    if weights is None:
        return ops.mean(values)
    weights = ops.cast(weights, values.dtype)
    return ops.sum(values * weights) / ops.maximum(ops.sum(weights), 1e-7)

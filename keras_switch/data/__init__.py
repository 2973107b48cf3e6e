"""From text to training batches, without any machine-learning backend."""

from keras_switch.data.corpus import (
    LICENCES,
    Document,
    clean_documents,
    demo_corpus,
    read_corpus,
    split_documents,
    text_files,
)
from keras_switch.data.domains import (
    DOMAIN_LICENCES,
    domain_corpus,
    domain_provenance,
)
from keras_switch.data.download import Wheel, fetch_wheel
from keras_switch.data.files import cache_directory
from keras_switch.data.held_out import HeldOut
from keras_switch.data.messages import (
    MESSAGE_LICENCE,
    mediawiki_messages,
    mediawiki_record,
    split_messages,
)
from keras_switch.data.objectives import (
    Examples,
    NextToken,
    PrefixLM,
    SpanCorruption,
    largest_window,
    prefix_lm,
    span_corruption,
    span_corruption_window,
)
from keras_switch.data.package_descriptions import (
    Description,
    package_descriptions,
    package_descriptions_record,
)
from keras_switch.data.pipeline import Pipeline
from keras_switch.data.share import Share
from keras_switch.data.spans import replace_spans
from keras_switch.data.throughput import Throughput, measure_throughput
from keras_switch.data.tokens import TokenizedCorpus, encode_documents
from keras_switch.data.vocabulary import (
    VOCABULARY_LICENCE,
    fetch_vocabulary,
    train_sentencepiece,
)

__all__ = [
    "DOMAIN_LICENCES",
    "LICENCES",
    "MESSAGE_LICENCE",
    "Description",
    "Document",
    "Examples",
    "HeldOut",
    "Pipeline",
    "NextToken",
    "PrefixLM",
    "Share",
    "SpanCorruption",
    "Throughput",
    "TokenizedCorpus",
    "VOCABULARY_LICENCE",
    "Wheel",
    "cache_directory",
    "clean_documents",
    "demo_corpus",
    "domain_corpus",
    "domain_provenance",
    "encode_documents",
    "fetch_vocabulary",
    "fetch_wheel",
    "largest_window",
    "measure_throughput",
    "mediawiki_messages",
    "mediawiki_record",
    "package_descriptions",
    "package_descriptions_record",
    "prefix_lm",
    "read_corpus",
    "replace_spans",
    "span_corruption",
    "span_corruption_window",
    "split_documents",
    "split_messages",
    "text_files",
    "train_sentencepiece",
]

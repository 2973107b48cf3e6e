"""The binaries, installed as `keras_switch_train`.

A binary imports Keras inside `main` only: the backend is chosen by `--backend`,
and Keras reads that choice once, when it is first imported.
"""

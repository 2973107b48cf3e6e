"""What backends need to export a model."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops


def check_saved_model() -> None:
    """Refuses to write a SavedModel where the backend cannot.

    Raises:
        RuntimeError: on torch.
    """
    if keras.backend.backend() == "torch":
        raise RuntimeError(
            "A SavedModel needs the TensorFlow or JAX backend; this is torch. "
            "Save the model with save_to_preset, and export the preset with "
            "KERAS_BACKEND=tensorflow."
        )


def endpoint_options(
    lengths: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `keras.export.ExportArchive.add_endpoint` is to be given.

    Gradients are of no use to a server, and JAX cannot trace them where the
    number of rows is not known.

    Args:
        lengths: Of inputs `[B, T]` of any length, what tells lengths apart:
            Keras makes each input's its own, and JAX wants to know which are
            equal.
    """
    if keras.backend.backend() != "jax":
        return {}
    options: dict[str, Any] = {"with_gradient": False}
    if lengths is not None:
        shapes = {name: f"(batch, {of})" for name, of in lengths.items()}
        options["polymorphic_shapes"] = [shapes]
    return {"jax2tf_kwargs": options}


def check_onnx() -> None:
    """Refuses to write ONNX where the backend cannot.

    Raises:
        RuntimeError: on JAX and TensorFlow.
        ImportError: if torch's exporter lacks a package.
    """
    backend = keras.backend.backend()
    if backend != "torch":
        raise RuntimeError(
            f"ONNX needs the torch backend; this is {backend}. Save the model "
            "with save_to_preset, and export the preset with "
            "KERAS_BACKEND=torch."
        )
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"ONNX is written with the package {name}: pip install "
                "'keras-switch[onnx]'."
            )


def is_exporting() -> bool:
    """Whether a program is being written down that runs without Python."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return torch.compiler.is_exporting()


def starts(*places: Any) -> Any:
    """Places that `keras.ops.slice_update` takes, some of them perhaps tensors.

    ONNX wants int64, and Keras leaves them as they are.
    """
    return ops.cast(ops.stack(places), "int64") if is_exporting() else places


def split_by(rows: Any, sizes: Any) -> Sequence[Any]:
    """Cuts rows into parts whose sizes only the running program knows.

    Only where `is_exporting`.

    Args:
        rows: `[N, D]`.
        sizes: int32 `[E]`; their sum is at most `N`.

    Returns:
        The `E` parts, and the rows that are left.
    """
    import torch

    sizes = sizes.tolist()
    rest = rows.shape[0] - sum(sizes)
    for size in (*sizes, rest):
        torch._check(size >= 0)
        torch._check(size <= rows.shape[0])
    return torch.split(rows, [*sizes, rest])


def write_onnx(
    model: keras.Model,
    function: Callable[..., Mapping[str, Any]],
    inputs: Mapping[str, tuple[tuple[int, ...], str]],
    path: str | os.PathLike,
) -> None:
    """Writes a function as an ONNX file. Only after `check_onnx`.

    Args:
        model: Whose weights the function uses.
        function: Takes the inputs by name; returns tensors by name.
        inputs: Shape and dtype of each.
        path: Of the file. Weights of more than 2 GB go to one beside it.

    Raises:
        ValueError: if there is no ONNX for something that the function does.
    """
    import torch

    names, outputs = tuple(inputs), []

    class Program(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors):
            found = function(**dict(zip(names, tensors, strict=True)))
            outputs[:] = found
            return tuple(found.values())

    examples = tuple(
        torch.ones(shape, dtype=getattr(torch, dtype), device="cpu")
        for shape, dtype in inputs.values()
    )
    try:
        with torch.no_grad():
            program = torch.export.export(
                Program().eval(), examples, strict=False
            )
            _without_idle_squeezes(program.graph)
            program = torch.onnx.export(
                program,
                input_names=names,
                output_names=outputs,
                dynamo=True,
                verbose=False,
            )
    except RuntimeError as error:
        raise ValueError(
            "the model must be made of what torch can write as ONNX; a router "
            f"of it may not be: {error.__cause__ or error}"
        ) from error
    program.save(os.fspath(path))


def _without_idle_squeezes(graph: Any) -> None:
    """Keras' `take` squeezes an axis whatever its size, which torch lets pass
    and ONNX does not."""
    import torch

    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.squeeze.dim:
            continue
        source = node.args[0]
        if node.meta["val"].shape == source.meta["val"].shape:
            node.replace_all_uses_with(source)
            graph.erase_node(node)

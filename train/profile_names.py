"""Names for the operations of a trace: what they do, and for which layer."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Operation(NamedTuple):
    """A row of a profile."""

    group: str  # one of `GROUPS`
    name: str  # the backend's, without numbers
    where: str  # the layer, and what Keras or the backend called it there


# A fusion of several is the first of them. Names of XLA, TensorFlow and torch,
# in lower case and without what `_word` takes off.
_WORDS = {
    "runtime": r"autograd.*|\w*backward\d+|customgradientfunction(backward)?",
    "product": r"dot|.*matmul.*|.*einsum|(b|add|baddb)?mm|linear|conv(?!ert).*",
    "sort": r".*sort|top_?k.*",
    "gather": r".*(gather|scatter|index|embedding|stitch|dynamic|take_).*",
    "random": r".*(random|rng).*|uniform|normal|bernoulli",
    "reduction": r".*(reduce|softmax|sumexp|cumsum|cumulative).*"
    r"|(arg)?(sum|mean|max|min|prod|amax|amin|all|any)",
    "control": r"while|conditional|call|if|.*(partitioned.*call|while|case)",
    "custom-call": r"custom-call.*",
}
# What only moves numbers, or gives them another shape.
_MOVES = (
    r".*(copy|concat|reshape|slice|zeros|ones|transpose|view).*|bitcast.*"
    r"|(as_)?strided|empty.*|expand.*|broadcast.*|repeat|tile|resize|(un)?pack"
    r"|pad|iota|arange|range|reverse|to|clone|cat|(un)?stack|(un)?squeeze"
    r"|permute|t|fill|zero|full|detach|alias|identity|split|shape|const|_?arg"
    r"|_?retval|contiguous|lift_fresh|result_type|item|unbind|chunk|narrow"
    r"|resolve_.*|_local_scalar_dense|readvariableop|noop|flatten|expanddims"
)
GROUPS = (*_WORDS, "elementwise", "copy")
# They cost nothing, and say nothing of a fusion.
_SILENT = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


def group_of(names: Iterable[str]) -> str:
    """What operations that run as one do.

    Args:
        names: Of XLA, TensorFlow or torch: `dot`, `_MklMatMul`, `aten::mm`.

    Returns:
        One of `GROUPS`: for several, the first that one of them is in.
    """
    words = [_word(name) for name in names]
    for group, pattern in _WORDS.items():
        if any(re.fullmatch(pattern, word) for word in words):
            return group
    moves = all(re.fullmatch(_MOVES, word) for word in words)
    return "copy" if moves else "elementwise"


def _word(name):
    name = name.lower().removeprefix("aten::").removeprefix("_mkl")
    return re.sub(r"(?<!-)v\d$", "", name.rstrip("_"))


def of_torch(name: str, inside: list[str]) -> Operation:
    """Names an event of torch.

    Args:
        name: Its own.
        inside: Those of the events it is in, from the innermost.

    Returns:
        Its `where` is the outermost of these, or the node of the backward pass.
    """
    engine = "autograd::engine::evaluate_function: "
    nodes = [n.removeprefix(engine) for n in inside if n.startswith(engine)]
    if nodes:
        where = re.sub(r"Backward\d*$", "", nodes[-1]) + ", backward"
    else:
        where = inside[-1].removeprefix("aten::") if inside else ""
    if name.startswith(engine):
        name, where = engine.rpartition("::")[0], ""
    return Operation(group_of([name]), name, where)


def of_tensorflow(name: str) -> Operation | None:
    """Names an event of TensorFlow; `None` if it is no operation."""
    match = re.fullmatch(r"([^\s:]+):([A-Za-z_]\w*)", name)
    if not match:
        return None
    path, kind = match.groups()
    inner = path.removeprefix("gradient_tape/")
    *scopes, leaf = inner.split("/")
    scopes = [re.sub(r"_\d+$", "", scope) for scope in scopes]
    where = _where([*scopes, leaf], backward=inner != path)
    return Operation(group_of([kind]), kind, where)


def of_xla(text: str) -> dict[str, Operation]:
    """Names the instructions of a compiled program.

    Args:
        text: The program, as the compiler prints it.

    Returns:
        By the instruction's name, which a trace has.
    """
    computations, inside = {}, None
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if header:
            inside = computations.setdefault(header[1], {})
        match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)", line)
        if match and inside is not None:
            inside[match[1]] = _instruction(match[2])
    return {
        name: _of_instruction(name, instruction, computations)
        for instructions in computations.values()
        for name, instruction in instructions.items()
    }


def unknown_of_xla(instruction: str) -> Operation:
    """Names an instruction of a program that is not known, by its words."""
    name = _unnumbered(instruction)
    words = [w for w in name.split("_") if w not in ("fusion", "wrapped")]
    return Operation(group_of(words), name, "")


def _instruction(text):
    """(opcode, what it calls or `None`, its place in the source)."""
    # After its type, which has no word before a bracket.
    opcode = re.search(r"(?:^| )([a-z][\w-]*)\(", text)
    opcode = opcode[1] if opcode else ""
    calls = re.search(r"\bcalls=%?([\w.-]+)", text)
    target = re.search(r'custom_call_target="([^"]*)"', text)
    place = re.search(r'op_name="([^"]*)"', text)
    if target:
        opcode = f"{opcode} {target[1]}"
    return opcode, calls and calls[1], place[1] if place else ""


def _of_instruction(name, instruction, computations):
    opcode, calls, place = instruction
    backward = "transpose(" in place
    # jit(step)/transpose(jvp(experts))/mul: the program, the layer, the rest.
    scopes = re.sub(r"\b\w+\(|\)", "", place).split("/")[1:]
    words = _opcodes(calls, computations) if calls else [opcode]
    name = opcode if opcode.startswith("custom-call") else _unnumbered(name)
    return Operation(group_of(words), name, _where(scopes, backward))


def _opcodes(computation, computations):
    for opcode, calls, _ in computations.get(computation, {}).values():
        if calls:
            yield from _opcodes(calls, computations)
        elif opcode not in _SILENT:
            yield opcode


def _unnumbered(name):
    return re.sub(r"(\.\d+|\.clone|\.remat)+$", "", name)


def _where(scopes, backward):
    """The last of its scopes, which say most, without those of loops."""
    loops = {"", "while", "body", "cond", "closed_call"}
    path = "/".join([scope for scope in scopes if scope not in loops][-3:])
    return f"{path}, backward" if backward else path

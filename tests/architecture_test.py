"""Who may import whom, and how long a file may be: read from the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_switch"
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = FILES + sorted((ROOT / "train").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BACKENDS = {"jax", "jaxlib", "torch", "tensorflow", "flax", "optax"}
# Level of each part: an import may only go to a lower one (or stay inside).
LEVELS = {
    "ops": 0,
    "files": 0,
    "versions": 0,
    "losses": 0,
    "layers": 1,
    "sharding": 1,
    "models": 2,
    # Parts of level 3 never import each other.
    "data": 3,
    "distillation": 3,
    "optimizers": 3,
    "schedules": 3,
    "analysis": 3,
    "plots": 3,
    "callbacks": 3,
    "communication": 3,
    "convert": 3,
    "parameters": 3,
    "resume": 3,
    "tasks": 4,
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def ids(files):
    return {"argvalues": files, "ids": [name_of(f) for f in files]}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    """[(module, at top level)] with `from a import b` read as `a.b`."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside.update(ast.walk(node))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, node not in inside) for name in names]
    return found


def part_of(module):
    """`keras_switch.layers.routing` -> `layers`."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "keras_switch" and pieces[1:] else None


def mentions_backend_call(tree):
    """Whether the file asks Keras which backend runs."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "backend"
        for node in ast.walk(tree)
    )


def part(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def test_there_is_something_to_check():
    assert len(FILES) > 10
    assert {part(f) for f in FILES} - {"__init__"} <= set(LEVELS)


@pytest.mark.parametrize("path", **ids(FILES))
def test_imports_go_down(path):
    here = part(path)
    if here == "__init__":
        return
    for module, _ in imports(parse(path)):
        there = part_of(module)
        if there is None or there == here:
            continue
        assert there in LEVELS, f"{module}: no import of the package itself"
        allowed = LEVELS[there] < LEVELS[here]
        assert allowed, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", **ids(SOURCES))
def test_backends_are_named_only_under_ops(path):
    if PACKAGE / "ops" in path.parents:
        return
    tree = parse(path)
    named = {m.split(".")[0] for m, _ in imports(tree)} & BACKENDS
    if path.is_relative_to(PACKAGE / "data"):
        named -= {"tensorflow"}
    if path.is_relative_to(PACKAGE):
        assert not named
        assert not mentions_backend_call(tree)


@pytest.mark.parametrize("path", **ids(SOURCES))
def test_no_backend_is_imported_on_import(path):
    """The library works on JAX and torch where TensorFlow is not there."""
    for module, at_top in imports(parse(path)):
        assert not (at_top and module.split(".")[0] in BACKENDS), module


@pytest.mark.parametrize("path", **ids(SOURCES + TESTS))
def test_imports_of_other_packages(path):
    home = path.relative_to(ROOT).parts
    for module, _ in imports(parse(path)):
        top = module.split(".")[0]
        assert not module.startswith("keras_hub.src"), module
        assert not module.startswith("keras.src"), module
        if home[0] == "tests":
            continue
        if top == "keras_hub" and home[0] == "keras_switch":
            assert home[1] in ("models", "versions.py"), module
        if top == "matplotlib":
            assert home[-1].endswith("plots.py"), module
        if home[0] == "keras_switch":
            assert top not in ("train", "keras_switch_train", "tests"), module


# Those that are imported by another name.
_PACKAGES = {"absl": "absl-py", "PIL": "pillow", "sklearn": "scikit-learn"}


@pytest.mark.parametrize("path", **ids(SOURCES))
def test_only_declared_packages(path):
    """Only what pyproject.toml installs, at top level or in an extra."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ours = {"keras_switch", "keras_switch_train", "keras_hub"}
    for module, _ in imports(parse(path)):
        top = module.split(".")[0]
        known = top in sys.stdlib_module_names or top in ours
        package = _PACKAGES.get(top, top)
        assert known or package.replace("_", "-") in declared, module


@pytest.mark.parametrize("path", **ids(SOURCES + TESTS))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body
        if ast.get_docstring(node) is not None:
            body = body[1:]
        if body:
            length = body[-1].end_lineno - body[0].lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", **ids(SOURCES + TESTS))
def test_no_notes_to_self(path):
    text = path.read_text(encoding="utf-8")
    for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X"):
        assert word not in text.replace(f'"{word}"', "")


@pytest.mark.parametrize("path", **ids(FILES))
def test_public_functions_are_typed_and_described(path):
    for node in parse(path).body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if not public or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            arguments = node.args.args + node.args.kwonlyargs
            for argument in arguments:
                assert argument.annotation, f"{node.name}({argument.arg})"
            assert node.returns, f"{node.name} has no return type"


def test_every_module_has_its_test():
    """Mirrored path for path; a long one may be split by a suffix."""
    folder = ROOT / "tests"
    for path in FILES:
        relative = path.relative_to(PACKAGE)
        if relative.name == "__init__.py":
            continue
        found = list(
            (folder / relative.parent).glob(f"{relative.stem}*_test.py")
        )
        excused = name_of(path) in EXCUSED
        assert bool(found) != excused, name_of(path)


# Tested through the modules that use them.
EXCUSED = set()

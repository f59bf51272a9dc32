"""Nothing in the product runs code from a file, starts a shell or unpacks an archive by its members' own paths."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("catalog", "pipeline", "model", "dags", "lumid")
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "subprocess"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"extractall", "system", "popen", "read_pickle"}
NAMES_AN_EXCEPTION = {("model/convert.py", "pickle")}
"""``pickle.UnpicklingError`` is what torch raises when it refuses; the module is used for nothing else, see below."""


def forbidden(tree: ast.AST) -> set[str]:
    """What a module does that none should, in words."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {(node.module or "").split(".")[0]} & MODULES
        elif isinstance(node, ast.Call):
            found |= _call(node)
    return found


def _call(node: ast.Call) -> set[str]:
    given = {word.arg: word.value for word in node.keywords}
    name = ast.unparse(node.func)
    found = {f"{name}()"} if name in BUILTINS or name.rpartition(".")[2] in METHODS else set()
    if "shell" in given and not _is(given["shell"], False):
        found.add("shell")
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        found.add("allow_pickle")
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        found.add("torch.load")
    if name in ("np.load", "numpy.load") and not _is(given.get("allow_pickle"), False):
        found.add("np.load")
    return found


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def modules() -> list[str]:
    """The product's modules; ``lumid/`` links to the other rooms, so that it counts by itself only."""
    paths = [path for room in ROOMS for path in (ROOT / room).glob("*.py" if room == "lumid" else "**/*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@pytest.mark.parametrize("path", modules())
def test_a_module_does_nothing_of_the_kind(path: str) -> None:
    found = forbidden(ast.parse((ROOT / path).read_text("utf-8")))
    assert {what for what in found if (path, what) not in NAMES_AN_EXCEPTION} == set()


def test_pickle_is_named_for_its_error_only() -> None:
    for path, name in NAMES_AN_EXCEPTION:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert {what for what in used if what.startswith(f"{name}.")} == {"pickle.UnpicklingError"}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import yaml",
        "eval('1')",
        "exec(text)",
        "archive.extractall(path)",
        "os.system('ls')",
        "run('ls', shell=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_the_search_finds(text: str) -> None:
    assert forbidden(ast.parse(text))


@pytest.mark.parametrize("text", ["model.eval()", "re.compile('a')", "torch.load(path, weights_only=True)"])
def test_the_search_lets_pass(text: str) -> None:
    assert not forbidden(ast.parse(text))

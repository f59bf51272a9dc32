"""Imports go down only: dags → pipeline, model → catalog; and the core needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "catalog": {"catalog"},
    "pipeline": {"catalog", "pipeline"},
    "model": {"catalog", "model"},
    "dags": {"catalog", "pipeline", "model", "dags"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room they lead to"
            names = [node.module or ""]
            if node.module == "lumid":
                names = [f"lumid.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("lumid.") and name.count(".") >= 1}
    return rooms & set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_down_only(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ is empty"
    for path in files:
        assert imported_rooms(path) <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports upward"


def test_nothing_of_the_core_imports_torch() -> None:
    """Everything but model/ must import where torch is not installed."""
    code = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "safetensors", "tensorboard"}:
            raise ImportError(f"{name} is not part of the core install")
sys.meta_path.insert(0, Block())
for room in ("catalog", "pipeline", "dags"):
    package = importlib.import_module(f"lumid.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"lumid.{room}."):
        importlib.import_module(module.name)
print("clean")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "clean", done.stderr

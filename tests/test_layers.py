"""Imports run one way, engine -> models -> kernels, and nothing slow is imported before it is needed."""

import ast
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from small_kernels import add_from_left

import engine
import kernels
from engine import kernel_cache
from engine.threads import LOOP_KERNELS

ROOT = Path(kernels.__file__).parents[1]
LAYERS = ("kernels", "models", "engine")
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
LOWERINGS = {"lower_generic", "lower_machine", "lower_native", "numba_lowering"}  # what only compiling needs
COMPILED_ONLY_BY = ROOT / "kernels" / "compiler.py"


def imported(path: Path, whole: bool = True) -> Iterator[str]:
    """The full names of the modules that a file imports; without `whole`, only those that importing it imports."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not whole and id(node) in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_layer_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(LAYERS) and len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = set(LAYERS[layer + 1 :]) | {"tests", "bench"}
    names = set(imported(path))
    assert not {name for name in names if name.split(".")[0] in above}
    if path.name != "numba_lowering.py":
        assert not {name for name in names if name.split(".")[0] == "numba"}
    if layer == 0 and path.stem not in LOWERINGS:
        outside = {name for name in names if name.startswith("kernels.") and name.split(".")[1] in LOWERINGS}
        assert not outside or (path == COMPILED_ONLY_BY and not outside & set(imported(path, whole=False)))


def test_the_package_kernels_imports_nothing() -> None:
    assert not list(imported(ROOT / "kernels" / "__init__.py"))


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(path): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


# ---- in new processes ----


def modules_after(code: str, *arguments: str) -> tuple[set[str], str]:
    """What a new process has imported after `code`, and what it wrote; it may leave by SystemExit."""
    script = f"""
import json, sys
try:
{chr(10).join("    " + line for line in code.splitlines())}
except SystemExit:
    pass
print()
print(json.dumps(sorted(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text, _, names = done.stdout.rstrip().rpartition("\n")
    return set(json.loads(names)), text + done.stderr


COMMANDS = [
    module.name
    for module in pkgutil.iter_modules(engine.__path__)
    if "__main__" in (ROOT / "engine" / f"{module.name}.py").read_text()
]
HEAVY = {"numba", "llvmlite"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_before_anything_heavy(name: str) -> None:
    code = f"sys.argv[1:] = ['--help']\nimport runpy\nrunpy.run_module('engine.{name}', run_name='__main__')"
    names, text = modules_after(code)
    assert "--threads" in text and "--json" in text and not names & HEAVY


def test_commands_are_found() -> None:
    assert {"generate", "inspect", "warmup"} <= set(COMMANDS)


def test_inspect_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny.write(path)
    code = "import engine.inspect\nengine.inspect.main(sys.argv[1:])"
    names, text = modules_after(code, str(path))
    assert "tensors" in text and not names & (HEAVY | {"tokenizers", "jinja2"})


def test_errors_about_files_come_before_numba(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(3))
    code = "import engine.generate\nengine.generate.main(['--model', sys.argv[1], 'x'])"
    names, text = modules_after(code, str(broken))
    assert "broken.gguf" in text and "Traceback" not in text and "numba" not in names


def test_no_import_of_ours_imports_numba() -> None:
    ours = [f"engine.{module.name}" for module in pkgutil.iter_modules(engine.__path__)]
    names, _ = modules_after("\n".join(f"import {name}" for name in ours))
    assert names.issuperset(ours) and "numba" not in names


WARM = """
from small_kernels import add_from_left
import numpy as np
from engine import kernel_cache
from engine.threads import LOOP_KERNELS, Team
from kernels.run import run_block
from models.steps import Steps
kernel_cache.use()
seconds = kernel_cache.prepare([*LOOP_KERNELS, add_from_left])
x, out = np.arange(5), np.zeros(5, np.int64)
steps = Steps()
steps.add(add_from_left, out=out, x=x, count=5)
team = Team(2, run_block(1))
print(team.run(steps.table()), out.tolist(), seconds)
"""


def test_a_warm_run_does_not_import_numba() -> None:
    store = kernel_cache.use()
    for kernel in (*LOOP_KERNELS, add_from_left):
        if store.get(kernel.name) is None:
            modules_after(WARM)
    names, text = modules_after(WARM)
    assert text.strip() == "True [12, 1, 5, 9, 13] 0.0"
    assert "llvmlite" in names and not {name for name in names if name.split(".")[0] == "numba"}

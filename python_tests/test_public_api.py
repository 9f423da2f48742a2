"""rlal_fast/__init__.py: the public names, each found where it is said to be."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rlal_fast as rf

CONTRACT = {
    "PrunableGraph",
    "Subnet",
    "Evaluator",
    "ImageData",
    "JointTrainer",
    "JointConfig",
    "InputError",
    "count_macs",
    "compact",
    "save",
    "load",
    "build_info",
    "models",
    "kernels",
}
MODULES = {"data", "kernels", "models"}  # names that are meant to be modules


def in_fresh_python(code: str) -> str:
    call = [sys.executable, "-c", code]
    return subprocess.run(call, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("name", rf.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(rf, name)
    assert isinstance(value, ModuleType) == (name in MODULES)
    if name != "__version__" and not isinstance(value, ModuleType):
        assert callable(value)
        assert value.__name__ == name
    assert getattr(rf, name) is value


def test_the_names_of_the_contract_are_public() -> None:
    assert set(rf.__all__) >= CONTRACT
    assert len(set(rf.__all__)) == len(rf.__all__)
    assert dir(rf) == sorted(rf.__all__)
    assert callable(rf.models.create)
    assert callable(rf.kernels.masked_conv2d)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'rlal_fast' has no attribute 'prune'"):
        _ = rf.prune
    with pytest.raises(ImportError, match="prune"):
        from rlal_fast import prune  # noqa: F401


def test_the_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(rf.__file__).read_text())
    imports = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module or "").startswith("rlal_fast")
    }
    assert set(imports) == set(rf.__all__)
    for name, module in imports.items():
        found = getattr(rf, name)
        home = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", "")
        if module != "rlal_fast" and home:
            assert home.startswith(str(module))


def test_no_submodule_hides_a_public_function() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(rf.__path__)}
    assert submodules & set(rf.__all__) == MODULES
    # importing a submodule sets it as an attribute of the package: nothing may change by that
    code = (
        "import importlib, json, rlal_fast as rf\n"
        f"for name in {sorted(submodules - {'__main__'})}:\n"
        "    importlib.import_module('rlal_fast.' + name)\n"
        "print(json.dumps({name: type(getattr(rf, name)).__name__ for name in rf.__all__}))"
    )
    after = json.loads(in_fresh_python(code))
    assert after == {name: type(getattr(rf, name)).__name__ for name in rf.__all__}


def test_importing_costs_nothing() -> None:
    heavy = ["torch", "numpy", "torchvision", "matplotlib", "sklearn", "tensorboard", "_rlal_fast"]
    code = (
        "import sys, rlal_fast\n"
        "assert rlal_fast.__version__ and dir(rlal_fast) and rlal_fast.InputError\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert in_fresh_python(code).strip() == "[]"


def test_bad_input_is_a_value_error_of_its_own() -> None:
    assert issubclass(rf.InputError, ValueError)

"""The package as a whole: one version, declared dependencies, one-way imports, a true README."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _rlal_fast
import pytest

import rlal_fast

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rlal_fast"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Who may import whom inside rlal_fast, by first component; errors and _version are free to all.
MAY_IMPORT: dict[str, set[str]] = {
    # these know torch alone
    "models": set(),
    "data": set(),
    "aten": set(),
    "tracing": {"aten"},
    "importance": set(),
    "replay": set(),
    "mlp": set(),
    "seeds": set(),
    "latency": set(),
    "device": set(),
    "training_step": set(),
    # files, pictures, options
    "cli_options": set(),
    "run_folder": set(),
    "plots": set(),
    "report": {"plots", "run_folder"},
    "packed": set(),
    "checkpoint": {"packed", "run_folder"},
    "metrics": {"run_folder"},
    "console": {"report"},
    "comparison_plots": {"plots"},
    # the agent's side: no network to prune, no images
    "agents": {"mlp", "replay"},
    "environment_model": {"mlp", "replay"},
    # the network's side: no agent
    "kernels": {"tracing"},
    "subnet": {"importance"},
    "flops": {"kernels", "subnet"},
    "graph": {"flops", "importance", "subnet", "tracing"},
    "alignment": {"graph", "subnet"},
    "compaction": {"graph", "run_folder", "subnet", "tracing"},
    "evaluator": {"graph", "kernels", "subnet", "tracing"},
    "weights": {"data", "seeds"},
    "device_training": {"data", "device", "seeds", "training_step", "weights"},
    "recalibration": {"data", "seeds"},
    # between the two; the evaluator is whatever has its methods
    "walk": {"flops", "graph", "replay"},
    "screening": {"agents", "replay", "walk"},
    "assistant": {"mlp", "replay", "walk"},
    "env": {"agents", "flops", "graph", "replay", "screening", "subnet", "walk"},
    "structures": {"env", "graph", "subnet"},
    "racing": {"subnet"},
    # the loop
    "joint_config": {
        "agents",
        "assistant",
        "device",
        "environment_model",
        "kernels",
        "screening",
        "transfer",
        "walk",
        "weights",
    },
    # past runs
    "history": {"flops", "packed"},
    "transfer": {"agents", "flops", "history", "replay", "walk"},
    "head_start": {
        "agents",
        "assistant",
        "flops",
        "history",
        "joint_config",
        "replay",
        "screening",
        "seeds",
        "transfer",
    },
    # these know the trainer by its type alone
    "joint_state": set(),
    "exploration": {"agents", "env", "joint_state", "replay", "screening", "seeds", "walk"},
    "history_record": {"history", "joint_state", "walk"},
    "joint_report": {"compaction", "device", "latency", "report", "subnet"},
    "finetune": {"compaction", "data", "device_training", "metrics", "weights"},
}
FREE = {"errors", "_version"}
JOINS_ALL_BUT_MAIN = {"__init__", "trainer", "comparison", "commands"}

# Where an import's name is not the name of what pip installs.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# Comes with a dependency that promises it: jinja2 is built on markupsafe.
IMPLIED = {"markupsafe": "jinja2"}


def component(path: Path) -> str:
    """The first component of a module's name below rlal_fast: `agents` for agents/sac.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def running_imports(
    node: ast.AST, *, at_import_time: bool = False
) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below a node that can run, so none under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_type_checking(child):
            continue
        elif not (at_import_time and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from running_imports(child, at_import_time=at_import_time)


def imported_modules(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Dotted names that a file imports; `from rlal_fast import x` counts as rlal_fast.x."""
    names: set[str] = set()
    for node in running_imports(ast.parse(path.read_text()), at_import_time=at_import_time):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.level:
            names.add("." * node.level + (node.module or ""))
        elif node.module == "rlal_fast":
            names |= {f"rlal_fast.{alias.name}" for alias in node.names}
        else:
            names.add(node.module or "")
    return names


def components_of(path: Path) -> set[str]:
    names = imported_modules(path)
    return {name.split(".")[1] for name in names if name.startswith("rlal_fast.")}


def third_party(path: Path, *, at_import_time: bool = False) -> set[str]:
    tops = {name.split(".")[0] for name in imported_modules(path, at_import_time=at_import_time)}
    return tops - set(sys.stdlib_module_names) - {"rlal_fast", "_rlal_fast"}


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower() for line in requirements}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


# --- version and metadata ---


def test_package_and_extension_have_the_version_of_one_file(pyproject: dict[str, Any]) -> None:
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "rlal_fast._version.__version__"
    }
    source = (PACKAGE / "_version.py").read_text()
    (assignment,) = re.findall(r'^__version__ = "(.+)"$', source, re.M)
    assert rlal_fast.__version__ == assignment
    assert _rlal_fast.version() == assignment


def test_changelog_speaks_of_this_version() -> None:
    headings = re.findall(r"^## \[?([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == rlal_fast.__version__


def test_extension_is_not_inside_the_package() -> None:
    # The checkout's rlal_fast/ would hide an extension that lies in the installed rlal_fast/.
    assert "." not in _rlal_fast.__name__
    assert not list(PACKAGE.rglob("*.so"))


def test_every_import_is_declared(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    declared = distributions(project["dependencies"])
    with_demo = declared | distributions(project["optional-dependencies"]["demo"])
    for path in SOURCES:
        for name in third_party(path):
            wanted = IMPLIED.get(name, DISTRIBUTIONS.get(name, name))
            assert wanted in with_demo, f"{path.name} imports {name}, which pyproject does not name"
        for name in third_party(path, at_import_time=True):
            wanted = IMPLIED.get(name, DISTRIBUTIONS.get(name, name))
            assert wanted in declared, f"{path.name} cannot be imported without an extra: {name}"


def test_test_extra_contains_the_demo(pyproject: dict[str, Any]) -> None:
    assert "rlal_fast[demo]" in pyproject["project"]["optional-dependencies"]["test"]


def test_every_data_file_is_installed(pyproject: dict[str, Any]) -> None:
    patterns = pyproject["tool"]["setuptools"]["package-data"]["rlal_fast"]
    installed = {file for pattern in patterns for file in PACKAGE.glob(pattern)}
    present = {
        file
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and not file.name.startswith(".")
    }
    assert PACKAGE / "py.typed" in installed
    assert present == installed


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_tests_are_no_package() -> None:
    assert not (ROOT / "python_tests" / "__init__.py").exists()


# --- imports go one way ---


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert not [name for name in imported_modules(path) if name.startswith(".")], "absolute imports"
    me, used = component(path), components_of(path)
    if me == "__main__":
        return
    assert "__main__" not in used
    if me in JOINS_ALL_BUT_MAIN:
        return
    if me in FREE:
        assert not used
        return
    assert me in MAY_IMPORT, f"say in MAY_IMPORT what {me} may import"
    too_much = used - MAY_IMPORT[me] - FREE - {me}
    assert not too_much, f"{me} must not know {sorted(too_much)}"


def test_the_table_of_imports_has_no_cycle() -> None:
    settled: set[str] = set()
    waiting = dict(MAY_IMPORT)
    while ready := {name for name, used in waiting.items() if used <= settled}:
        settled |= ready
        waiting = {name: used for name, used in waiting.items() if name not in ready}
    assert not waiting


def test_rules_see_imports_where_they_hide(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from rlal_fast.graph import PrunableGraph\n"
        "try:\n    import sklearn.datasets\nexcept ImportError:\n    pass\n"
        "def f():\n    from rlal_fast import env\n    import rlal_fast.data.splits, PIL\n"
    )
    assert components_of(path) == {"env", "data"}
    assert third_party(path) == {"sklearn", "PIL"}
    assert third_party(path, at_import_time=True) == {"sklearn"}


@pytest.mark.parametrize("module", ["rlal_fast", "rlal_fast.run_folder", "rlal_fast.__main__"])
def test_light_modules_leave_torch_alone(module: str) -> None:
    # A run's folder and its config.yaml exist before the seconds that importing torch takes.
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_csrc_knows_python_in_its_bindings_and_torch_nowhere() -> None:
    includes = {
        path.relative_to(ROOT / "csrc").as_posix(): re.findall(
            r"^\s*#\s*include\s*[<\"]([^>\"]+)", path.read_text(), re.M
        )
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp", ".inl", ".cu", ".cuh")
    }
    python = {file for file, names in includes.items() for name in names if knows(name, "pybind11")}
    python |= {file for file, names in includes.items() if "Python.h" in names}
    python |= {file for file, names in includes.items() if "bindings.h" in names}
    assert python == {"bindings.h", "bindings.cpp", "bindings_cuda.cpp", "bindings_network.cpp"}
    torch = ("torch", "ATen", "c10")
    assert not [f for f, names in includes.items() for name in names if knows(name, *torch)]


def knows(include: str, *libraries: str) -> bool:
    return include.split("/")[0] in libraries


# --- the README is true ---


def test_ci_runs_the_lines_of_the_readme(readme: str) -> None:
    runs = re.findall(r'^readme "(.+)"$', (ROOT / ".ci" / "run").read_text(), re.M)
    test, demo = "pip install '.[test]' && pytest", "pip install '.[demo]' && rlal run"
    assert runs == [test, demo, demo, test]  # each in both orders, twice
    lines = [line.strip() for line in readme.splitlines()]
    assert set(runs) <= set(lines)


def test_readme_uses_public_names(readme: str) -> None:
    names = set(re.findall(r"\brf\.(\w+)", readme))
    assert "JointTrainer" in names
    assert names <= set(rlal_fast.__all__)


def test_readme_examples_run(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, convolution = re.findall(r"```python\n(.*?)```", readme, re.S)
    monkeypatch.chdir(tmp_path)  # the first example saves a network
    names: dict[str, Any] = {}
    exec(compile(convolution, "README.md", "exec"), names)
    assert names["out"].shape == (8, 3, 32, 32)
    exec(compile(whole, "README.md", "exec"), names)
    assert "27 prunable groups" in capsys.readouterr().out
    outputs = [names[model].eval()(names["images"]) for model in ("small", "again")]
    assert outputs[0].equal(outputs[1])


def test_readme_uses_options_that_exist(readme: str) -> None:
    section = readme.split("## On the command line")[1].split("\n## ")[0]
    commands = set(re.findall(r"^ +rlal (\w+)", section, re.M))
    assert commands == {"run", "flops", "evaluate", "compare", "history", "info"}
    helps = {name: subprocess_help(name) for name in commands}
    for line in re.findall(r"^ +rlal (.+)$", section, re.M):
        for option in re.findall(r"--[a-z-]+", line):
            assert option in helps[line.split()[0]]
    for option in set(re.findall(r"`(--[a-z-]+)", section)):
        assert option in helps["run"]


def subprocess_help(command: str) -> str:
    call = [sys.executable, "-m", "rlal_fast", command, "--help"]
    return subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_readme_links_lead_somewhere(readme: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

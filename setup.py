"""Builds the extension `_rlal_fast` with CMake; everything else is said in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCE = Path(__file__).resolve().parent
CUDA_SETTINGS = ("RLAL_FAST_CUDA", "RLAL_FAST_CUDA_ARCHITECTURES")  # see CMakeLists.txt


class FreshBuild(build):
    """Builds in a new temporary folder.

    A `build/` folder left in the checkout by an earlier pip would carry removed modules into the
    next wheel, and a CMake cache in it would point at a build environment that pip has deleted.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self._folder = tempfile.TemporaryDirectory(prefix="rlal_fast-build-")
        self.build_base = self._folder.name


class CMakeBuild(build_ext):
    """Lets CMake build the extension; setuptools only learns where the result lies.

    An editable install carries the extension in its wheel, not in the checkout: there it would
    shadow the one that a later ordinary install, perhaps of another environment, brings.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:
            self.inplace = False

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            wheel = self.get_finalized_command("install").install_lib
            for extension in self.get_outputs():
                self.copy_file(extension, wheel)

    def build_extension(self, ext: Extension) -> None:
        require_tools()
        import pybind11  # here: metadata and sdist need no C++ tools

        folder = Path(self.build_temp).resolve() / "cmake"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        configure = [
            "cmake",
            *("-S", str(SOURCE), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DRLAL_FAST_VERSION={self.distribution.get_version()}",
            *(f"-D{name}={os.environ[name]}" for name in CUDA_SETTINGS if name in os.environ),
        ]
        run(configure, "CMake could not configure the build")
        run(
            ["cmake", "--build", str(folder)],
            "the sources do not compile with this compiler (RLAL_FAST_CUDA=0 leaves out CUDA)",
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / target.name, target)


def require_tools() -> None:
    """Raises CompileError, in one line that says what to install, where a build tool is missing."""
    named = os.environ.get("CXX")
    compilers = shlex.split(named)[:1] if named else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise CompileError(
            f"rlal_fast needs a C++17 compiler and found none ({', '.join(compilers)}): install "
            "one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: "
            "xcode-select --install) or set CXX to yours"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise CompileError(
            f"rlal_fast needs the headers of Python {sysconfig.get_python_version()} and found no "
            "Python.h: install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install "
            "python3-devel)"
        )
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            raise CompileError(
                f"rlal_fast is built with {tool}, which was not found: build without "
                f"--no-build-isolation, or pip install {tool}"
            )


def run(command: list[str], failure: str) -> None:
    """Runs a build step; CompileError(failure) where it fails, below the step's own messages."""
    if subprocess.run(command, check=False).returncode:
        raise CompileError(f"{failure}: the reason is in the messages above")


setup(
    ext_modules=[Extension("_rlal_fast", sources=[])],
    cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
)

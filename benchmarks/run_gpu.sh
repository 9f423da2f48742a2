#!/usr/bin/env bash
# Builds the extension for the GPU that is here, tests it there, and measures it. Eight minutes.
#
#   benchmarks/run_gpu.sh [options of bench_gpu.py]      e.g. --data-dir DIR
#   benchmarks/run_gpu.sh --emulated                     the same on the CPU, to try this program out
#
# Needs PyTorch, nvcc, CMake, ninja, pybind11 and what rlal_fast imports; nothing is installed.
# Variables: PYTHON; SECONDS_IN_ALL (480); BUILD, a folder to keep the build in; TESTS, files;
# RLAL_FAST_COMMIT, for a copy of the sources without their history.
# Exit status: 0; 1: a test or a check failed, or something disagreed; 2: no GPU, or no tool.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
all=${SECONDS_IN_ALL:-480}
tests=${TESTS:-python_tests/test_evaluator_cuda.py python_tests/test_kernels_cuda.py \
python_tests/test_trainer_gpu.py python_tests/test_training_step.py \
python_tests/test_device_training.py}
emulated=
case " $* " in *" --emulated "*) emulated=1 ;; esac
failures=()

stop() {
    echo "run_gpu: $*" >&2
    exit 2
}
step() { printf '\n=== %4d s: %s\n' "$SECONDS" "$*"; }
left() { echo $((all - SECONDS)); }
# limited SECONDS COMMAND...: stops what takes longer, and never takes more than is left
limited() {
    local seconds=$1
    shift
    if [ "$seconds" -gt "$(left)" ]; then seconds=$(left); fi
    if [ "$seconds" -lt 1 ]; then seconds=1; fi
    timeout --kill-after=10 "$seconds" "$@"
}
# kept NAME STATUS: a failure is said again at the end
kept() {
    local why="status $2"
    if [ "$2" = 0 ]; then return; fi
    if [ "$2" = 124 ] || [ "$2" = 137 ]; then why="not finished in time"; fi
    failures+=("$1: $why")
}

step "what is here"
command -v "$python" >/dev/null || stop "no $python: set PYTHON"
command -v cmake >/dev/null || stop "no cmake on the PATH"
command -v ninja >/dev/null || stop "no ninja on the PATH"
missing=$("$python" -c '
from importlib.util import find_spec
needed = "torch", "numpy", "pybind11", "safetensors", "yaml"
print(*(name for name in needed if find_spec(name) is None))') || stop "$python does not start"
[ -z "$missing" ] || stop "no module $missing for $python"
if [ -n "$emulated" ]; then
    cuda=(-DRLAL_FAST_CUDA=emulated)
else
    architecture=$("$python" -c '
import torch
if not torch.cuda.is_available():
    raise SystemExit(1)
print("{}{}".format(*torch.cuda.get_device_capability()))') || stop "no GPU that torch can use"
    nvcc=$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" command -v nvcc) || stop "no nvcc"
    export CUDACXX=${CUDACXX:-$nvcc}
    cuda=(-DRLAL_FAST_CUDA=1 "-DRLAL_FAST_CUDA_ARCHITECTURES=$architecture")
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
    "$CUDACXX" --version | tail -n 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build=${BUILD:-$work/build}
step "build"
cmake -S . -B "$build" -G Ninja "${cuda[@]}" "-DPython_EXECUTABLE=$(command -v "$python")" \
    "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" >"$work/log" 2>&1 &&
    limited 240 cmake --build "$build" >>"$work/log" 2>&1 || {
    tail -n 60 "$work/log"
    echo "run_gpu: the extension could not be built" >&2
    exit 1
}
# an absolute path, as programs below change nothing but may be started from anywhere
build=$(cd "$build" && pwd)
export PYTHONPATH="$build:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$work/inductor # what an earlier run compiled must not be found
"$python" -c 'import rlal_fast; print(rlal_fast.build_info())' || {
    echo "run_gpu: the extension cannot be loaded" >&2
    exit 1
}

# In the background, as each of them and the tests leave the GPU and the other cores idle:
# sanitized NAME COMMAND...
sanitizers=()
sanitized() {
    local name=$1
    shift
    limited 110 "$@" >"$work/$name.log" 2>&1 &
    sanitizers+=("$name:$!")
}
step "memory errors and races, in the background"
if [ -n "$emulated" ]; then
    sanitized sanitize_gpu "$python" benchmarks/sanitize_gpu.py
elif command -v compute-sanitizer >/dev/null; then
    # torch keeps memory that it was given: what lies beyond a tensor would belong to it too
    check=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 --tool)
    script=("$python" benchmarks/sanitize_gpu.py)
    sanitized memcheck "${check[@]}" memcheck "${script[@]}"
    sanitized racecheck "${check[@]}" racecheck "${script[@]}"
    sanitized memcheck-mobilenet_v2 "${check[@]}" memcheck "${script[@]}" --arch mobilenet_v2 \
        --images 2 --paths auto,layers
else
    echo "compute-sanitizer is not installed: left out"
fi

step "agreement on this device"
found=()
for file in $tests; do
    if [ -e "$file" ]; then found+=("$file"); else echo "$file: not there, left out"; fi
done
if ! "$python" -c 'import pytest' 2>/dev/null; then
    echo "$python has no pytest"
    kept tests 1
elif [ "${#found[@]}" -gt 0 ]; then
    workers=(-o addopts=)
    "$python" -c 'import xdist' 2>/dev/null && workers+=(-n 8)
    limited 120 "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" "${found[@]}"
    kept tests $?
fi

step "what the sanitizers found"
for one in "${sanitizers[@]}"; do # nothing may run beside what is measured
    name=${one%%:*}
    wait "${one##*:}"
    kept "$name" $?
    echo "--- $name"
    tail -n 25 "$work/$name.log"
done

step "measuring"
goes_on=
for _ in 1 2 3 4 5 6; do
    # 40 s are for what a section takes beyond its share, for the start and for the table
    budget=$(($(left) - 40))
    if [ "$budget" -lt 1 ]; then budget=1; fi
    limited 100000 "$python" benchmarks/bench_gpu.py --budget "$budget" "$@" $goes_on
    status=$?
    goes_on=--continue
    if [ "$status" != 75 ]; then break; fi # a kernel lost the device: go on without it
done
kept bench_gpu "$status"

step "done"
if [ "${#failures[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failures[@]}"
    exit 1
fi

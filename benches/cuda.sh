#!/bin/bash
# What a machine with an NVIDIA GPU is needed for: holds every kernel to plain loops on the device, looks for races, and measures.
# It needs nvcc and a C++ compiler, no Rust; python3 with PyTorch for comparison where there is one. Takes some three minutes.
set -eu -o pipefail
cd "$(dirname "$0")/.."

command -v nvcc > /dev/null || { echo "no nvcc on the PATH: install the CUDA toolkit (its bin folder is often /usr/local/cuda/bin)" >&2; exit 1; }
command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
nvcc --version | tail -2 | head -1

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cxx=${CXX:-g++}
"$cxx" -std=c++20 -O2 -march=native -ffp-contract=off -c tests/cuda/naive.cpp -o "$build/naive.o"
compile() { # PROGRAM SOURCE OPTIONS: the kernels' options are those they are used with
    nvcc -std=c++20 -O3 -arch=native -Xcompiler=-march=native,-ffp-contract=off -x cu "${@:3}" -c "$2" -o "$build/$1.o"
    nvcc -arch=native "$build/$1.o" "$build/naive.o" -o "$build/$1"
}
compile check tests/cuda/check.cpp --fmad=false &
compile contracted tests/cuda/check.cpp --fmad=true &
compile bench benches/cuda.cu --fmad=false &
for job in $(jobs -p); do wait "$job"; done

echo; echo "== every kernel against plain loops"
failed=0
"$build/check" 2>&1 | tail -40 || failed=1
echo; echo "== the control: contraction allowed, which must be caught"
if "$build/contracted" > "$build/control" 2>&1; then echo "NOT CAUGHT"; failed=1; else echo "caught: $(grep -c WRONG "$build/control") kernels are wrong"; fi
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        echo; echo "== compute-sanitizer $tool"
        timeout 90 compute-sanitizer --tool $tool --error-exitcode 9 "$build/check" 1 > "$build/verdict" 2>&1 || failed=1
        grep -E "ERROR SUMMARY|RACECHECK SUMMARY|=====.*(Invalid|Race)" "$build/verdict" | tail -4 || echo "no verdict"
    done
fi
echo; echo "== figures"
"$build/bench"
if python3 -c "import torch" 2> /dev/null; then
    echo; echo "== PyTorch on the same shapes"
    python3 benches/cuda_torch.py
fi
exit $failed

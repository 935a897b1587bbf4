#!/bin/bash
# What a machine with an NVIDIA GPU is needed for: `benches/cuda.sh [FOLDER]`. Holds every kernel to plain loops on the device, looks
# for races, and measures. FOLDER has two programs that are built elsewhere, because such a machine has no Rust:
#
#     cargo build --release --features cuda --bin context-patch --example cuda
#     strip -o FOLDER/context-patch target/release/context-patch; strip -o FOLDER/cuda target/release/examples/cuda
#
# With them whole passes are compared: the pinned hashes, random models of the 1B's and the 4B's shape, verify. It needs nvcc and a C++
# compiler; python3 with PyTorch and transformers for comparison where there is one. Takes some four minutes.
set -eu -o pipefail
cd "$(dirname "$0")/.."
programs=${1:-}

command -v nvcc > /dev/null || { echo "no nvcc on the PATH: install the CUDA toolkit (its bin folder is often /usr/local/cuda/bin)" >&2; exit 1; }
command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
nvcc --version | tail -2 | head -1
# NVRTC, which compiles the kernels for the programs.
export LD_LIBRARY_PATH=$(dirname "$(dirname "$(command -v nvcc)")")/lib64:${LD_LIBRARY_PATH:-}

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
failed=0
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

cxx=${CXX:-g++}
"$cxx" -std=c++20 -O2 -march=native -ffp-contract=off -c tests/cuda/naive.cpp -o "$build/naive.o"
compile() { # PROGRAM SOURCE OPTIONS: the kernels' options are those they are used with
    nvcc -std=c++20 -O3 -arch=native -Xcompiler=-march=native,-ffp-contract=off -x cu "${@:3}" -c "$2" -o "$build/$1.o"
    nvcc -arch=native "$build/$1.o" "$build/naive.o" -o "$build/$1"
}
compile check tests/cuda/check.cpp --fmad=false &
compile contracted tests/cuda/check.cpp --fmad=true &
compile bench benches/cuda.cu --fmad=false &

if [ -n "$programs" ]; then
    step "the pinned hashes of the committed models"
    "$programs/cuda" hashes || failed=1
    step "random models of real shapes, against this machine's processor"
    "$programs/cuda" shapes || failed=1
    step "verify: solved and applied on either"
    "$programs/context-patch" verify --model reference/tiny --tokens 5 --solver closed-form --dtype f64,f32,bf16 \
        --backend native,cuda || failed=1
fi
for job in $(jobs -p); do wait "$job"; done

step "every kernel against plain loops"
"$build/check" 2>&1 | tail -12 || failed=1
step "the control: contraction allowed, which must be caught"
if "$build/contracted" > "$build/control" 2>&1; then echo "NOT CAUGHT"; failed=1; else echo "caught: $(grep -c WRONG "$build/control") kernels are wrong"; fi
if command -v compute-sanitizer > /dev/null; then
    sanitize() { # TOOL PROGRAM…
        timeout 90 compute-sanitizer --tool "$1" --error-exitcode 9 "${@:2}" > "$build/verdict" 2>&1 || failed=1
        grep -E "ERROR SUMMARY|RACECHECK SUMMARY|=====.*(Invalid|Race)" "$build/verdict" | tail -4 || echo "no verdict"
    }
    for tool in memcheck racecheck; do
        step "compute-sanitizer $tool: every kernel, and a short pass"
        sanitize $tool "$build/check" 1
        [ -z "$programs" ] || sanitize $tool "$programs/cuda" pass
    done
fi
step "figures"
"$build/bench" | tee "$build/figures"
if [ -n "$programs" ]; then
    step "whole passes"
    peaks=$(sed -n 's/.* read \([0-9]*\) GB.* f32 \([0-9.]*\) TFLOP.*/\1e9 \2e12/p' "$build/figures")
    "$programs/cuda" speed $peaks || failed=1
fi
if python3 -c "import torch" 2> /dev/null; then
    step "PyTorch on the same shapes"
    python3 benches/cuda_torch.py
fi
step "done, $([ $failed = 0 ] && echo "all equal" || echo "SOMETHING FAILED")"
exit $failed

#!/bin/bash
# Runs every CUDA kernel's source on the CPU, bit for bit against plain loops (tests/cuda/check.cpp), and then controls: kernels
# with one thing wrong, each of which must be caught. Needs a C++20 compiler for x86-64 with FMA.
set -eu -o pipefail
cd "$(dirname "$0")"
grep -qw fma /proc/cpuinfo || { echo "this processor has no FMA, without which the controls say nothing: run it on another" >&2; exit 1; }

cxx=${CXX:-g++}
options="-std=c++20 -march=native -Wall -Wextra -Wno-unknown-pragmas -Wno-missing-field-initializers"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
$cxx $options -O2 -ffp-contract=off -c naive.cpp -o "$build/naive.o"

# A program that checks a copy of the kernels, of which sed may have changed one line: NAME FILE SED-EXPRESSION OPTIONS
compile() {
    local folder=$build/$1
    mkdir -p "$folder/src" "$folder/tests"
    cp -r ../../src/cuda "$folder/src/"
    cp -r ../cuda "$folder/tests/"
    if [ -n "$3" ]; then
        sed -i "$3" "$folder/src/cuda/$2"
        if cmp -s "$folder/src/cuda/$2" "../../src/cuda/$2"; then
            echo "control '$1' changes nothing: mend it" >&2
            return 1
        fi
    fi
    $cxx $options $4 "$folder/tests/cuda/check.cpp" "$build/naive.o" -o "$folder/check"
}

whole() {
    compile all kernels.cu "" "-O1 -ffp-contract=off"
    "$build/all/check" | tee "$build/all/out"
    local kernels
    kernels=$(nm "$build/all/check" | grep -cE ' T [a-z_0-9]+_(f64|f32|bf16)$')
    grep -qx "$kernels kernels" "$build/all/out" || { echo "there are $kernels kernels, not all of which are in table.hpp" >&2; return 1; }
}

control() { # NAME FILE SED-EXPRESSION [OPTIONS]
    compile "$1" "$2" "$3" "${4:--Og -ffp-contract=off}"
    if "$build/$1/check" 3 until-one-is-wrong > "$build/$1/out" 2> /dev/null; then
        echo "control '$1' was not caught" >&2
        return 1
    fi
    echo "caught: $1, by $(cat "$build/$1/out")"
}

# Two at a time.
tree='s/half = 8; half > 0; half \/= 2/half = 1; half < 16; half *= 2/'
whole & wholes=$!
control contraction kernels.cu "" "-O2 -ffp-contract=fast"
control another-tree lanes.cuh "$tree"
control even-before-odd matmul/units.cuh 's/bits & 0xffff0000/bits << 16/g; s/widened(\([wx]\).bits)/__uint_as_float(\1.bits \& 0xffff0000)/g'
control no-flushing matmul/units.cuh 's/flushing_fused/fused/g'
control no-wait-for-copies matmul/few.cuh 's/wait_for_groups<STAGES - 2>/wait_for_groups<STAGES - 1>/'
control no-barrier-between-stages matmul/few.cuh '/wait_for_groups<STAGES - 2>/{n;d}'
control no-wait-for-the-last-kernel rows.cu '/wait_for_last_kernel/d'
control no-barrier matmul/tiles.cuh '/transfer.store(tiles\[here\]);/{n;d}'
wait $wholes

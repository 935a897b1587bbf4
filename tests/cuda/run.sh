#!/bin/bash
# Runs every CUDA kernel's source on the CPU, bit for bit against plain loops (tests/cuda/check.cpp), and then controls: kernels
# with one thing wrong, each of which must be caught. Needs a C++20 compiler for x86-64 with FMA.
set -eu -o pipefail
cd "$(dirname "$0")"
grep -qw fma /proc/cpuinfo || { echo "this processor has no FMA, without which the controls say nothing: run it on another" >&2; exit 1; }

cxx=${CXX:-g++}
options="-std=c++20 -O1 -march=native -Wall -Wextra -Wno-unknown-pragmas -Wno-missing-field-initializers"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
$cxx $options -ffp-contract=off -c naive.cpp -o "$build/naive.o"
compile() { # FOLDER OPTIONS
    $cxx $options "${@:2}" "$1/tests/cuda/check.cpp" "$build/naive.o" -o "$1/check"
}

# A copy of the kernels with one line changed: NAME FILE SED-EXPRESSION OPTIONS
control() {
    local folder=$build/$1 file=$build/$1/src/cuda/$2
    mkdir -p "$folder/src" "$folder/tests"
    cp -r ../../src/cuda "$folder/src/"
    cp -r ../cuda "$folder/tests/"
    sed -i "$3" "$file"
    if [ -n "$3" ] && cmp -s "$file" "../../src/cuda/$2"; then
        echo "control '$1' changes nothing: mend it" >&2
        return 1
    fi
    compile "$folder" ${4:--ffp-contract=off}
    if "$folder/check" 3 > "$folder/out" 2> /dev/null; then
        echo "control '$1' was not caught" >&2
        return 1
    fi
    echo "caught: $1, by $(grep WRONG "$folder/out" | awk '{printf "%s%s", (NR > 1 ? ", " : ""), $1}')"
}

mkdir -p "$build/all/src" "$build/all/tests"
cp -r ../../src/cuda "$build/all/src/"
cp -r ../cuda "$build/all/tests/"
compile "$build/all" -ffp-contract=off
"$build/all/check"

tree='s/half = 8; half > 0; half \/= 2/half = 1; half < 16; half *= 2/'
control contraction kernels.cu "" "-O2 -ffp-contract=fast"
control another-tree lanes.cuh "$tree"
control even-before-odd matmul/units.cuh 's/bits & 0xffff0000/bits << 16/g; s/widened(\([wx]\).bits)/__uint_as_float(\1.bits \& 0xffff0000)/g'
control no-flushing matmul/units.cuh 's/flushing_fused/fused/g'
control no-wait-for-copies matmul/few.cuh 's/wait_for_groups<STAGES_AHEAD - 1>/wait_for_groups<STAGES_AHEAD>/'
control no-barrier matmul/tiles.cuh '/transfer.store(tiles\[here\]);/{n;d}'

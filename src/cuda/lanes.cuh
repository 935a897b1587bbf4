// Sums in sixteen lanes: docs/numerics.md, "One order for every sum".
#pragma once
#include "types.cuh"

constexpr unsigned LANES = 16;

/// The sixteen lanes of 16 neighbouring threads, added in the tree; the first of the threads gets the sum. All threads of the
/// warp must call it.
template <class A> __device__ inline A folded(A lane) {
    for (unsigned half = 8; half > 0; half /= 2)
        lane = lane + __shfl_down_sync(~0u, lane, half, LANES);
    return lane;
}

/// Numbers that are staged in shared memory at once.
constexpr unsigned STAGED = 4096;

/// What a block needs for [`sum_in_lanes`]: the same memory for every kind of sum.
template <class A> struct SumMemory {
    A staged[STAGED];
    A sum;
};
template <class A> __device__ inline SumMemory<A> &sum_memory() {
    __shared__ SumMemory<A> memory;
    return memory;
}

/// The sum of `element(i)` for i < n, by all threads of a block, each of which gets it: lane l is +0, to which `step` adds elements
/// l, l + 16, … in this order. Every thread of a block, a multiple of 32, must call it, and n must not be 0.
template <class A, class Element, class Step>
__device__ A sum_in_lanes(unsigned n, Element element, Step step) {
    SumMemory<A> &memory = sum_memory<A>();
    A lane = 0;
    for (unsigned first = 0; first < n; first += STAGED) {
        unsigned count = least(STAGED, n - first);
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x)
            memory.staged[i] = element(first + i);
        __syncthreads();
        if (threadIdx.x < LANES) {
#pragma unroll 16
            for (unsigned i = threadIdx.x; i < count; i += LANES)
                lane = step(lane, memory.staged[i]);
        }
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        lane = folded(lane);
        if (threadIdx.x == 0)
            memory.sum = lane;
    }
    __syncthreads();
    return memory.sum;
}

/// [`sum_in_lanes`] of the squares, each added by a fused multiply-add.
template <class A, class Element> __device__ inline A sum_of_squares(unsigned n, Element element) {
    return sum_in_lanes<A>(n, element, [](A lane, A u) { return fused(u, u, lane); });
}

/// [`sum_in_lanes`] of the numbers themselves.
template <class A, class Element> __device__ inline A plain_sum(unsigned n, Element element) {
    return sum_in_lanes<A>(n, element, [](A lane, A u) { return lane + u; });
}

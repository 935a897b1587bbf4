// Copies from global to shared memory that go on while a thread computes. A thread's copies form groups, which end in order.
#pragma once
#include "../types.cuh"

/// Starts to copy 16 bytes, which must be aligned to as many on both sides.
__device__ inline void start_copy(void *to_shared, const void *from_global) {
#ifdef __CUDACC__
    unsigned to = (unsigned)__cvta_generic_to_shared(to_shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from_global) : "memory");
#else
    twin::start_copy(to_shared, from_global, 16);
#endif
}

/// Ends a group of copies.
__device__ inline void end_group() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    twin::end_group();
#endif
}

/// Waits until all of this thread's groups but the last `LEFT` have arrived.
template <unsigned LEFT> __device__ inline void wait_for_groups() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#else
    twin::wait_for_groups(LEFT);
#endif
}

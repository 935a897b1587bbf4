// How closely kernels follow each other. From compute capability 9.0 on a kernel's blocks may begin while the kernel before still
// runs: what they do before they need anything of it costs no time of its own.
#pragma once

/// Lets the next kernel's blocks begin as soon as all of this one's have, and waits until the kernel before is through. Until then a
/// block may read nothing but weights, and write nothing; every thread of every kernel comes here.
__device__ inline void wait_for_last_kernel() {
#ifndef __CUDACC__
    twin::wait_for_last_kernel();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Asks for the 32 bytes at an address, which are weights.
__device__ inline void prefetch(const void *address) {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
    (void)address;
#endif
}

// Softmax of one row by a block of threads.
#pragma once
#include "exp.cuh"
#include "lanes.cuh"

/// The largest of what the threads of a block hold.
template <class A> __device__ A largest_of_block(A largest) {
    __shared__ A of_warps[32];
    auto larger = [](A s, A largest) { return s > largest ? s : largest; };
    for (unsigned half = 16; half > 0; half /= 2)
        largest = larger(__shfl_down_sync(~0u, largest, half, 32), largest);
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
    largest = of_warps[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++)
        largest = larger(of_warps[warp], largest);
    return largest;
}

/// Turns `prepare` of each of n scores into `finish` of its probability, in place: e^(s − max), their sum in lanes, division.
/// blockDim.x must be a multiple of 32, and n must not be 0.
template <class A, class Prepare, class Finish>
__device__ void softmax_row(A *scores, unsigned n, Prepare prepare, Finish finish) {
    A largest = -(A)__uint_as_float(0x7f800000); // −∞
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        scores[i] = prepare(scores[i]);
        largest = scores[i] > largest ? scores[i] : largest;
    }
    A max = largest_of_block(largest);
    A sum = plain_sum<A>(n, [&](unsigned i) { return scores[i] = exponential(scores[i] - max); });
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        scores[i] = finish(scores[i] / sum);
}

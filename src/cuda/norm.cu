// Norms: a block of threads, a multiple of 32, computes a row of n numbers.
#include "lanes.cuh"

/// 1 / √(mean + ε), where mean is Σ / n.
template <class A> __device__ inline A inverse_root(A sum, unsigned n, f64 eps) {
    return (A)1 / sqrt(sum / (A)n + (A)eps);
}

/// n(u) ⊙ `scale` of each row of `u` `[gridDim.x, n]`; n(u) is rounded before it is scaled if `round_first`, as in Llama.
template <class E>
__device__ void rms_norm(const E *u, const Acc<E> *scale, f64 eps, bool round_first, E *out, unsigned n) {
    u += (size_t)blockIdx.x * n;
    out += (size_t)blockIdx.x * n;
    Acc<E> squares = sum_of_squares<Acc<E>>(n, [&](unsigned i) { return acc(u[i]); });
    Acc<E> inverse = inverse_root(squares, n, eps);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        Acc<E> normed = acc(u[i]) * inverse;
        if (round_first)
            normed = acc(rounded<E>(normed));
        out[i] = rounded<E>(normed * scale[i]);
    }
}

/// (u − mean) / √(variance + ε) ⊙ `weight` + `bias` of each row; `bias` may be null.
template <class E>
__device__ void layer_norm(const E *u, const Acc<E> *weight, const Acc<E> *bias, f64 eps, E *out, unsigned n) {
    u += (size_t)blockIdx.x * n;
    out += (size_t)blockIdx.x * n;
    Acc<E> mean = plain_sum<Acc<E>>(n, [&](unsigned i) { return acc(u[i]); }) / (Acc<E>)n;
    Acc<E> squares = sum_of_squares<Acc<E>>(n, [&](unsigned i) { return acc(u[i]) - mean; });
    Acc<E> inverse = inverse_root(squares, n, eps);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        Acc<E> scaled = (acc(u[i]) - mean) * inverse * weight[i];
        out[i] = rounded<E>(bias ? scaled + bias[i] : scaled);
    }
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void rms_norm_##E(const E *u, const Acc<E> *scale, f64 eps, bool round_first, E *out,        \
                                            unsigned n) {                                                              \
        rms_norm<E>(u, scale, eps, round_first, out, n);                                                               \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_##E(const E *u, const Acc<E> *weight, const Acc<E> *bias, f64 eps, E *out,   \
                                              unsigned n) {                                                            \
        layer_norm<E>(u, weight, bias, eps, out, n);                                                                   \
    }
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS

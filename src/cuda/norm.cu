// Norms, and the residual sum between two of them: a block of threads, a multiple of 32, computes a row of n numbers.
#include "norm.cuh"

/// n(u) ⊙ `scale` of a row.
template <class E> __device__ inline void rms_norm(RowNorm<E> how, const E *u, E *out, unsigned n) {
    Acc<E> inverse = inverse_rms(u, n, how.eps);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        out[i] = scaled(u[i], inverse, how.scale[i], how.kind == RMS_ROUNDED_FIRST);
}

/// (u − mean) / √(variance + ε) ⊙ `scale` + `bias` of a row.
template <class E> __device__ inline void layer_norm(RowNorm<E> how, const E *u, E *out, unsigned n) {
    Acc<E> mean = plain_sum<Acc<E>>(n, [&](unsigned i) { return acc(u[i]); }) / (Acc<E>)n;
    Acc<E> squares = sum_of_squares<Acc<E>>(n, [&](unsigned i) { return acc(u[i]) - mean; });
    Acc<E> inverse = inverse_root(squares, n, how.eps);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        Acc<E> scaled = (acc(u[i]) - mean) * inverse * how.scale[i];
        out[i] = rounded<E>(how.bias ? scaled + how.bias[i] : scaled);
    }
}

template <class E> __device__ void norm(RowNorm<E> how, const E *u, E *out, unsigned n) {
    if (how.kind == LAYER)
        layer_norm(how, u, out, n);
    else
        rms_norm(how, u, out, n);
}

/// Asks for the scale of a norm.
template <class E> __device__ inline void prefetch(RowNorm<E> how, unsigned n) {
    const unsigned step = 32 / sizeof(Acc<E>);
    for (unsigned i = threadIdx.x * step; how.kind != NO_NORM && i < n; i += blockDim.x * step)
        prefetch(how.scale + i);
}

/// Of each row p = N(u), v = x + p and z = N'(v): a norm behind a branch, the residual sum, the norm of the next branch. Without a first
/// norm p is there; without x there is no sum, and no second norm. `flag` may be null; it becomes 1 where a number of v is not finite.
template <class E>
__device__ void norm_add_norm(RowNorm<E> first, const E *u, E *p, const E *x, E *v, unsigned *flag, RowNorm<E> second, E *z,
                              unsigned n) {
    prefetch(first, n);
    prefetch(second, n);
    wait_for_last_kernel();
    size_t row = (size_t)blockIdx.x * n;
    if (first.kind != NO_NORM)
        norm(first, u + row, p + row, n);
    if (!x)
        return;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        E sum = rounded<E>(acc(x[row + i]) + acc(p[row + i]));
        v[row + i] = sum;
        if (flag && !is_finite(sum))
            *flag = 1;
    }
    if (second.kind == NO_NORM)
        return;
    __syncthreads();
    norm(second, v + row, z + row, n);
}

#define NORM(E, i) unsigned kind##i, const Acc<E> *scale##i, const Acc<E> *bias##i, f64 eps##i
#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void norm_add_norm_##E(NORM(E, 0), const E *u, E *p, const E *x, E *v, unsigned *flag,       \
                                                 NORM(E, 1), E *z, unsigned n) {                                       \
        norm_add_norm<E>({kind0, scale0, bias0, eps0}, u, p, x, v, flag, {kind1, scale1, bias1, eps1}, z, n);          \
    }
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS
#undef NORM

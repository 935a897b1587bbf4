// What norms of rows and of heads share.
#pragma once
#include "lanes.cuh"

/// Which norm.
enum : unsigned { NO_NORM, RMS, RMS_ROUNDED_FIRST, LAYER };

/// A norm. Only a LAYER has a `bias`, which may be null.
template <class E> struct RowNorm {
    unsigned kind;
    const Acc<E> *scale, *bias;
    f64 eps;
};

/// 1 / √(mean + ε), where mean is Σ / n.
template <class A> __device__ inline A inverse_root(A sum, unsigned n, f64 eps) {
    return (A)1 / sqrt(sum / (A)n + (A)eps);
}

/// 1 / RMS of n numbers, for every thread of a block.
template <class E> __device__ inline Acc<E> inverse_rms(const E *u, unsigned n, f64 eps) {
    return inverse_root(sum_of_squares<Acc<E>>(n, [&](unsigned i) { return acc(u[i]); }), n, eps);
}

/// A number of an RMSNorm; n(u) is rounded before it is scaled if `round_first`, as in Llama.
template <class E> __device__ inline E scaled(E u, Acc<E> inverse, Acc<E> scale, bool round_first) {
    Acc<E> normed = acc(u) * inverse;
    if (round_first)
        normed = acc(rounded<E>(normed));
    return rounded<E>(normed * scale);
}

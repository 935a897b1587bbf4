// The number types, and the few operations on them that decide bits.
//
// Everything here is compiled with --fmad=false: a * b + c is two roundings, fused(a, b, c) is one.
#pragma once
#include "order.cuh"

using f64 = double;
using f32 = float;

/// The upper half of an f32.
struct bf16 {
    unsigned short bits;
};

/// The type that sums of E are kept in.
template <class E> struct Sum {
    using type = E;
};
template <> struct Sum<bf16> {
    using type = f32;
};
template <class E> using Acc = typename Sum<E>::type;

/// The bits of a bf16 as an f32.
__device__ inline f32 widened(unsigned bf16_bits) { return __uint_as_float(bf16_bits << 16); }

/// A number in a type that holds it exactly.
template <class To> __device__ inline To widen(f64 x) { return x; }
template <class To> __device__ inline To widen(f32 x) { return x; }
template <class To> __device__ inline To widen(bf16 x) { return widened(x.bits); }

/// A number in the type of its sums.
template <class E> __device__ inline Acc<E> acc(E x) { return widen<Acc<E>>(x); }

/// Whether a number is neither infinite nor NaN, which are those that do not give 0 less themselves.
template <class E> __device__ inline bool is_finite(E x) { return acc(x) - acc(x) == 0; }

/// A sum in the compute type, to the nearest, ties to even.
template <class E> __device__ inline E rounded(Acc<E> x) { return x; }
template <> __device__ inline bf16 rounded<bf16>(f32 x) {
    unsigned bits = __float_as_uint(x);
    unsigned nearest = bits + 0x7fff + (bits >> 16 & 1);
    unsigned quiet_nan = bits | 0x00400000;
    return {(unsigned short)((x != x ? quiet_nan : nearest) >> 16)};
}

/// A number in the compute type, rounded once.
template <class E> __device__ inline E rounded_once(f64 x) { return (E)x; }
template <> __device__ inline bf16 rounded_once<bf16>(f64 x) {
    // Cut to f32, with the last bit set where something was cut off: then the second rounding is that of x.
    f32 nearest = (f32)x;
    f64 back = nearest;
    unsigned cut = __float_as_uint(nearest) - (fabs(back) > fabs(x));
    return rounded<bf16>(__uint_as_float(cut | (back != x)));
}

/// a · b + c with one rounding.
__device__ inline f32 fused(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
__device__ inline f64 fused(f64 a, f64 b, f64 c) { return __fma_rn(a, b, c); }

/// The same, with denormal inputs and results taken as zeros of their sign.
__device__ inline f32 flushing_fused(f32 a, f32 b, f32 c) {
#ifdef __CUDACC__
    f32 sum;
    asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(sum) : "f"(a), "f"(b), "f"(c));
    return sum;
#else
    return twin::fma_ftz(a, b, c);
#endif
}

/// Four numbers that are read at once.
template <class T> struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
    T at[4];
};

/// The smaller and the larger of two counts.
__device__ inline unsigned least(unsigned a, unsigned b) { return a < b ? a : b; }
__device__ inline unsigned most(unsigned a, unsigned b) { return a > b ? a : b; }

/// The position of a thread in a grid of one dimension.
__device__ inline unsigned long long thread_of_grid() {
    return (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// What the kernels must give: plain loops in the order of docs/numerics.md, compiled apart, and by the host's compiler, so that no
// option of the kernels reaches them. A bf16 is its bits.
#pragma once
#include <cstdint>
#include <vector>

namespace naive {

struct bf16 {
    uint16_t bits;
};

template <class E> struct Sum {
    using type = E;
};
template <> struct Sum<bf16> {
    using type = float;
};
template <class E> using Acc = typename Sum<E>::type;

template <class E> Acc<E> acc(E x);
template <class E> E rounded(Acc<E> x);
/// A number in E, rounded once.
template <class E> E rounded_once(double x);

/// A dot product of n numbers.
template <class E> Acc<E> dot(const E *w, const E *x, unsigned n);
template <class A> A exponential(A x);
template <class A> void softmax(A *scores, unsigned n);
template <class E> void rms_norm(const E *u, const Acc<E> *scale, double eps, bool round_first, E *out, unsigned n);
/// `bias` may be null.
template <class E>
void layer_norm(const E *u, const Acc<E> *weight, const Acc<E> *bias, double eps, E *out, unsigned n);
/// One head.
template <class E>
void rope(E *head, const Acc<E> *cos, const Acc<E> *sin, unsigned half, bool neighbours, bool round_once);
template <class E> E gelu_tanh(E x);
template <class E> E gelu(E x);
bf16 gelu_new(bf16 x);
template <class E> E softcapped(Acc<E> x, double cap);
template <class E> E silu(E x);
template <class E> E relu(E x);
template <class E> E add(E x, E y);
template <class E> E multiply(E x, E y);
/// Σ pⱼ vⱼ, where the next value is `stride` further on.
template <class E> E weighted_sum(const Acc<E> *p, const E *values, unsigned keys, unsigned stride);
/// a · b + c of bf16 numbers in f32 as the processor does it with FTZ and DAZ.
float flushing_fma(float a, float b, float c);

} // namespace naive

// tanh: src/kernels/tanh.rs, operation for operation; and what is softly cut by it.
#pragma once
#include "exp.cuh"

/// tanh, from e^2x or, where that would cancel, from Lambert's continued fraction.
__device__ inline f64 tanh_of(f64 x) {
    f64 size = fabs(x), s = size * size;
    f64 above = ((s + 594) * s + 45045) * s + 675675;
    f64 below = (((s + 630) * s + 51975) * s + 945945) * s + 2027025;
    f64 near = size - size * (s * above / below);
    f64 far = 1 - 2 / (exponential(2 * size) + 1);
    return copysign(size < 0.6 ? near : far, x);
}

/// cap · tanh(x / cap), in bf16 with each operation rounded.
template <class E> __device__ inline E softcapped(Acc<E> x, f64 cap) {
    auto round = [](f64 x) { return widen<f64>(rounded_once<E>(x)); };
    if constexpr (sizeof(E) == 2)
        return rounded<E>((f32)(cap * round(tanh_of(round(x / cap)))));
    else
        return (E)(cap * tanh_of(x / cap));
}

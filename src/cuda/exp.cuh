// e to the power of x: src/kernels/exp.rs, operation for operation.
#pragma once
#include "types.cuh"

/// Adding it to a small number leaves the nearest integer in the low bits.
constexpr f64 TO_INTEGER = 6755399441055744.0;
constexpr f64 LOG2_E = 1.4426950408889634;
constexpr f64 LN_2 = 0.6931471805599453;

__device__ inline unsigned long long bits_of(f64 x) { return __double_as_longlong(x); }
__device__ inline f64 of_bits(unsigned long long bits) { return __longlong_as_double(bits); }

__device__ inline f64 clamped(f64 x, f64 lowest, f64 highest) {
    return x < lowest ? lowest : x > highest ? highest : x;
}

/// e^x to about 10⁻¹¹, for x that is not NaN.
__device__ inline f64 exp_wide(f64 x) {
    const f64 inverse_factorials[] = {1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
    x = clamped(x, -200, 200);
    f64 shifted = x * LOG2_E + TO_INTEGER;
    f64 n = shifted - TO_INTEGER;
    f64 r = x - n * LN_2;
    f64 p = 1.0 / 362880;
    for (f64 c : inverse_factorials)
        p = p * r + c;
    return of_bits(bits_of(p) + (bits_of(shifted) << 52));
}

/// The integer part of a number well below 2⁵².
__device__ inline f64 without_fraction(f64 x) {
    f64 size = fabs(x);
    f64 nearest = size + TO_INTEGER - TO_INTEGER;
    return copysign(nearest > size ? nearest - 1 : nearest, x);
}

/// 2 to the power of a small integer.
__device__ inline f64 two_to(f64 k) { return of_bits((bits_of(k + TO_INTEGER) + 1023) << 52); }

/// e^x by the method and the constants of Sun's fdlibm, without branches.
__device__ inline f64 exponential(f64 x) {
    const f64 ln_2_high = of_bits(0x3fe62e42fee00000), ln_2_low = of_bits(0x3dea39ef35793c76);
    const unsigned long long coefficients[] = {0xbebbbd41c5d26bf1, 0x3f11566aaf25de2c, 0xbf66c16c16bebd93,
                                               0x3fc555555555553e};
    f64 cut = clamped(x, -746, 710);
    f64 sign = copysign(1.0, cut);
    unsigned size = bits_of(fabs(cut)) >> 32;
    f64 far = without_fraction(cut * LOG2_E + 0.5 * sign);
    f64 near = size > 0x3fd62e42 ? sign : 0;
    f64 k = size >= 0x3ff0a2b2 ? far : near;
    f64 hi = cut - k * ln_2_high, lo = k * ln_2_low;
    f64 r = hi - lo;
    f64 rr = r * r;
    f64 p = of_bits(0x3e66376972bea4d0);
    for (unsigned long long c : coefficients)
        p = of_bits(c) + rr * p;
    f64 c = r - rr * p;
    f64 y = 1 + (r * c / (2 - c) - lo + hi);
    f64 half = 0.5 * k + TO_INTEGER - TO_INTEGER;
    f64 scaled = y * two_to(half) * two_to(k - half);
    f64 close = size > 0x3e300000 ? scaled : 1 + cut;
    return x != x ? x : close;
}

/// e^x in f32: computed in f64 and rounded once.
__device__ inline f32 exponential(f32 x) { return x != x ? x : (f32)exp_wide(x); }

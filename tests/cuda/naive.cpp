#ifndef __x86_64__
#error "these loops need x86-64, whose MXCSR decides what a denormal is"
#endif
#include "naive.hpp"
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <limits>

namespace naive {

template <> double acc(double x) { return x; }
template <> float acc(float x) { return x; }
template <> float acc(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}
template <> double rounded_once(double x) { return x; }
template <> float rounded_once(double x) { return (float)x; }
/// By the distance to the two neighbours, which is exact in double.
template <> bf16 rounded_once(double x) {
    float toward_zero = (float)x;
    if (std::fabs(toward_zero) > std::fabs(x))
        toward_zero = std::nextafter(toward_zero, 0.0f);
    uint32_t bits;
    memcpy(&bits, &toward_zero, 4);
    bf16 below = {(uint16_t)(bits >> 16)}, above = {(uint16_t)((bits >> 16) + 1)};
    if (std::isnan(x))
        return {0x7fc0};
    if (std::isinf(x) || (double)acc(below) == x)
        return below;
    // Beyond the largest number the next one counts as 2^128.
    double next = std::isinf(acc(above)) ? std::copysign(0x1p128, x) : acc(above);
    double down = std::fabs(x - (double)acc(below)), up = std::fabs(next - x);
    if (down != up)
        return down < up ? below : above;
    return below.bits % 2 == 0 ? below : above;
}
template <> double rounded(double x) { return x; }
template <> float rounded(float x) { return x; }
template <> bf16 rounded(float x) { return rounded_once<bf16>(x); }

static float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

/// The multiply-add stands in assembly, because a compiler may move what is computed beyond the change of MXCSR.
__attribute__((noinline)) float flushing_fma(float a, float b, float c) {
    unsigned before = _mm_getcsr(), flushing = before | 0x8040;
    asm volatile("ldmxcsr %3\n\tvfmadd231ss %1, %2, %0\n\tldmxcsr %4"
                 : "+x"(c)
                 : "x"(a), "x"(b), "m"(flushing), "m"(before));
    return c;
}

template <class A> static A tree(const A (&lanes)[16]) {
    A eight[8], four[4], two[2];
    for (int l = 0; l < 8; l++)
        eight[l] = lanes[l] + lanes[l + 8];
    for (int l = 0; l < 4; l++)
        four[l] = eight[l] + eight[l + 4];
    for (int l = 0; l < 2; l++)
        two[l] = four[l] + four[l + 2];
    return two[0] + two[1];
}

template <class A> static A lanes_of_fused(const A *w, const A *x, unsigned n) {
    A lanes[16] = {};
    for (unsigned i = 0; i < (n + 15) / 16 * 16; i++)
        lanes[i % 16] = i < n ? fused(w[i], x[i], lanes[i % 16]) : fused((A)0, (A)0, lanes[i % 16]);
    return tree(lanes);
}
template <> double dot(const double *w, const double *x, unsigned n) { return lanes_of_fused(w, x, n); }
template <> float dot(const float *w, const float *x, unsigned n) { return lanes_of_fused(w, x, n); }
template <> float dot(const bf16 *w, const bf16 *x, unsigned n) {
    float lanes[16] = {};
    for (unsigned block = 0; block < n; block += 32)
        for (unsigned l = 0; l < 16; l++)
            for (unsigned i : {block + 2 * l + 1, block + 2 * l})
                lanes[l] = i < n ? flushing_fma(acc(w[i]), acc(x[i]), lanes[l]) : flushing_fma(0, 0, lanes[l]);
    return tree(lanes);
}

static double power_of_two(double k) { return std::ldexp(1.0, (int)k); }

template <> float exponential(float narrow) {
    double x = narrow;
    if (std::isnan(x))
        return narrow;
    x = std::fmin(std::fmax(x, -200.0), 200.0);
    double n = std::nearbyint(x * 1.4426950408889634);
    double r = x - n * 0.6931471805599453;
    double p = 1.0 / 362880;
    for (int factorial : {40320, 5040, 720, 120, 24, 6, 2, 1, 1})
        p = p * r + 1.0 / factorial;
    return (float)(p * power_of_two(n));
}

/// fdlibm's, with its branches.
template <> double exponential(double x) {
    if (std::isnan(x))
        return x;
    if (x > 709.782712893383973096)
        return std::numeric_limits<double>::infinity();
    if (x < -745.13321910194110842)
        return 0;
    uint64_t bits;
    memcpy(&bits, &x, 8);
    uint32_t size = bits >> 32 & 0x7fffffff;
    int k = 0;
    double hi = x, lo = 0, r = x;
    if (size > 0x3fd62e42) {
        int sign = x < 0 ? -1 : 1;
        k = size >= 0x3ff0a2b2 ? (int)(1.4426950408889634 * x + 0.5 * sign) : sign;
        hi = x - k * 6.93147180369123816490e-01;
        lo = k * 1.90821492927058770002e-10;
        r = hi - lo;
    } else if (size <= 0x3e300000) {
        return 1 + x;
    }
    double rr = r * r;
    double c = r - rr * (1.66666666666666019037e-01 +
                         rr * (-2.77777777770155933842e-03 +
                               rr * (6.61375632143793436117e-05 +
                                     rr * (-1.65339022054652515390e-06 + rr * 4.13813679705723846039e-08))));
    double y = 1 + (r * c / (2 - c) - lo + hi);
    return k == 0 ? y : std::ldexp(y, k);
}

template <class A> static A plain_sum(const A *numbers, unsigned n) {
    A lanes[16] = {};
    for (unsigned i = 0; i < n; i++)
        lanes[i % 16] = lanes[i % 16] + numbers[i];
    return tree(lanes);
}

template <class A> void softmax(A *scores, unsigned n) {
    A max = -std::numeric_limits<A>::infinity();
    for (unsigned i = 0; i < n; i++)
        max = scores[i] > max ? scores[i] : max;
    for (unsigned i = 0; i < n; i++)
        scores[i] = exponential(scores[i] - max);
    A sum = plain_sum(scores, n);
    for (unsigned i = 0; i < n; i++)
        scores[i] = scores[i] / sum;
}

template <class A> static A inverse_root(const std::vector<A> &u, double eps) {
    A mean = lanes_of_fused(u.data(), u.data(), u.size()) / (A)u.size();
    return (A)1 / std::sqrt(mean + (A)eps);
}
template <class E> static std::vector<Acc<E>> widened(const E *u, unsigned n) {
    std::vector<Acc<E>> wide;
    for (unsigned i = 0; i < n; i++)
        wide.push_back(acc(u[i]));
    return wide;
}

template <class E> void rms_norm(const E *u, const Acc<E> *scale, double eps, bool round_first, E *out, unsigned n) {
    std::vector<Acc<E>> wide = widened(u, n);
    Acc<E> inverse = inverse_root(wide, eps);
    for (unsigned i = 0; i < n; i++) {
        Acc<E> normed = wide[i] * inverse;
        out[i] = rounded<E>((round_first ? acc(rounded<E>(normed)) : normed) * scale[i]);
    }
}

template <class E>
void layer_norm(const E *u, const Acc<E> *weight, const Acc<E> *bias, double eps, E *out, unsigned n) {
    std::vector<Acc<E>> centred = widened(u, n);
    Acc<E> mean = plain_sum(centred.data(), n) / (Acc<E>)n;
    for (Acc<E> &u : centred)
        u = u - mean;
    Acc<E> inverse = inverse_root(centred, eps);
    for (unsigned i = 0; i < n; i++) {
        Acc<E> normed = centred[i] * inverse, scaled = normed * weight[i];
        out[i] = rounded<E>(bias ? scaled + bias[i] : scaled);
    }
}

template <class E> E multiply(E x, E y) { return rounded<E>(acc(x) * acc(y)); }
template <class E> E add(E x, E y) { return rounded<E>(acc(x) + acc(y)); }

template <class E>
void rope(E *head, const Acc<E> *cos, const Acc<E> *sin, unsigned half, bool neighbours, bool round_once) {
    for (unsigned i = 0; i < half; i++) {
        E &a = head[neighbours ? 2 * i : i], &b = head[neighbours ? 2 * i + 1 : i + half];
        Acc<E> x_cos = acc(a) * cos[i], y_sin = acc(b) * sin[i], y_cos = acc(b) * cos[i], x_sin = acc(a) * sin[i];
        if (!round_once)
            for (Acc<E> *product : {&x_cos, &y_sin, &y_cos, &x_sin})
                *product = acc(rounded<E>(*product));
        a = rounded<E>(x_cos - y_sin);
        b = rounded<E>(y_cos + x_sin);
    }
}

static double twice_u(double x) {
    double cube = x * x * x, inner = x + 0.044715 * cube;
    return 1.5957691216057307 * inner;
}
static double gelu_of(double x) { return x / (1 + exponential(-twice_u(x))); }
/// The exponential is [`exponential`] of an f32 before it is rounded, so it is written out.
static float gelu_of(float narrow) {
    double x = narrow;
    if (std::isnan(x))
        return narrow;
    double at = std::fmin(std::fmax(-twice_u(x), -200.0), 200.0);
    double n = std::nearbyint(at * 1.4426950408889634), r = at - n * 0.6931471805599453, p = 1.0 / 362880;
    for (int factorial : {40320, 5040, 720, 120, 24, 6, 2, 1, 1})
        p = p * r + 1.0 / factorial;
    return (float)(x / (1 + p * power_of_two(n)));
}
template <class E> E gelu_tanh(E x) { return rounded<E>(gelu_of(acc(x))); }

static double tanh_of(double x) {
    if (std::isnan(x))
        return x;
    double size = std::fabs(x), s = size * size;
    if (size >= 0.6)
        return std::copysign(1 - 2 / (exponential(2 * size) + 1), x);
    double above = 0, below = 0;
    for (double c : {1, 594, 45045, 675675})
        above = above * s + c;
    for (double c : {1, 630, 51975, 945945, 2027025})
        below = below * s + c;
    return std::copysign(size - size * (s * above / below), x);
}
static double in_bf16(double x) { return acc(rounded_once<bf16>(x)); }
bf16 gelu_new(bf16 narrow) {
    double x = acc(narrow), square = in_bf16(x * x), cube = in_bf16(square * x);
    double sum = in_bf16(x + in_bf16(0.044715 * cube)), u = in_bf16(1.5957691216057307 / 2 * sum);
    double half = in_bf16(x / 2), one_plus = in_bf16(1 + in_bf16(tanh_of(u)));
    return rounded_once<bf16>(half * one_plus);
}
template <> double softcapped(double x, double cap) { return cap * tanh_of(x / cap); }
template <> float softcapped(float x, double cap) { return (float)(cap * tanh_of(x / cap)); }
template <> bf16 softcapped(float x, double cap) {
    return rounded<bf16>((float)(cap * in_bf16(tanh_of(in_bf16(x / cap)))));
}

/// Φ(−|x|) is e^(−x²/2) t P(2t − 1) with t = 5 / (5 + |x|).
static double normal_below(double x) {
    const double coefficients[] = {
        -4.412372171591377e-10, 1.5147404913905206e-09, 2.1247874879865943e-09, -1.3308014802505023e-08,
        -8.770472158384658e-09, 8.686248600209437e-08, 6.752637591289214e-08, -5.540529789371985e-07,
        -7.962549846283206e-07, 3.3363388893381767e-06, 9.952577736059616e-06, -1.1875173560424339e-05,
        -0.00010897981415466318, -0.00015957387478938276, 0.0005986753540318707, 0.0041590133594833194,
        0.013823727741280873, 0.03300407323410223, 0.06270663133425991, 0.09906112319399478,
        0.13307650057801135, 0.15383860995001258};
    double t = 5 / (5 + std::fabs(x)), p = coefficients[0];
    for (unsigned i = 1; i < 22; i++)
        p = p * (2 * t - 1) + coefficients[i];
    double beyond = exponential(-(x * x) / 2) * (t * p);
    return x < 0 ? beyond : 1 - beyond;
}
template <class E> E gelu(E x) {
    double wide = acc(x);
    return rounded<E>((Acc<E>)(wide * normal_below(wide)));
}
template <class E> E silu(E x) { return rounded<E>(acc(x) / ((Acc<E>)1 + exponential(-acc(x)))); }
template <class E> E relu(E x) { return acc(x) < 0 ? rounded<E>(0) : x; }

template <class E> E weighted_sum(const Acc<E> *p, const E *values, unsigned keys, unsigned stride) {
    Acc<E> sum = 0;
    for (unsigned j = 0; j < keys; j++)
        sum = fused(p[j], acc(values[(size_t)j * stride]), sum);
    return rounded<E>(sum);
}

template void softmax(double *, unsigned);
template void softmax(float *, unsigned);
#define FUNCTIONS(E)                                                                                                   \
    template void rms_norm(const E *, const Acc<E> *, double, bool, E *, unsigned);                                    \
    template void layer_norm(const E *, const Acc<E> *, const Acc<E> *, double, E *, unsigned);                        \
    template void rope(E *, const Acc<E> *, const Acc<E> *, unsigned, bool, bool);                                     \
    template E gelu_tanh(E);                                                                                           \
    template E gelu(E);                                                                                                \
    template E silu(E);                                                                                                \
    template E relu(E);                                                                                                \
    template E add(E, E);                                                                                              \
    template E multiply(E, E);                                                                                         \
    template E weighted_sum(const Acc<E> *, const E *, unsigned, unsigned);
FUNCTIONS(double)
FUNCTIONS(float)
FUNCTIONS(bf16)

} // namespace naive

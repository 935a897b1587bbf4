// Elementwise sums, products, rounding, and what else is done to one number after the other: a thread computes one.
#include "matmul/units.cuh"

/// out = x `op` y, rounded.
#define OF_PAIRS(name, op, E)                                                                                          \
    extern "C" __global__ void name##_##E(const E *x, const E *y, E *out, size_t n) {                                  \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < n)                                                                                                     \
            out[i] = rounded<E>(acc(x[i]) op acc(y[i]));                                                               \
    }

/// Sums rounded to the compute type: W x + U (V x) becomes an activation. `change` may be null.
#define OF_SUMS(E)                                                                                                     \
    extern "C" __global__ void round_##E(const Acc<E> *sums, const Acc<E> *change, E *out, size_t n) {                 \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < n)                                                                                                     \
            out[i] = rounded<E>(change ? sums[i] + change[i] : sums[i]);                                               \
    }

/// Sums `[tokens, rows]` plus a bias, rounded, and before that too if `rounded_first`. blockIdx.y is the token.
#define ADD_BIAS(E)                                                                                                    \
    extern "C" __global__ void add_bias_##E(const Acc<E> *sums, const Acc<E> *bias, bool rounded_first, E *out,        \
                                            unsigned tokens, unsigned rows) {                                          \
        wait_for_last_kernel();                                                                                        \
        unsigned long long row = thread_of_grid();                                                                     \
        if (row >= rows || blockIdx.y >= tokens)                                                                       \
            return;                                                                                                    \
        size_t i = (size_t)blockIdx.y * rows + row;                                                                    \
        out[i] = biased<E>(sums[i], bias[row], rounded_first);                                                         \
    }

/// Sets `flag` to 1 if a number is infinite or NaN.
#define ALL_FINITE(E)                                                                                                  \
    extern "C" __global__ void all_finite_##E(const E *x, size_t n, unsigned *flag) {                                  \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < n && !is_finite(x[i]))                                                                                 \
            *flag = 1;                                                                                                 \
    }

#define KERNELS(E) OF_PAIRS(add, +, E) OF_PAIRS(multiply, *, E) OF_SUMS(E) ADD_BIAS(E) ALL_FINITE(E)
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS
#undef ALL_FINITE
#undef ADD_BIAS
#undef OF_SUMS
#undef OF_PAIRS

/// Activations in the type of their sums, which the small products of U (V x) are computed in.
extern "C" __global__ void widen_bf16(const bf16 *x, f32 *out, size_t n) {
    wait_for_last_kernel();
    unsigned long long i = thread_of_grid();
    if (i < n)
        out[i] = acc(x[i]);
}

// Elementwise sums, products and rounding: a thread computes one number.
#include "types.cuh"

/// out = x `op` y, rounded.
#define OF_PAIRS(name, op, E)                                                                                          \
    extern "C" __global__ void name##_##E(const E *x, const E *y, E *out, size_t n) {                                  \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < n)                                                                                                     \
            out[i] = rounded<E>(acc(x[i]) op acc(y[i]));                                                               \
    }

/// Sums rounded to the compute type: W x + U (V x) becomes an activation. `change` may be null.
#define OF_SUMS(E)                                                                                                     \
    extern "C" __global__ void round_##E(const Acc<E> *sums, const Acc<E> *change, E *out, size_t n) {                 \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < n)                                                                                                     \
            out[i] = rounded<E>(change ? sums[i] + change[i] : sums[i]);                                               \
    }

/// The embedding: row `tokens[blockIdx.y]` of `weight` `[vocab, n]` in the compute type, times `scale`.
#define EMBED(E, W)                                                                                                    \
    extern "C" __global__ void embed_##E##_##W(const W *weight, const unsigned *tokens, f64 scale, E *out,             \
                                               unsigned n) {                                                           \
        unsigned i = thread_of_grid();                                                                                 \
        if (i < n)                                                                                                     \
            out[(size_t)blockIdx.y * n + i] =                                                                          \
                rounded<E>(widen<Acc<E>>(weight[(size_t)tokens[blockIdx.y] * n + i]) * (Acc<E>)scale);                 \
    }

#define KERNELS(E) OF_PAIRS(add, +, E) OF_PAIRS(multiply, *, E) OF_SUMS(E) EMBED(E, bf16)
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
EMBED(f64, f64)
EMBED(f64, f32)
EMBED(f32, f32)
#undef KERNELS
#undef EMBED
#undef OF_SUMS
#undef OF_PAIRS

// The attention's averages Σ pⱼ vⱼ: a thread adds the keys in order to one element of several tokens, one fused multiply-add each.
#include "types.cuh"

/// Tokens of a thread, which reads each value once for all of them.
constexpr unsigned TOGETHER = 8;

/// The averages of tokens from blockIdx.z · TOGETHER on, of head blockIdx.y, for element thread_of_grid(): `out` is `[tokens, heads,
/// head_dim]`, `p` `[heads, tokens, stride]`, and the values are those of `values` `[key_heads, capacity, head_dim]`. Token t sees
/// the last `window` keys up to `positions[t]`.
template <class E>
__device__ void weighted_sums(const Acc<E> *p, const E *values, const unsigned *positions, E *out, unsigned tokens,
                              unsigned heads, unsigned group, unsigned head_dim, unsigned capacity, unsigned stride,
                              unsigned window) {
    unsigned i = thread_of_grid(), head = blockIdx.y, first = blockIdx.z * TOGETHER;
    if (i >= head_dim)
        return;
    unsigned from[TOGETHER], to[TOGETHER];
    const Acc<E> *of_token[TOGETHER];
    Acc<E> sums[TOGETHER] = {};
#pragma unroll
    for (unsigned t = 0; t < TOGETHER; t++) {
        unsigned token = least(first + t, tokens - 1);
        to[t] = positions[token] + 1;
        from[t] = to[t] > window ? to[t] - window : 0;
        of_token[t] = p + ((size_t)head * tokens + token) * stride;
    }
    values += (size_t)(head / group) * capacity * head_dim + i;
#pragma unroll 4
    for (unsigned key = from[0]; key < to[TOGETHER - 1]; key++) {
        Acc<E> v = acc(values[(size_t)key * head_dim]);
#pragma unroll
        for (unsigned t = 0; t < TOGETHER; t++)
            if (key >= from[t] && key < to[t])
                sums[t] = fused(of_token[t][key], v, sums[t]);
    }
#pragma unroll
    for (unsigned t = 0; t < TOGETHER; t++)
        if (first + t < tokens)
            out[((size_t)(first + t) * heads + head) * head_dim + i] = rounded<E>(sums[t]);
}

#define KERNEL(E)                                                                                                      \
    extern "C" __global__ void weighted_sums_##E(const Acc<E> *p, const E *values, const unsigned *positions, E *out,  \
                                                 unsigned tokens, unsigned heads, unsigned group, unsigned head_dim,   \
                                                 unsigned capacity, unsigned stride, unsigned window) {                \
        weighted_sums(p, values, positions, out, tokens, heads, group, head_dim, capacity, stride, window);            \
    }
KERNEL(f64)
KERNEL(f32)
KERNEL(bf16)
#undef KERNEL

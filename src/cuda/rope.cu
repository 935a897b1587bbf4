// Rotary position embedding in place: a thread rotates one pair of numbers.
#include "types.cuh"

/// Rotates the first 2 · `half` numbers of each head of `x` `[tokens, heads, head_dim]`: element i with element i + `half`, or 2i with
/// 2i + 1 if `neighbours`. `cos` and `sin` are `[position, half]`, and token t stands at `positions[t]`.
template <class E>
__device__ void rope(E *x, const E *cos, const E *sin, const unsigned *positions, unsigned tokens, unsigned heads,
                     unsigned head_dim, unsigned half, bool neighbours) {
    unsigned long long pair = thread_of_grid();
    if (pair >= (unsigned long long)tokens * heads * half)
        return;
    unsigned i = pair % half, token = pair / half / heads;
    E *head = x + pair / half * head_dim;
    E *a = head + (neighbours ? 2 * i : i), *b = head + (neighbours ? 2 * i + 1 : i + half);
    size_t angle = (size_t)positions[token] * half + i;
    auto product = [](E a, E b) { return acc(rounded<E>(acc(a) * acc(b))); };
    E first = *a, second = *b;
    *a = rounded<E>(product(first, cos[angle]) - product(second, sin[angle]));
    *b = rounded<E>(product(second, cos[angle]) + product(first, sin[angle]));
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void rope_##E(E *x, const E *cos, const E *sin, const unsigned *positions, unsigned tokens,  \
                                        unsigned heads, unsigned head_dim, unsigned half, bool neighbours) {           \
        rope<E>(x, cos, sin, positions, tokens, heads, head_dim, half, neighbours);                                    \
    }
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS

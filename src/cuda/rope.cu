// Rotary position embedding in place: a thread rotates one pair of numbers.
#include "types.cuh"

/// Rotates the first 2 · `half` numbers of each head of `x` `[tokens, heads, head_dim]`: element i with element i + `half`, or 2i with
/// 2i + 1 if `neighbours`. `cos` and `sin` are `[tokens, half]`. Products are rounded to E, and so is what becomes of them; the
/// latter alone if `round_once`, as in OLMo 2.
template <class E>
__device__ void rope(E *x, const Acc<E> *cos, const Acc<E> *sin, unsigned tokens, unsigned heads, unsigned head_dim,
                     unsigned half, bool neighbours, bool round_once) {
    unsigned long long pair = thread_of_grid();
    if (pair >= (unsigned long long)tokens * heads * half)
        return;
    unsigned i = pair % half;
    E *head = x + pair / half * head_dim;
    E *a = head + (neighbours ? 2 * i : i), *b = head + (neighbours ? 2 * i + 1 : i + half);
    size_t angle = pair / half / heads * half + i;
    auto product = [&](E x, Acc<E> y) {
        Acc<E> xy = acc(x) * y;
        return round_once ? xy : acc(rounded<E>(xy));
    };
    E first = *a, second = *b;
    *a = rounded<E>(product(first, cos[angle]) - product(second, sin[angle]));
    *b = rounded<E>(product(second, cos[angle]) + product(first, sin[angle]));
}

#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void rope_##E(E *x, const Acc<E> *cos, const Acc<E> *sin, unsigned tokens, unsigned heads,   \
                                        unsigned head_dim, unsigned half, bool neighbours, bool round_once) {          \
        rope<E>(x, cos, sin, tokens, heads, head_dim, half, neighbours, round_once);                                   \
    }
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS

// Queries, keys and values on their way from their maps to attention: RMSNorm and rotary position embedding of each head, and the
// cache. A block has a head of a token.
#include "norm.cuh"

/// What is done to a head; half of what is rotated is 0 where nothing is.
template <class E> struct Preparation {
    /// NO_NORM or an RMSNorm, and whether it comes after the rotation.
    unsigned norm;
    bool norm_last;
    f64 eps;
    /// Of the token.
    const Acc<E> *cos, *sin;
    unsigned head_dim, half;
    /// Element i is rotated with element i + `half`, or 2i with 2i + 1.
    bool neighbours;
    /// Products are rounded to E, and so is what becomes of them; the latter alone in OLMo 2.
    bool round_once;
};

/// Elements i of x and y, rotated.
template <class E> __device__ inline void rotate(const Preparation<E> &how, unsigned i, E &x, E &y) {
    auto product = [&](E x, Acc<E> y) {
        Acc<E> xy = acc(x) * y;
        return how.round_once ? xy : acc(rounded<E>(xy));
    };
    E first = x, second = y;
    x = rounded<E>(product(first, how.cos[i]) - product(second, how.sin[i]));
    y = rounded<E>(product(second, how.cos[i]) + product(first, how.sin[i]));
}

/// A head x becomes `out`, which may be x.
template <class E> __device__ void prepare(const Preparation<E> &how, const E *x, const Acc<E> *scale, E *out) {
    bool normed = how.norm != NO_NORM, round_first = how.norm == RMS_ROUNDED_FIRST;
    Acc<E> inverse = normed && !how.norm_last ? inverse_rms(x, how.head_dim, how.eps) : 0;
    auto in = [&](unsigned i) { return normed && !how.norm_last ? scaled(x[i], inverse, scale[i], round_first) : x[i]; };
    for (unsigned i = threadIdx.x; i < how.half; i += blockDim.x) {
        unsigned a = how.neighbours ? 2 * i : i, b = how.neighbours ? 2 * i + 1 : i + how.half;
        E first = in(a), second = in(b);
        rotate(how, i, first, second);
        out[a] = first;
        out[b] = second;
    }
    for (unsigned i = 2 * how.half + threadIdx.x; i < how.head_dim; i += blockDim.x)
        out[i] = in(i);
    if (!normed || !how.norm_last)
        return;
    __syncthreads();
    inverse = inverse_rms(out, how.head_dim, how.eps);
    for (unsigned i = threadIdx.x; i < how.head_dim; i += blockDim.x)
        out[i] = scaled(out[i], inverse, scale[i], round_first);
}

/// gridDim is (tokens, heads + 2 · key_heads). q is `[tokens, heads, head_dim]` and goes to `prepared`; k and v, `[tokens, key_heads,
/// head_dim]`, go to the places of their tokens in `keys` and `values`, `[key_heads, capacity, head_dim]`. Values are left as they are.
/// `cos` and `sin` are `[tokens, half]`.
#define KERNELS(E)                                                                                                     \
    extern "C" __global__ void heads_##E(const E *q, E *prepared, unsigned norm, bool norm_last, f64 eps,              \
                                         const Acc<E> *q_scale, const Acc<E> *k_scale, const Acc<E> *cos,              \
                                         const Acc<E> *sin, unsigned half, bool neighbours, bool round_once,           \
                                         const E *k, const E *v, const unsigned *place, E *keys, E *values,            \
                                         unsigned capacity, unsigned heads, unsigned key_heads, unsigned head_dim) {   \
        wait_for_last_kernel();                                                                                        \
        unsigned token = blockIdx.x, head = blockIdx.y;                                                                \
        size_t angles = (size_t)token * half;                                                                          \
        Preparation<E> how{norm, norm_last, eps, cos + angles, sin + angles, head_dim, half, neighbours, round_once};  \
        if (head < heads) {                                                                                            \
            size_t at = ((size_t)token * heads + head) * head_dim;                                                     \
            return prepare(how, q + at, q_scale, prepared + at);                                                       \
        }                                                                                                              \
        head -= heads;                                                                                                 \
        unsigned key_head = head % key_heads;                                                                          \
        size_t from = ((size_t)token * key_heads + key_head) * head_dim;                                               \
        size_t to = ((size_t)key_head * capacity + place[token]) * head_dim;                                           \
        if (head < key_heads)                                                                                          \
            return prepare(how, k + from, k_scale, keys + to);                                                         \
        how.norm = NO_NORM;                                                                                            \
        how.half = 0;                                                                                                  \
        prepare(how, v + from, k_scale, values + to);                                                                  \
    }
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS

// The attention's averages Σ pⱼ vⱼ, keys in order, one fused multiply-add each. A block of threads has 32 elements of a head, each of
// its eight warps some tokens: `few` one, `many` eight. The next keys come from global memory while the last are added.
#include "types.cuh"

constexpr unsigned SUM_WARPS = 8, SUM_THREADS = 32 * SUM_WARPS, SUM_ELEMENTS = 32;

/// Keys that are in shared memory at once.
template <unsigned TOKENS> constexpr unsigned SUM_KEYS = TOKENS == 1 ? 128 : 64;

/// What the sums of one head are made of.
template <class E> struct Averages {
    /// `[tokens, stride]`, and `[capacity, head_dim]` of the head's keys.
    const Acc<E> *p;
    const E *values;
    const unsigned *first, *place;
    unsigned tokens, head_dim, stride;

    /// The keys that a token sees, those of the last where there are no more.
    __device__ unsigned from(unsigned token) const { return first[least(token, tokens - 1)]; }
    __device__ unsigned to(unsigned token) const { return place[least(token, tokens - 1)] + 1; }
};

/// Some keys' values and probabilities on their way through a thread's registers to shared memory.
template <class E, unsigned TOKENS> struct Keys {
    static constexpr unsigned COUNT = SUM_KEYS<TOKENS>, ROWS = SUM_WARPS * TOKENS;
    struct Shared {
        alignas(16) Acc<E> values[COUNT][SUM_ELEMENTS];
        alignas(16) Acc<E> p[ROWS][COUNT];
    };
    E values[COUNT / SUM_WARPS];
    Acc<E> p[ROWS * COUNT / SUM_THREADS];

    /// Reads those from `first` on, below `end`.
    __device__ void read(const Averages<E> &a, unsigned first, unsigned end, unsigned first_token) {
        unsigned element = blockIdx.x * SUM_ELEMENTS + threadIdx.x % 32;
#pragma unroll
        for (unsigned i = 0; i < COUNT / SUM_WARPS; i++) {
            unsigned key = first + threadIdx.x / 32 + i * SUM_WARPS;
            values[i] = key < end && element < a.head_dim ? a.values[(size_t)key * a.head_dim + element] : E{};
        }
#pragma unroll
        for (unsigned i = 0; i < ROWS * COUNT / SUM_THREADS; i++) {
            unsigned at = threadIdx.x + i * SUM_THREADS, key = first + at % COUNT, token = first_token + at / COUNT;
            p[i] = key < end && token < a.tokens ? a.p[(size_t)token * a.stride + key] : Acc<E>(0);
        }
    }
    __device__ void store(Shared &shared) const {
#pragma unroll
        for (unsigned i = 0; i < COUNT / SUM_WARPS; i++)
            shared.values[threadIdx.x / 32 + i * SUM_WARPS][threadIdx.x % 32] = acc(values[i]);
#pragma unroll
        for (unsigned i = 0; i < ROWS * COUNT / SUM_THREADS; i++) {
            unsigned at = threadIdx.x + i * SUM_THREADS;
            shared.p[at / COUNT][at % COUNT] = p[i];
        }
    }
};

/// Adds the keys from `first` on that each token sees; `ALL` says that each sees all of them.
template <bool ALL, class Shared, class A, unsigned TOKENS>
__device__ inline void add_keys(A (&sums)[TOKENS], const Shared &shared, const unsigned (&from)[TOKENS],
                                const unsigned (&to)[TOKENS], unsigned first) {
    unsigned row = threadIdx.x / 32 * TOKENS;
#pragma unroll(TOKENS == 1 ? 8 : 4)
    for (unsigned key = 0; key < SUM_KEYS<TOKENS>; key += 4) {
        A v[4];
#pragma unroll
        for (unsigned k = 0; k < 4; k++)
            v[k] = shared.values[key + k][threadIdx.x % 32];
#pragma unroll
        for (unsigned t = 0; t < TOKENS; t++) {
            Four<A> p = *(const Four<A> *)&shared.p[row + t][key];
#pragma unroll
            for (unsigned k = 0; k < 4; k++)
                if (ALL || (first + key + k >= from[t] && first + key + k < to[t]))
                    sums[t] = fused(p.at[k], v[k], sums[t]);
        }
    }
}

/// The averages of a block's tokens and elements, into `out` `[tokens, out_stride]`.
template <unsigned TOKENS, class E>
__device__ void weighted_sums(const Averages<E> &a, E *out, unsigned out_stride) {
    using Some = Keys<E, TOKENS>;
    __shared__ typename Some::Shared shared;
    unsigned block_token = blockIdx.z * Some::ROWS, first_token = block_token + threadIdx.x / 32 * TOKENS;
    unsigned from[TOKENS], to[TOKENS];
    Acc<E> sums[TOKENS] = {};
#pragma unroll
    for (unsigned t = 0; t < TOKENS; t++) {
        from[t] = a.from(first_token + t);
        to[t] = first_token + t < a.tokens ? a.to(first_token + t) : 0;
    }
    unsigned end = a.to(block_token + Some::ROWS - 1);
    Some some;
    unsigned key = a.from(block_token);
    some.read(a, key, end, block_token);
    for (; key < end; key += Some::COUNT) {
        __syncthreads();
        some.store(shared);
        __syncthreads();
        some.read(a, key + Some::COUNT, end, block_token);
        if (first_token >= a.tokens)
            continue;
        // Tokens are in order: the last begins last, and the first ends first.
        if (from[TOKENS - 1] <= key && key + Some::COUNT <= to[0] && key + Some::COUNT <= to[TOKENS - 1])
            add_keys<true>(sums, shared, from, to, key);
        else if (key + Some::COUNT > from[0] && key < a.to(first_token + TOKENS - 1))
            add_keys<false>(sums, shared, from, to, key);
    }
    unsigned element = blockIdx.x * SUM_ELEMENTS + threadIdx.x % 32;
#pragma unroll
    for (unsigned t = 0; t < TOKENS; t++)
        if (first_token + t < a.tokens && element < a.head_dim)
            out[(size_t)(first_token + t) * out_stride + element] = rounded<E>(sums[t]);
}

/// gridDim is (head_dim / SUM_ELEMENTS, heads, tokens / (SUM_WARPS · TOKENS)), with SUM_THREADS threads. `p` is `[heads, tokens, stride]`,
/// `values` `[key_heads, capacity, head_dim]`, where `group` heads share a key head, and `out` `[tokens, heads, head_dim]`. Token t sees
/// the keys from `first[t]` to `place[t]`.
#define KERNEL(name, TOKENS, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(SUM_THREADS)                                                          \
        name##_##E(const Acc<E> *p, const E *values, const unsigned *first, const unsigned *place, E *out,             \
                   unsigned tokens, unsigned heads, unsigned group, unsigned head_dim, unsigned capacity,              \
                   unsigned stride) {                                                                                  \
        wait_for_last_kernel();                                                                                        \
        unsigned head = blockIdx.y;                                                                                    \
        Averages<E> averages{p + (size_t)head * tokens * stride,                                                       \
                             values + (size_t)(head / group) * capacity * head_dim,                                    \
                             first,                                                                                    \
                             place,                                                                                    \
                             tokens,                                                                                   \
                             head_dim,                                                                                 \
                             stride};                                                                                  \
        weighted_sums<TOKENS>(averages, out + (size_t)head * head_dim, heads * head_dim);                              \
    }
#define KERNELS(E) KERNEL(weighted_sums_few, 1, E) KERNEL(weighted_sums_many, 8, E)
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS
#undef KERNEL

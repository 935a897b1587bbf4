// The attention of one sequence. Its keys and values are `[key_heads, capacity, head_dim]`. Of them token t sees those from
// `first[t]` to `place[t]`, where its own is; both ascend.
#include "matmul/few.cuh"
#include "matmul/tiles.cuh"
#include "softmax.cuh"
#include "tanh.cuh"

/// The products of head blockIdx.z's queries and its keys, as a matrix product: `[heads, tokens, stride]`. `group` heads share a key
/// head.
template <class E>
__device__ inline Product<E, E> scores_of_head(const E *q, const E *keys, Acc<E> *scores, unsigned tokens,
                                               unsigned heads, unsigned group, unsigned head_dim, unsigned capacity,
                                               unsigned stride) {
    unsigned head = blockIdx.z;
    return {q + head * head_dim,
            keys + (size_t)(head / group) * capacity * head_dim,
            nullptr,
            false,
            scores + (size_t)head * tokens * stride,
            nullptr,
            tokens,
            stride,
            head_dim,
            heads * head_dim,
            head_dim,
            stride};
}

/// Whether any of some tokens sees any of `count` keys from `key` on.
__device__ inline bool any_seen(const unsigned *first, const unsigned *place, unsigned first_token, unsigned last_token,
                                unsigned key, unsigned count) {
    return key <= place[last_token] && key + count > first[first_token];
}

/// gridDim is (keys / FEW_ROWS, tokens, heads), with FEW_THREADS threads; scores are for keys below `stride`, which is `capacity` at
/// most.
#define SCORES_FEW(E)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS)                                                          \
        scores_few_##E(const E *q, const E *keys, Acc<E> *scores, const unsigned *first, const unsigned *place,        \
                       unsigned tokens, unsigned heads, unsigned group, unsigned head_dim, unsigned capacity,          \
                       unsigned stride) {                                                                              \
        wait_for_last_kernel();                                                                                        \
        unsigned key = blockIdx.x * FEW_ROWS, token = blockIdx.y;                                                      \
        if (any_seen(first, place, token, token, key, FEW_ROWS))                                                       \
            multiply_few<1>(scores_of_head(q, keys, scores, tokens, heads, group, head_dim, capacity, stride), key,    \
                            token);                                                                                    \
    }

/// gridDim is (a tile's tokens, its keys, heads), with TILE_THREADS threads.
#define SCORES_MANY(E)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1)                                                      \
        scores_many_##E(const E *q, const E *keys, Acc<E> *scores, const unsigned *first, const unsigned *place,       \
                        unsigned tokens, unsigned heads, unsigned group, unsigned head_dim, unsigned capacity,         \
                        unsigned stride) {                                                                             \
        wait_for_last_kernel();                                                                                        \
        using Tile = TileOf<E>;                                                                                        \
        unsigned token = blockIdx.x * Tile::ALL_TOKENS, key = blockIdx.y * Tile::ALL_ROWS;                             \
        unsigned last = least(token + Tile::ALL_TOKENS, tokens) - 1;                                                   \
        if (any_seen(first, place, token, last, key, Tile::ALL_ROWS))                                                  \
            multiply_tile(scores_of_head(q, keys, scores, tokens, heads, group, head_dim, capacity, stride), key,      \
                          token);                                                                                      \
    }

/// The score of a query and a key, before softmax: times `scaling`, and where `softcap` is not 0 softly cut to ±`softcap`.
template <class E>
__device__ inline Acc<E> prepared_score(Acc<E> product, f64 scaling, bool rounded_scores, f64 softcap) {
    auto round = [&](Acc<E> s) { return rounded_scores ? acc(rounded<E>(s)) : s; };
    Acc<E> score = round(round(product) * (Acc<E>)scaling);
    return softcap == 0 ? score : acc(softcapped<E>(score, softcap));
}

/// What head blockIdx.y of token blockIdx.x sees becomes probabilities, which are rounded to E; what is rounded before that
/// differs between families.
#define PROBABILITIES(E)                                                                                               \
    extern "C" __global__ void probabilities_##E(Acc<E> *scores, const unsigned *first, const unsigned *place,         \
                                                 f64 scaling, bool rounded_scores, f64 softcap, unsigned tokens,       \
                                                 unsigned stride) {                                                    \
        wait_for_last_kernel();                                                                                        \
        unsigned token = blockIdx.x, from = first[token];                                                              \
        softmax_row(                                                                                                   \
            scores + ((size_t)blockIdx.y * tokens + token) * stride + from, place[token] + 1 - from,                   \
            [&](Acc<E> product) { return prepared_score<E>(product, scaling, rounded_scores, softcap); },              \
            [](Acc<E> p) { return acc(rounded<E>(p)); });                                                              \
    }

#define KERNELS(E) SCORES_FEW(E) SCORES_MANY(E) PROBABILITIES(E)
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS
#undef PROBABILITIES
#undef SCORES_MANY
#undef SCORES_FEW

// The attention of one sequence. Its keys and values are `[key_heads, capacity, head_dim]`, where key j stands at position j; token t
// stands at `positions[t]`, ascending, and sees the last `window` keys up to its own.
#include "matmul/few.cuh"
#include "matmul/tiles.cuh"
#include "softmax.cuh"

/// The products of head blockIdx.z's queries and its keys, as a matrix product: `[heads, tokens, stride]`. `group` heads share a key
/// head.
template <class E>
__device__ inline Product<E, E> scores_of_head(const E *q, const E *keys, Acc<E> *scores, unsigned tokens,
                                               unsigned heads, unsigned group, unsigned head_dim, unsigned capacity,
                                               unsigned stride) {
    unsigned head = blockIdx.z;
    return {q + head * head_dim,
            keys + (size_t)(head / group) * capacity * head_dim,
            scores + (size_t)head * tokens * stride,
            nullptr,
            tokens,
            stride,
            head_dim,
            heads * head_dim,
            head_dim,
            stride};
}

/// Whether any of some tokens sees any of `count` keys from `first` on.
__device__ inline bool any_seen(const unsigned *positions, unsigned first_token, unsigned last_token, unsigned window,
                                unsigned first, unsigned count) {
    return first <= positions[last_token] && first + count > seen_from(positions[first_token], window);
}

/// gridDim is (keys / FEW_ROWS, tokens, heads), with FEW_THREADS threads; scores are for keys below `stride`, which is `capacity` at
/// most.
#define SCORES_FEW(E)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS)                                                          \
        scores_few_##E(const E *q, const E *keys, Acc<E> *scores, const unsigned *positions, unsigned tokens,          \
                       unsigned heads, unsigned group, unsigned head_dim, unsigned capacity, unsigned stride,          \
                       unsigned window) {                                                                              \
        unsigned key = blockIdx.x * FEW_ROWS, token = blockIdx.y;                                                      \
        if (any_seen(positions, token, token, window, key, FEW_ROWS))                                                  \
            multiply_few<1>(scores_of_head(q, keys, scores, tokens, heads, group, head_dim, capacity, stride), key,    \
                            token);                                                                                    \
    }

/// gridDim is (a tile's tokens, its keys, heads), with TILE_THREADS threads.
#define SCORES_MANY(E)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1)                                                      \
        scores_many_##E(const E *q, const E *keys, Acc<E> *scores, const unsigned *positions, unsigned tokens,         \
                        unsigned heads, unsigned group, unsigned head_dim, unsigned capacity, unsigned stride,         \
                        unsigned window) {                                                                             \
        using Tile = TileOf<E>;                                                                                        \
        unsigned token = blockIdx.x * Tile::ALL_TOKENS, key = blockIdx.y * Tile::ALL_ROWS;                             \
        unsigned last = least(token + Tile::ALL_TOKENS, tokens) - 1;                                                   \
        if (any_seen(positions, token, last, window, key, Tile::ALL_ROWS))                                             \
            multiply_tile(scores_of_head(q, keys, scores, tokens, heads, group, head_dim, capacity, stride), key,      \
                          token);                                                                                      \
    }

/// The scores that token blockIdx.x sees, of head blockIdx.y, become probabilities: softmax(score · scaling), rounded where Hugging
/// Face rounds.
#define PROBABILITIES(E)                                                                                               \
    extern "C" __global__ void probabilities_##E(Acc<E> *scores, const unsigned *positions, f64 scaling,               \
                                                 unsigned tokens, unsigned stride, unsigned window) {                  \
        unsigned token = blockIdx.x, position = positions[token], first = seen_from(position, window);                 \
        Acc<E> *row = scores + ((size_t)blockIdx.y * tokens + token) * stride + first;                                 \
        auto round = [](Acc<E> s) { return acc(rounded<E>(s)); };                                                      \
        softmax_row(row, position + 1 - first, [&](Acc<E> s) { return round(round(s) * (Acc<E>)scaling); }, round);    \
    }

/// Copies token blockIdx.x's key and value of key head blockIdx.y to their places.
#define STORE(E)                                                                                                       \
    extern "C" __global__ void store_key_value_##E(const E *k, const E *v, const unsigned *positions, E *keys,         \
                                                   E *values, unsigned key_heads, unsigned head_dim,                   \
                                                   unsigned capacity) {                                                \
        size_t from = ((size_t)blockIdx.x * key_heads + blockIdx.y) * head_dim;                                        \
        size_t to = ((size_t)blockIdx.y * capacity + positions[blockIdx.x]) * head_dim;                                \
        for (unsigned i = threadIdx.x; i < head_dim; i += blockDim.x) {                                                \
            keys[to + i] = k[from + i];                                                                                \
            values[to + i] = v[from + i];                                                                              \
        }                                                                                                              \
    }

#define KERNELS(E) SCORES_FEW(E) SCORES_MANY(E) PROBABILITIES(E) STORE(E)
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS
#undef STORE
#undef PROBABILITIES
#undef SCORES_MANY
#undef SCORES_FEW

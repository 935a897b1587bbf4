// Matrix products y = W x, of up to three W with the same x: `multiply_one` for one token, `multiply_few` for up to some eight,
// `multiply_many` for more. All give the same bits. Each W may have a bias.
#include "matmul/few.cuh"
#include "matmul/tiles.cuh"

/// W and b, and where the products go; there is none without rows.
template <class E, class W> struct Map {
    const W *w;
    const Acc<E> *bias;
    bool rounded_first;
    Acc<E> *sums;
    E *out;
    unsigned rows;
};

/// The product of which `piece` is one, where each map's rows are cut into pieces of `size` and all are counted; `piece` becomes its
/// place among those of its map.
template <class E, class W>
__device__ inline Product<E, W> product_of(unsigned &piece, unsigned size, const E *x, Map<E, W> map, Map<E, W> second, Map<E, W> third,
                                           unsigned tokens, unsigned cols) {
    auto leave = [&](Map<E, W> next) {
        unsigned pieces = (map.rows + size - 1) / size;
        if (piece >= pieces) {
            piece -= pieces;
            map = next;
            return true;
        }
        return false;
    };
    if (leave(second))
        leave(third);
    return {x, map.w, map.bias, map.rounded_first, map.sums, map.out, tokens, map.rows, cols, cols, cols, map.rows};
}

#define MAP(E, W, i)                                                                                                   \
    const W *w##i, const Acc<E> *bias##i, bool rounded_first##i, Acc<E> *sums##i, E *out##i, unsigned rows##i
#define MAP_OF(i) {w##i, bias##i, rounded_first##i, sums##i, out##i, rows##i}
#define MAPS(E, W) const E *x, MAP(E, W, 0), MAP(E, W, 1), MAP(E, W, 2), unsigned tokens, unsigned cols
#define PRODUCT_OF(E, W, piece, size)                                                                                  \
    product_of<E, W>(piece, size, x, MAP_OF(0), MAP_OF(1), MAP_OF(2), tokens, cols)

/// Blocks of FEW_THREADS threads: gridDim.x for FEW_ROWS rows of a map each, gridDim.y for TOKENS tokens each.
#define FEW(name, TOKENS, E, W)                                                                                        \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS) name##_##E##_##W(MAPS(E, W)) {                           \
        unsigned piece = blockIdx.x;                                                                                   \
        Product<E, W> p = PRODUCT_OF(E, W, piece, FEW_ROWS);                                                           \
        multiply_few<TOKENS>(p, piece * FEW_ROWS, blockIdx.y * TOKENS);                                                \
    }

/// Blocks of TILE_THREADS threads: gridDim.x for a tile's tokens each, gridDim.y for its rows of a map.
#define MANY(E, W)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) multiply_many_##E##_##W(MAPS(E, W)) {                \
        wait_for_last_kernel();                                                                                        \
        unsigned piece = blockIdx.y;                                                                                   \
        Product<E, W> p = PRODUCT_OF(E, W, piece, TileOf<E>::ALL_ROWS);                                                \
        multiply_tile(p, piece * TileOf<E>::ALL_ROWS, blockIdx.x * TileOf<E>::ALL_TOKENS);                             \
    }

#define KERNELS(E, W) FEW(multiply_one, 1, E, W) FEW(multiply_few, FEW_TOKENS<E>, E, W) MANY(E, W)
KERNELS(f64, f64)
KERNELS(f64, f32)
KERNELS(f64, bf16)
KERNELS(f32, f32)
KERNELS(f32, bf16)
KERNELS(bf16, bf16)
#undef KERNELS
#undef MANY
#undef FEW
#undef PRODUCT_OF
#undef MAPS
#undef MAP_OF
#undef MAP

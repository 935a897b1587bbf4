// Matrix products y = W x: `multiply_few` for up to some eight tokens, `multiply_many` for more. Both give the same bits.
#include "matmul/few.cuh"
#include "matmul/tiles.cuh"

/// The product of whole matrices.
template <class E, class W>
__device__ inline Product<E, W> product(const E *x, const W *w, Acc<E> *sums, E *out, unsigned tokens, unsigned rows,
                                        unsigned cols) {
    return {x, w, sums, out, tokens, rows, cols, cols, cols, rows};
}

/// Blocks of FEW_THREADS threads: gridDim.x for FEW_ROWS rows each, gridDim.y for four tokens each.
#define FEW(E, W)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS)                                                          \
        multiply_few_##E##_##W(const E *x, const W *w, Acc<E> *sums, E *out, unsigned tokens, unsigned rows,           \
                               unsigned cols) {                                                                        \
        Product<E, W> p = product(x, w, sums, out, tokens, rows, cols);                                                \
        if (tokens == 1)                                                                                               \
            multiply_few<1>(p, blockIdx.x * FEW_ROWS, 0);                                                              \
        else                                                                                                           \
            multiply_few<4>(p, blockIdx.x * FEW_ROWS, blockIdx.y * 4);                                                 \
    }

/// Blocks of TILE_THREADS threads: gridDim.x for a tile's tokens each, gridDim.y for its rows.
#define MANY(E, W)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1)                                                      \
        multiply_many_##E##_##W(const E *x, const W *w, Acc<E> *sums, E *out, unsigned tokens, unsigned rows,          \
                                unsigned cols) {                                                                       \
        multiply_tile(product(x, w, sums, out, tokens, rows, cols), blockIdx.y * TileOf<E>::ALL_ROWS,                  \
                      blockIdx.x * TileOf<E>::ALL_TOKENS);                                                             \
    }

#define KERNELS(E, W) FEW(E, W) MANY(E, W)
KERNELS(f64, f64)
KERNELS(f64, f32)
KERNELS(f64, bf16)
KERNELS(f32, f32)
KERNELS(f32, bf16)
KERNELS(bf16, bf16)
#undef KERNELS
#undef MANY
#undef FEW

// Rows and columns of activations that go elsewhere: a thread moves one number of a row, which is blockIdx.y.
#include "types.cuh"

/// Some columns of every row: of the output of a fused map.
#define SELECT_COLUMNS(E)                                                                                              \
    extern "C" __global__ void select_columns_##E(const E *x, const unsigned *columns, E *out, unsigned in_cols,       \
                                                  unsigned out_cols) {                                                 \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < out_cols)                                                                                              \
            out[(size_t)blockIdx.y * out_cols + i] = x[(size_t)blockIdx.y * in_cols + columns[i]];                     \
    }

/// Some rows: of the tokens that choose an expert.
#define GATHER_ROWS(E)                                                                                                 \
    extern "C" __global__ void gather_rows_##E(const E *x, const unsigned *rows, E *out, unsigned cols) {              \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < cols)                                                                                                  \
            out[(size_t)blockIdx.y * cols + i] = x[(size_t)rows[blockIdx.y] * cols + i];                               \
    }

/// What an expert says of its tokens, times their gates, is added to the tokens' rows of `sums`.
#define COMBINE(E)                                                                                                     \
    extern "C" __global__ void combine_##E(const E *said, const unsigned *rows, const f64 *gates, E *sums,             \
                                           unsigned cols) {                                                            \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i >= cols)                                                                                                 \
            return;                                                                                                    \
        E &sum = sums[(size_t)rows[blockIdx.y] * cols + i];                                                            \
        E share = rounded<E>(acc(said[(size_t)blockIdx.y * cols + i]) * (Acc<E>)gates[blockIdx.y]);                    \
        sum = rounded<E>(acc(sum) + acc(share));                                                                       \
    }

#define KERNELS(E) SELECT_COLUMNS(E) GATHER_ROWS(E) COMBINE(E)
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS
#undef COMBINE
#undef GATHER_ROWS
#undef SELECT_COLUMNS

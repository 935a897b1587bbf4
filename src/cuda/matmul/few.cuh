// Products with few tokens, which take as long as it takes to read W: a thread is one lane of one row.
#pragma once
#include "units.cuh"

/// Rows of W of a block of threads.
constexpr unsigned FEW_ROWS = 4;
constexpr unsigned FEW_THREADS = FEW_ROWS * LANES;

/// Units of a row that a thread asks for before it waits for the first: enough that 2560 rows keep memory busy.
template <class W> constexpr unsigned IN_FLIGHT = sizeof(W) == 2 ? 64 : 32;

/// Adds `COUNT` blocks from `first` on to the lanes, or those of them below `blocks` if `BOUNDED`.
template <unsigned COUNT, bool BOUNDED, class E, class W, unsigned TOKENS>
__device__ inline void add_blocks(Acc<E> (&lanes)[TOKENS], Row<E, W> w, const Row<E, E> (&x)[TOKENS], unsigned first,
                                  unsigned blocks) {
    unsigned start = first * LANES + threadIdx.x % LANES;
    Unit<E> ahead[COUNT];
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++)
        ahead[i] = BOUNDED ? w.unit(start + i * LANES) : w.whole_unit(start + i * LANES);
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++) {
        if (BOUNDED && first + i >= blocks)
            break;
#pragma unroll
        for (unsigned t = 0; t < TOKENS; t++)
            lanes[t] = multiply_add(lanes[t], ahead[i], x[t].unit(start + i * LANES));
    }
}

/// The products of FEW_ROWS rows and `TOKENS` tokens.
template <unsigned TOKENS, class E, class W>
__device__ void multiply_few(Product<E, W> p, unsigned first_row, unsigned first_token) {
    unsigned row = first_row + threadIdx.x / LANES;
    Row<E, W> w = p.w_row(row);
    Row<E, E> x[TOKENS];
    Acc<E> lanes[TOKENS] = {};
    for (unsigned t = 0; t < TOKENS; t++)
        x[t] = p.x_row(first_token + t);
    unsigned blocks = blocks_of<E>(p.cols), block = 0;
    if (whole_blocks<E>(p.cols))
        for (; block + IN_FLIGHT<W> <= blocks; block += IN_FLIGHT<W>)
            add_blocks<IN_FLIGHT<W>, false>(lanes, w, x, block, blocks);
    for (; block < blocks; block += 8)
        add_blocks<8, true>(lanes, w, x, block, blocks);
    for (unsigned t = 0; t < TOKENS; t++) {
        Acc<E> sum = folded(lanes[t]);
        if (threadIdx.x % LANES == 0)
            p.store(first_token + t, row, sum);
    }
}

// Products with few tokens, which take as long as it takes to read W. A thread is one lane of one row; a warp brings its two rows to
// shared memory long before it needs them, so that memory is busy even where W has few rows.
#pragma once
#include "async.cuh"
#include "units.cuh"

/// Rows of W of a block of threads.
constexpr unsigned FEW_ROWS = 4;
constexpr unsigned FEW_THREADS = FEW_ROWS * LANES;

/// Bytes of a row that its sixteen threads ask for at once, 16 each, and how often they do so before the first must be there.
constexpr unsigned STAGE_BYTES = 256, STAGES_AHEAD = 16;

/// Stages of one row, which are so far apart that two rows meet in no bank.
struct Stages {
    alignas(16) unsigned char bytes[STAGES_AHEAD][STAGE_BYTES + 64];
};

/// Adds to the lanes the blocks from `first` to `last`, any of which may be incomplete.
template <class E, class W, unsigned TOKENS>
__device__ inline void add_blocks(Acc<E> (&lanes)[TOKENS], Row<E, W> w, const Row<E, E> (&x)[TOKENS], unsigned first,
                                  unsigned last) {
    for (unsigned unit = first * LANES + threadIdx.x % LANES; unit < last * LANES; unit += LANES)
        for (unsigned t = 0; t < TOKENS; t++)
            lanes[t] = multiply_add(lanes[t], w.unit(unit), x[t].unit(unit));
}

/// What the threads of a block share: one for all numbers of tokens, because a kernel has room for all that it might use.
struct FewShared {
    Stages of_rows[FEW_ROWS];
    /// Written and never read, so that what was read for it is.
    volatile unsigned unused[FEW_THREADS];
};
__device__ inline FewShared &few_shared() {
    __shared__ FewShared shared;
    return shared;
}

/// Brings a row to the cache of this processor, eight times 32 bytes of each thread at once.
template <class E> __device__ inline void touch(Row<E, E> x) {
    const unsigned step = FEW_THREADS * 32, bytes = x.cols * sizeof(E);
    unsigned all = 0;
    for (unsigned at = threadIdx.x * 32; at < bytes; at += 8 * step)
#pragma unroll
        for (unsigned i = 0; i < 8; i++)
            all ^= *(const unsigned *)((const unsigned char *)x.numbers + least(at + i * step, bytes - 4));
    few_shared().unused[threadIdx.x] = all;
}

/// Adds to the lanes `stages` stages of complete blocks, each of `COUNT`.
template <unsigned COUNT, class E, class W, unsigned TOKENS>
__device__ inline void add_stages(Acc<E> (&lanes)[TOKENS], Row<E, W> w, const Row<E, E> (&x)[TOKENS], unsigned stages) {
    Stages &row = few_shared().of_rows[threadIdx.x / LANES];
    unsigned lane = threadIdx.x % LANES;
    auto start = [&](unsigned stage) {
        if (stage < stages)
            start_copy(row.bytes[stage % STAGES_AHEAD] + lane * 16,
                       (const unsigned char *)w.numbers + (size_t)stage * STAGE_BYTES + lane * 16);
        end_group();
    };
    for (unsigned stage = 0; stage + 1 < STAGES_AHEAD; stage++)
        start(stage);
    // While the first stages are on their way: else every stage would wait for its part of x.
    for (unsigned t = 0; stages > 0 && t < TOKENS; t++)
        touch(x[t]);
    for (unsigned stage = 0; stage < stages; stage++) {
        start(stage + STAGES_AHEAD - 1);
        Unit<E> of_x[COUNT][TOKENS];
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++)
#pragma unroll
            for (unsigned t = 0; t < TOKENS; t++)
                of_x[i][t] = x[t].whole_unit((stage * COUNT + i) * LANES + lane);
        wait_for_groups<STAGES_AHEAD - 1>();
        __syncwarp();
        Row<E, W> here{(const W *)row.bytes[stage % STAGES_AHEAD], w.cols};
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++)
#pragma unroll
            for (unsigned t = 0; t < TOKENS; t++)
                lanes[t] = multiply_add(lanes[t], here.whole_unit(i * LANES + lane), of_x[i][t]);
        __syncwarp();
    }
}

/// The products of FEW_ROWS rows and `TOKENS` tokens.
template <unsigned TOKENS, class E, class W>
__device__ void multiply_few(Product<E, W> p, unsigned first_row, unsigned first_token) {
    constexpr unsigned COUNT = STAGE_BYTES / (LANES * PER_UNIT<E> * sizeof(W));
    unsigned row = first_row + threadIdx.x / LANES;
    Row<E, W> w = p.w_row(row);
    Row<E, E> x[TOKENS];
    Acc<E> lanes[TOKENS] = {};
    for (unsigned t = 0; t < TOKENS; t++)
        x[t] = p.x_row(first_token + t);
    unsigned blocks = blocks_of<E>(p.cols), stages = whole_blocks<E>(p.cols) ? blocks / COUNT : 0;
    add_stages<COUNT>(lanes, w, x, stages);
    add_blocks(lanes, w, x, stages * COUNT, blocks);
    for (unsigned t = 0; t < TOKENS; t++) {
        Acc<E> sum = folded(lanes[t]);
        if (threadIdx.x % LANES == 0)
            p.store(first_token + t, row, sum);
    }
}

// Products with few tokens, which take as long as it takes to read W. A thread is one lane of one row. A block brings its rows of W, and
// what of its tokens they are multiplied by, to shared memory long before it needs them, so that memory is busy even where W has few
// rows; the first of W before the last kernel is through.
#pragma once
#include "async.cuh"
#include "units.cuh"

/// Rows of W of a block of threads.
constexpr unsigned FEW_ROWS = 8;
constexpr unsigned FEW_THREADS = FEW_ROWS * LANES;
/// Tokens of a block, where there is more than one.
template <class E> constexpr unsigned FEW_TOKENS = sizeof(E) == 8 ? 2 : 4;

/// Bytes of a row that its sixteen threads ask for at once, 16 each, and how many such stages a block has room for.
constexpr unsigned STAGE_BYTES = 16 * LANES, STAGES = 8;

/// Some columns of a block's rows and of its tokens. Rows are so far apart that the two of a warp meet in no bank.
template <class E, class W, unsigned TOKENS> struct Stage {
    static constexpr unsigned COLS = STAGE_BYTES / sizeof(W);
    alignas(16) W w[FEW_ROWS][COLS + 64 / sizeof(W)];
    alignas(16) E x[TOKENS][COLS];
};

/// A thread's part in bringing stages to shared memory: 16 bytes of its row, and the first threads 16 of a token.
template <class E, class W, unsigned TOKENS> struct Supply {
    using Place = Stage<E, W, TOKENS>;
    struct alignas(16) Part {
        E at[16 / sizeof(E)];
    };
    static constexpr unsigned OF_W = 16 / sizeof(W), OF_X = 16 / sizeof(E), PER_TOKEN = Place::COLS / OF_X;
    static_assert(TOKENS * PER_TOKEN <= FEW_THREADS, "16 bytes a thread");
    unsigned token = threadIdx.x / PER_TOKEN, of_token = threadIdx.x % PER_TOKEN * OF_X;
    unsigned row = threadIdx.x / LANES, of_row = threadIdx.x % LANES * OF_W;
    const W *w;
    const E *x;

    __device__ Supply(const Product<E, W> &p, unsigned first_row, unsigned first_token)
        : w(p.w_row(first_row + row).numbers + of_row), x(p.x_row(first_token + token).numbers + of_token) {}

    __device__ void start_w(Place &to, unsigned stage) const {
        start_copy(&to.w[row][of_row], w + (size_t)stage * Place::COLS);
    }
    __device__ void start_x(Place &to, unsigned stage) const {
        if (token < TOKENS)
            start_copy(&to.x[token][of_token], x + (size_t)stage * Place::COLS);
    }

    /// Brings x for the first of `count` stages, all at once.
    __device__ void bring_x(Place (&to)[STAGES], unsigned count) const {
        Part parts[STAGES - 1];
        if (token >= TOKENS)
            return;
#pragma unroll
        for (unsigned s = 0; s + 1 < STAGES; s++)
            if (s < count)
                parts[s] = *(const Part *)(x + s * Place::COLS);
#pragma unroll
        for (unsigned s = 0; s + 1 < STAGES; s++)
            if (s < count)
                *(Part *)&to[s].x[token][of_token] = parts[s];
    }
};

/// Adds a stage to the lanes.
template <class E, class W, unsigned TOKENS>
__device__ inline void add_stage(Acc<E> (&lanes)[TOKENS], const Stage<E, W, TOKENS> &stage) {
    constexpr unsigned COLS = Stage<E, W, TOKENS>::COLS;
    Row<E, W> w{stage.w[threadIdx.x / LANES], COLS};
#pragma unroll
    for (unsigned unit = threadIdx.x % LANES; unit < COLS / PER_UNIT<E>; unit += LANES)
#pragma unroll
        for (unsigned t = 0; t < TOKENS; t++)
            lanes[t] = multiply_add(lanes[t], w.whole_unit(unit), Row<E, E>{stage.x[t], COLS}.whole_unit(unit));
}

/// Adds to the lanes the blocks from `first` to `last`, any of which may be incomplete, without shared memory.
template <class E, class W, unsigned TOKENS>
__device__ inline void add_blocks(Acc<E> (&lanes)[TOKENS], const Product<E, W> &p, unsigned row, unsigned first_token, unsigned first,
                                  unsigned last) {
    for (unsigned unit = first * LANES + threadIdx.x % LANES; unit < last * LANES; unit += LANES)
        for (unsigned t = 0; t < TOKENS; t++)
            lanes[t] = multiply_add(lanes[t], p.w_row(row).unit(unit), p.x_row(first_token + t).unit(unit));
}

/// The products of FEW_ROWS rows and `TOKENS` tokens.
template <unsigned TOKENS, class E, class W>
__device__ void multiply_few(const Product<E, W> &p, unsigned first_row, unsigned first_token) {
    using Place = Stage<E, W, TOKENS>;
    __shared__ Place stages[STAGES];
    Supply<E, W, TOKENS> supply(p, first_row, first_token);
    Acc<E> lanes[TOKENS] = {};
    unsigned count = whole_blocks<E>(p.cols) ? p.cols / Place::COLS : 0;
    for (unsigned s = 0; s + 1 < STAGES; s++) {
        if (s < count)
            supply.start_w(stages[s], s);
        end_group();
    }
    wait_for_last_kernel();
    supply.bring_x(stages, count);
    for (unsigned s = 0; s < count; s++) {
        wait_for_groups<STAGES - 2>();
        __syncthreads();
        // Into the place of the stage that every thread has just left behind.
        if (unsigned next = s + STAGES - 1; next < count) {
            supply.start_w(stages[next % STAGES], next);
            supply.start_x(stages[next % STAGES], next);
        }
        end_group();
        add_stage(lanes, stages[s % STAGES]);
    }
    unsigned row = first_row + threadIdx.x / LANES;
    add_blocks(lanes, p, row, first_token, count * (Place::COLS / PER_UNIT<E> / LANES), blocks_of<E>(p.cols));
    for (unsigned t = 0; t < TOKENS; t++) {
        Acc<E> sum = folded(lanes[t]);
        if (threadIdx.x % LANES == 0)
            p.store(first_token + t, row, sum);
    }
}

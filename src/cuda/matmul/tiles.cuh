// Products with many tokens, which take as long as their multiply-adds: a block of threads computes a tile of y, and each of its
// sixteen warps one lane of all of it. So a warp works as in any matrix product, on its own sixteenth of the columns.
#pragma once
#include "units.cuh"

/// Four numbers that are read at once.
template <class T> struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
    T at[4];
};

/// The sizes of a tile.
template <class E> struct TileOf {
    /// Rows and tokens of a thread; a warp is 8 threads by 4.
    static constexpr unsigned ROWS = sizeof(E) == 8 ? 4 : 8, TOKENS = 8;
    static constexpr unsigned ALL_ROWS = 8 * ROWS, ALL_TOKENS = 4 * TOKENS;
    /// Blocks of the columns that are in shared memory at once.
    static constexpr unsigned BLOCKS = sizeof(E) == 8 ? 2 : 4;
    static constexpr unsigned UNITS = BLOCKS * LANES;
    /// Fours of units that a thread brings there.
    static constexpr unsigned FOURS = (ALL_ROWS + ALL_TOKENS) * UNITS / 4 / (32 * LANES);

    /// For each unit, those of all rows and then those of all tokens.
    Unit<E> units[UNITS][ALL_ROWS + ALL_TOKENS];
};
constexpr unsigned TILE_THREADS = 32 * LANES;

/// Where row or token `i` stands among those of a unit: stores of a warp, four units by eight rows, meet no bank twice.
__device__ inline unsigned swizzled(unsigned i, unsigned unit) { return i ^ (unit / 4 % 4 * 8); }

/// Four units of a row, from `first` on; `WHOLE` says that the row has them.
template <bool WHOLE, class E, class W> __device__ inline Four<Unit<E>> four_units(Row<E, W> row, unsigned first) {
    Four<Unit<E>> four;
    if constexpr (!WHOLE) {
        for (unsigned i = 0; i < 4; i++)
            four.at[i] = row.unit(first + i);
    } else if constexpr (PER_UNIT<E> == 2) {
        four = *(const Four<Unit<E>> *)(row.numbers + 2 * first);
    } else {
        Four<W> stored = *(const Four<W> *)(row.numbers + first);
        for (unsigned i = 0; i < 4; i++)
            four.at[i] = widen<E>(stored.at[i]);
    }
    return four;
}

/// A thread's part in bringing units from global to shared memory, through its registers.
template <class E, class W> struct Transfer {
    using Tile = TileOf<E>;
    const Product<E, W> &p;
    unsigned first_row, first_token;
    Four<Unit<E>> fours[Tile::FOURS];

    /// The column of the tile, and the first of four units, of this thread's `i`th four: a warp brings eight rows' 16 units.
    __device__ unsigned column(unsigned i) const {
        unsigned four = threadIdx.x + i * TILE_THREADS;
        return four / 4 % 8 + four / (8 * Tile::UNITS / 4) * 8;
    }
    __device__ unsigned unit(unsigned i) const {
        unsigned four = threadIdx.x + i * TILE_THREADS;
        return four % 4 * 4 + four / 32 % (Tile::UNITS / 16) * 16;
    }

    /// Reads the units from `first` on; `WHOLE` says that all of them are within the rows.
    template <bool WHOLE> __device__ void read(unsigned first) {
#pragma unroll
        for (unsigned i = 0; i < Tile::FOURS; i++) {
            unsigned column = this->column(i), at = first + unit(i);
            fours[i] = column < Tile::ALL_ROWS
                           ? four_units<WHOLE>(p.w_row(first_row + column), at)
                           : four_units<WHOLE>(p.x_row(first_token + column - Tile::ALL_ROWS), at);
        }
    }

    /// Stores them.
    __device__ void store(Tile &tile) const {
#pragma unroll
        for (unsigned i = 0; i < Tile::FOURS; i++)
#pragma unroll
            for (unsigned j = 0; j < 4; j++)
                tile.units[unit(i) + j][swizzled(column(i), unit(i))] = fours[i].at[j];
    }
};

/// The rows or tokens of a thread, `COUNT` of them, of the unit of its lane: fours that are `distance` apart.
template <unsigned COUNT, class U> struct Operand {
    U at[COUNT];

    __device__ Operand(const U *units, unsigned first, unsigned distance, unsigned unit) {
#pragma unroll
        for (unsigned four = 0; four < COUNT / 4; four++) {
            Four<U> read = *(const Four<U> *)(units + swizzled(first + four * distance, unit));
#pragma unroll
            for (unsigned i = 0; i < 4; i++)
                at[four * 4 + i] = read.at[i];
        }
    }
};

/// A thread's place in its warp. Neighbouring threads share operands, so that few of them are read at once.
struct Place {
    unsigned row, token;

    __device__ Place() {
        unsigned thread = threadIdx.x % 32;
        row = thread / 2 % 8;
        token = thread % 2 + thread / 16 * 2;
    }
};

/// Adds a block of the columns to a thread's sums.
template <class E, class Sums> __device__ inline void add_block(Sums &sums, const TileOf<E> &tile, unsigned block) {
    using Tile = TileOf<E>;
    Place place;
    unsigned unit = block * LANES + threadIdx.x / 32;
    Operand<Tile::ROWS, Unit<E>> w(tile.units[unit], place.row * 4, 32, unit);
    Operand<Tile::TOKENS, Unit<E>> x(tile.units[unit] + Tile::ALL_ROWS, place.token * 4, 16, unit);
#pragma unroll
    for (unsigned r = 0; r < Tile::ROWS; r++)
#pragma unroll
        for (unsigned t = 0; t < Tile::TOKENS; t++)
            sums[r][t] = multiply_add(sums[r][t], w.at[r], x.at[t]);
}

/// Adds the lanes of all sums in the tree: warp l gets those of warp l + 8, then l + 4, … The first warp has the results. Half of a
/// thread's sums at once fit into `shared`.
template <class A, unsigned R, unsigned T> __device__ inline void fold_warps(A (&sums)[R][T], A *shared) {
    unsigned warp = threadIdx.x / 32, thread = threadIdx.x % 32;
#pragma unroll
    for (unsigned part = 0; part < 2; part++) {
        for (unsigned half = 8; half > 0; half /= 2) {
            __syncthreads();
            A *at = shared + warp % half * (R / 2 * T * 32) + thread;
            if (warp >= half && warp < 2 * half) {
#pragma unroll
                for (unsigned i = 0; i < R / 2 * T; i++)
                    at[i * 32] = sums[part * R / 2 + i / T][i % T];
            }
            __syncthreads();
            if (warp < half) {
#pragma unroll
                for (unsigned i = 0; i < R / 2 * T; i++) {
                    A &sum = sums[part * R / 2 + i / T][i % T];
                    sum = sum + at[i * 32];
                }
            }
        }
    }
}

/// Adds the blocks from the one in `tiles` that `block` belongs to on, as long as `WHOLE` says how to read the next. Returns the first
/// block that is left.
template <bool WHOLE, class E, class W, class Sums>
__device__ inline unsigned add_tiles(Sums &sums, TileOf<E> (&tiles)[2], Transfer<E, W> &transfer, unsigned block,
                                     unsigned blocks) {
    using Tile = TileOf<E>;
    for (unsigned next = block + Tile::BLOCKS; WHOLE ? next + Tile::BLOCKS <= blocks : next < blocks; block = next, next += Tile::BLOCKS) {
        transfer.template read<WHOLE>(next * LANES);
#pragma unroll
        for (unsigned i = 0; i < Tile::BLOCKS; i++)
            add_block<E>(sums, tiles[block / Tile::BLOCKS % 2], i);
        transfer.store(tiles[next / Tile::BLOCKS % 2]);
        __syncthreads();
    }
    return block;
}

/// The products of a tile of rows and tokens.
template <class E, class W>
__device__ void multiply_tile(const Product<E, W> &p, unsigned first_row, unsigned first_token) {
    using Tile = TileOf<E>;
    __shared__ Tile tiles[2];
    Acc<E> sums[Tile::ROWS][Tile::TOKENS] = {};
    Transfer<E, W> transfer{p, first_row, first_token};
    unsigned blocks = blocks_of<E>(p.cols), block = 0;
    transfer.template read<false>(0);
    transfer.store(tiles[0]);
    __syncthreads();
    // The tile of `block` is in shared memory.
    if (whole_blocks<E>(p.cols))
        block = add_tiles<true>(sums, tiles, transfer, block, blocks);
    block = add_tiles<false>(sums, tiles, transfer, block, blocks);
    for (unsigned i = 0; block + i < blocks; i++)
        add_block<E>(sums, tiles[block / Tile::BLOCKS % 2], i);
    __syncthreads();
    static_assert(sizeof(tiles) >= Tile::ROWS / 2 * Tile::TOKENS * 32 * 8 * sizeof(Acc<E>), "half of the sums of eight warps");
    fold_warps(sums, (Acc<E> *)tiles);
    if (threadIdx.x >= 32)
        return;
    Place place;
#pragma unroll
    for (unsigned t = 0; t < Tile::TOKENS; t++)
#pragma unroll
        for (unsigned r = 0; r < Tile::ROWS; r++)
            p.store(first_token + place.token * 4 + t / 4 * 16 + t % 4, first_row + place.row * 4 + r / 4 * 32 + r % 4,
                    sums[r][t]);
}

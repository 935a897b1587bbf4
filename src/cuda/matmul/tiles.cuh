// Products with many tokens, which take as long as their multiply-adds: a block of threads computes a tile of y, and each of its
// sixteen warps one lane of all of it. So a warp works as in any matrix product, on its own sixteenth of the columns.
#pragma once
#include "units.cuh"

/// The sizes of a tile.
template <class E> struct TileOf {
    /// Rows and tokens of a thread; a warp is 8 threads by 4.
    static constexpr unsigned ROWS = sizeof(E) == 8 ? 4 : 8, TOKENS = 8;
    static constexpr unsigned ALL_ROWS = 8 * ROWS, ALL_TOKENS = 4 * TOKENS;
    /// Blocks of the columns that are in shared memory at once.
    static constexpr unsigned BLOCKS = sizeof(E) == 8 ? 2 : 4;
    static constexpr unsigned UNITS = BLOCKS * LANES;
    /// Rows or tokens that the threads bring there at once, four units each, and how often they do.
    static constexpr unsigned COLUMNS = 32 * LANES * 4 / UNITS, TIMES = (ALL_ROWS + ALL_TOKENS) / COLUMNS;

    /// For each unit, those of all rows and then those of all tokens.
    Unit<E> units[UNITS][ALL_ROWS + ALL_TOKENS];
};
constexpr unsigned TILE_THREADS = 32 * LANES;

/// Where row or token `i` stands among those of a unit: stores of a warp, four units by eight rows, meet no bank twice.
__device__ inline unsigned swizzled(unsigned i, unsigned unit) { return i ^ (unit / 4 % 4 * 8); }

/// The first four units of a row; `WHOLE` says that it has them.
template <bool WHOLE, class E, class W> __device__ inline Four<Unit<E>> four_units(Row<E, W> row) {
    Four<Unit<E>> four;
    if constexpr (!WHOLE) {
        for (unsigned i = 0; i < 4; i++)
            four.at[i] = row.unit(i);
    } else if constexpr (PER_UNIT<E> == 2) {
        four = *(const Four<Unit<E>> *)row.numbers;
    } else {
        Four<W> stored = *(const Four<W> *)row.numbers;
        for (unsigned i = 0; i < 4; i++)
            four.at[i] = widen<E>(stored.at[i]);
    }
    return four;
}

/// A thread's part in bringing units from global to shared memory, through its registers. A column is a row of W or a token.
template <class E, class W> struct Transfer {
    using Tile = TileOf<E>;
    /// Its columns are `column`, `column` + Tile::COLUMNS, …; in each it has four units from `unit` on. So a warp has 16 units of
    /// eight columns.
    unsigned column, unit;
    Row<E, W> rows[Tile::TIMES];
    Row<E, E> tokens[Tile::TIMES];
    Four<Unit<E>> fours[Tile::TIMES];

    __device__ Transfer(const Product<E, W> &p, unsigned first_row, unsigned first_token) {
        unsigned group = threadIdx.x / 32;
        unit = threadIdx.x % 4 * 4 + group % (Tile::UNITS / 16) * 16;
        column = threadIdx.x / 4 % 8 + group / (Tile::UNITS / 16) * 8;
#pragma unroll
        for (unsigned i = 0; i < Tile::TIMES; i++) {
            rows[i] = p.w_row(first_row + column + i * Tile::COLUMNS);
            tokens[i] = p.x_row(first_token + column + i * Tile::COLUMNS - Tile::ALL_ROWS);
            rows[i].skip(unit);
            tokens[i].skip(unit);
        }
    }

    /// Whether the `i`th column is a row; known to the compiler unless the columns of one time are both.
    __device__ bool is_row(unsigned i) const {
        return (i + 1) * Tile::COLUMNS <= Tile::ALL_ROWS || (i * Tile::COLUMNS < Tile::ALL_ROWS && column < Tile::ALL_ROWS);
    }

    /// Reads the next units; `WHOLE` says that all of them are within the rows.
    template <bool WHOLE> __device__ void read() {
#pragma unroll
        for (unsigned i = 0; i < Tile::TIMES; i++) {
            fours[i] = is_row(i) ? four_units<WHOLE>(rows[i]) : four_units<WHOLE>(tokens[i]);
            rows[i].skip(Tile::UNITS);
            tokens[i].skip(Tile::UNITS);
        }
    }

    /// Stores them.
    __device__ void store(Tile &tile) const {
#pragma unroll
        for (unsigned i = 0; i < Tile::TIMES; i++)
#pragma unroll
            for (unsigned j = 0; j < 4; j++)
                tile.units[unit + j][swizzled(column, unit) + i * Tile::COLUMNS] = fours[i].at[j];
    }
};

/// The first row and token of a thread, which has four rows and, 32 further on, four more, and eight tokens. Neighbouring threads
/// share them, so that a warp reads few operands at once.
struct Place {
    unsigned row, token;

    __device__ Place() {
        unsigned thread = threadIdx.x % 32;
        row = thread / 2 % 8 * 4;
        token = (thread % 2 + thread / 16 * 2) * 8;
    }
};

/// Reads `COUNT` rows or tokens of a unit, fours that are `DISTANCE` apart.
template <unsigned COUNT, unsigned DISTANCE, class U> __device__ inline void read_fours(U (&to)[COUNT], const U *from) {
#pragma unroll
    for (unsigned i = 0; i < COUNT; i += 4) {
        Four<U> four = *(const Four<U> *)(from + i / 4 * DISTANCE);
#pragma unroll
        for (unsigned j = 0; j < 4; j++)
            to[i + j] = four.at[j];
    }
}

/// Adds to a thread's sums the unit of its lane of block `block` in a tile.
template <class E, class Sums>
__device__ inline void add_block(Sums &sums, const TileOf<E> &tile, Place place, unsigned block) {
    using Tile = TileOf<E>;
    unsigned lane = threadIdx.x / 32;
    const Unit<E> *units = tile.units[block * LANES + lane];
    Unit<E> w[Tile::ROWS], x[Tile::TOKENS];
    read_fours<Tile::ROWS, 32>(w, units + swizzled(place.row, lane));
    read_fours<Tile::TOKENS, 4>(x, units + Tile::ALL_ROWS + swizzled(place.token, lane));
#pragma unroll
    for (unsigned r = 0; r < Tile::ROWS; r++)
#pragma unroll
        for (unsigned t = 0; t < Tile::TOKENS; t++)
            sums[r][t] = multiply_add(sums[r][t], w[r], x[t]);
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

/// Adds all blocks of tile `here`, and brings the next into the other meanwhile.
template <bool WHOLE, class E, class W, class Sums>
__device__ inline void add_and_bring_next(Sums &sums, TileOf<E> (&tiles)[2], unsigned &here, Place place,
                                          Transfer<E, W> &transfer) {
    transfer.template read<WHOLE>();
#pragma unroll
    for (unsigned i = 0; i < TileOf<E>::BLOCKS; i++)
        add_block<E>(sums, tiles[here], place, i);
    here = 1 - here;
    transfer.store(tiles[here]);
    __syncthreads();
}

/// The products of a tile of rows and tokens.
template <class E, class W>
__device__ void multiply_tile(const Product<E, W> &p, unsigned first_row, unsigned first_token) {
    using Tile = TileOf<E>;
    __shared__ Tile tiles[2];
    Acc<E> sums[Tile::ROWS][Tile::TOKENS] = {};
    Place place;
    Transfer<E, W> transfer(p, first_row, first_token);
    unsigned blocks = blocks_of<E>(p.cols), block = 0, here = 0;
    transfer.template read<false>();
    transfer.store(tiles[here]);
    __syncthreads();
    if (whole_blocks<E>(p.cols))
        for (; block + 2 * Tile::BLOCKS <= blocks; block += Tile::BLOCKS)
            add_and_bring_next<true>(sums, tiles, here, place, transfer);
    for (; block + Tile::BLOCKS < blocks; block += Tile::BLOCKS)
        add_and_bring_next<false>(sums, tiles, here, place, transfer);
    for (unsigned i = 0; block + i < blocks; i++)
        add_block<E>(sums, tiles[here], place, i);
    static_assert(sizeof(tiles) >= Tile::ROWS / 2 * Tile::TOKENS * 32 * 8 * sizeof(Acc<E>), "half of the sums of eight warps");
    fold_warps(sums, (Acc<E> *)tiles);
    if (threadIdx.x >= 32)
        return;
#pragma unroll
    for (unsigned t = 0; t < Tile::TOKENS; t++)
#pragma unroll
        for (unsigned r = 0; r < Tile::ROWS; r++)
            p.store(first_token + place.token + t, first_row + place.row + r / 4 * 32 + r % 4, sums[r][t]);
}

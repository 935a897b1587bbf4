// What one lane takes of a block, and how it is read: the difference between the types of a product.
#pragma once
#include "../lanes.cuh"

/// Two bf16 side by side: of elements 2l and 2l + 1 of a block of 32, the first in the lower half.
struct bf16_pair {
    unsigned bits;
};

/// The unit of a product of E: of a row of 16 · k elements, or of 32 · k in bf16, lane l takes units l, l + 16, …
template <class E> struct UnitOf {
    using type = E;
};
template <> struct UnitOf<bf16> {
    using type = bf16_pair;
};
template <class E> using Unit = typename UnitOf<E>::type;

/// Elements of a unit.
template <class E> constexpr unsigned PER_UNIT = sizeof(Unit<E>) / sizeof(E);

/// A lane after one unit.
template <class A> __device__ inline A multiply_add(A lane, A w, A x) { return fused(w, x, lane); }
__device__ inline f32 multiply_add(f32 lane, bf16_pair w, bf16_pair x) {
    f32 odd = flushing_fused(__uint_as_float(w.bits & 0xffff0000), __uint_as_float(x.bits & 0xffff0000), lane);
    return flushing_fused(widened(w.bits), widened(x.bits), odd);
}

/// A row of a matrix of W that is multiplied in E.
template <class E, class W> struct Row {
    const W *numbers;
    /// Negative beyond the end of the row.
    int cols;

    /// Leaves its first units behind.
    __device__ void skip(unsigned units) {
        numbers += units * PER_UNIT<E>;
        cols -= (int)(units * PER_UNIT<E>);
    }

    /// Unit `i`, which is zeros from `cols` on.
    __device__ Unit<E> unit(int i) const {
        if constexpr (PER_UNIT<E> == 1) {
            return i < cols ? widen<E>(numbers[i]) : E(0);
        } else {
            unsigned low = 2 * i < cols ? numbers[2 * i].bits : 0;
            unsigned high = 2 * i + 1 < cols ? numbers[2 * i + 1].bits : 0;
            return {low | high << 16};
        }
    }

    /// Unit `i` of a row of whole blocks.
    __device__ Unit<E> whole_unit(unsigned i) const {
        if constexpr (PER_UNIT<E> == 1)
            return widen<E>(numbers[i]);
        else
            return ((const bf16_pair *)numbers)[i];
    }
};

/// Whether rows of `cols` elements are whole blocks, so that units need no bounds and may be read in vectors.
template <class E> __device__ inline bool whole_blocks(unsigned cols) { return cols % (LANES * PER_UNIT<E>) == 0; }

/// Blocks of a row of `cols` elements, the last of which may be incomplete.
template <class E> __device__ inline unsigned blocks_of(unsigned cols) {
    return (cols + LANES * PER_UNIT<E> - 1) / (LANES * PER_UNIT<E>);
}

/// A product's number with a bias, rounded, and before that too if `rounded_first`.
template <class E> __device__ inline E biased(Acc<E> sum, Acc<E> bias, bool rounded_first) {
    Acc<E> first = rounded_first ? acc(rounded<E>(sum)) : sum;
    return rounded<E>(first + bias);
}

/// y = W x for every x: `x` is `[tokens, cols]`, `w` `[rows, cols]`, and the products go to `sums`; rounded, and with a bias if that is
/// not null, they go to `out`. Each of these is `[tokens, rows]` or null. A stride is the distance of two rows in numbers.
template <class E, class W> struct Product {
    const E *x;
    const W *w;
    const Acc<E> *bias;
    bool rounded_first;
    Acc<E> *sums;
    E *out;
    unsigned tokens, rows, cols;
    size_t x_stride, w_stride, y_stride;

    __device__ Row<E, E> x_row(unsigned token) const { return {x + least(token, tokens - 1) * x_stride, (int)cols}; }
    __device__ Row<E, W> w_row(unsigned row) const { return {w + least(row, rows - 1) * w_stride, (int)cols}; }

    /// Stores a dot product, if its place is within y.
    __device__ void store(unsigned token, unsigned row, Acc<E> sum) const {
        if (token >= tokens || row >= rows)
            return;
        if (sums)
            sums[token * y_stride + row] = sum;
        if (out)
            out[token * y_stride + row] = bias ? biased<E>(sum, bias[row], rounded_first) : rounded<E>(sum);
    }
};

//! The matrix product: y = W x, every y one dot product in the documented order.

use half::bf16;
use rayon::prelude::*;

use super::lanes::Lanes;
use super::{Level, PARALLEL_FROM};
use crate::tensor::{Element, Matrix, Storage, Tensor};

/// The rows of a weight matrix W `[out, in]`: as a checkpoint stores them, or in the compute type.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a, E> {
    /// As stored. Numbers are widened exactly, or rounded once where the compute type is narrower.
    Stored(&'a Tensor),
    /// Row-major numbers of the compute type; the second field is the length of a row.
    Typed(&'a [E], usize),
}

impl<E: Element> Rows<'_, E> {
    /// The number of rows: the length of y.
    pub fn rows(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.rows(),
            Self::Typed(data, cols) => data.len() / cols,
        }
    }

    /// The length of a row, and of x.
    pub fn cols(&self) -> usize {
        match self {
            Self::Stored(tensor) => tensor.cols(),
            Self::Typed(_, cols) => *cols,
        }
    }
}

impl<'a, E: Element> From<&'a Matrix<E>> for Rows<'a, E> {
    fn from(matrix: &'a Matrix<E>) -> Self {
        Self::Typed(matrix.as_slice(), matrix.cols())
    }
}

impl<'a, E> From<&'a Tensor> for Rows<'a, E> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Stored(tensor)
    }
}

/// W x for every row x of `x` `[tokens, in]`: `[tokens, out]`, not yet rounded to the compute type.
///
/// Threads of the current rayon pool share the rows of W.
pub fn matmul<'w, E: Element>(
    level: Level,
    x: &Matrix<E>,
    w: impl Into<Rows<'w, E>>,
) -> Matrix<E::Acc> {
    let w = w.into();
    let (tokens, out) = (x.rows(), w.rows());
    assert_eq!(
        x.cols(),
        w.cols(),
        "x and W disagree on the length of a row"
    );
    // [out, tokens], so that every thread writes one piece.
    let mut transposed = vec![E::Acc::default(); out * tokens];
    let threads = rayon::current_num_threads();
    if threads == 1 || out * tokens * x.cols() < PARALLEL_FROM {
        rows_into(level, x, &w, 0, &mut transposed);
    } else {
        // Several pieces a thread, so that a slow one holds nobody up; whole tiles.
        let rows = out.div_ceil(4 * threads).next_multiple_of(16);
        transposed
            .par_chunks_mut(rows * tokens)
            .enumerate()
            .for_each(|(i, piece)| rows_into(level, x, &w, i * rows, piece));
    }
    if tokens == 1 {
        return Matrix::from_vec(out, transposed);
    }
    transpose(&transposed, tokens)
}

/// The dot product of two vectors of equal length.
pub fn dot<E: Element>(level: Level, a: &[E], b: &[E]) -> E::Acc {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    let mut out = [E::Acc::default()];
    E::panel(
        level,
        Panel {
            x: a,
            w: b,
            cols: a.len(),
            out: &mut out,
        },
    );
    out[0]
}

/// `[out, tokens]` as `[tokens, out]`.
fn transpose<A: Element>(from: &[A], tokens: usize) -> Matrix<A> {
    let out = from.len() / tokens;
    let mut to = Matrix::zeros(tokens, out);
    // In blocks, so that both sides stay in the cache.
    for block in (0..out).step_by(64) {
        for (t, row) in to.iter_rows_mut().enumerate() {
            for o in block..out.min(block + 64) {
                row[o] = from[o * tokens + t];
            }
        }
    }
    to
}

/// Rows `first`… of W times all of `x`, into `out` `[rows, tokens]`.
fn rows_into<E: Element>(
    level: Level,
    x: &Matrix<E>,
    w: &Rows<'_, E>,
    first: usize,
    out: &mut [E::Acc],
) {
    let (cols, rows) = (x.cols(), out.len() / x.rows());
    let x = x.as_slice();
    let tensor = match *w {
        Rows::Typed(data, _) => {
            let w = &data[first * cols..(first + rows) * cols];
            return E::panel(level, Panel { x, w, cols, out });
        }
        Rows::Stored(tensor) => tensor,
    };
    if tensor.storage() == Storage::Bf16 {
        let bytes = &tensor.bytes()[2 * first * cols..2 * (first + rows) * cols];
        // A file may put them at an odd address; then they go the slow way below.
        if let Ok(w) = bytemuck::try_cast_slice::<u8, bf16>(bytes) {
            return E::bf16_panel(level, Panel { x, w, cols, out });
        }
    }
    // Any other type: a few rows at a time, converted.
    const AT_ONCE: usize = 16;
    let tokens = out.len() / rows;
    let mut converted = Matrix::zeros(AT_ONCE.min(rows), cols);
    for (block, out) in out.chunks_mut(AT_ONCE * tokens).enumerate() {
        let rows = out.len() / tokens;
        for (r, row) in converted.iter_rows_mut().take(rows).enumerate() {
            tensor.read_row(first + block * AT_ONCE + r, row);
        }
        let w = &converted.as_slice()[..rows * cols];
        E::panel(level, Panel { x, w, cols, out });
    }
}

/// Activations `x` `[tokens, cols]`, weights `w` `[rows, cols]`, and where their products go: `out`
/// `[rows, tokens]`.
#[doc(hidden)]
pub struct Panel<'a, X: Element, W> {
    pub(super) x: &'a [X],
    pub(super) w: &'a [W],
    pub(super) cols: usize,
    pub(super) out: &'a mut [X::Acc],
}

impl<'a, X: Element, W> Panel<'a, X, W> {
    /// A panel; the lengths must agree.
    pub(crate) fn new(x: &'a [X], w: &'a [W], cols: usize, out: &'a mut [X::Acc]) -> Self {
        assert_eq!(
            out.len(),
            (x.len() / cols) * (w.len() / cols),
            "panel sizes"
        );
        Self { x, w, cols, out }
    }
}

/// All products of a panel, in register tiles.
#[inline(always)]
pub(super) fn panel<L, X, W, const B: usize>(lanes: L, panel: Panel<'_, X, W>)
where
    L: Lanes<X, W, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let Panel { x, w, cols, out } = panel;
    let tokens = x.len() / cols;
    let mut rows = w.chunks_exact(cols);
    let mut out = out.chunks_mut(tokens);
    loop {
        let left = rows.len();
        match L::TILE.0 {
            4 if left >= 4 => row_of_tiles::<L, X, W, B, 4>(lanes, x, cols, &mut rows, &mut out),
            4 | 2 if left >= 2 => {
                row_of_tiles::<L, X, W, B, 2>(lanes, x, cols, &mut rows, &mut out)
            }
            _ if left >= 1 => row_of_tiles::<L, X, W, B, 1>(lanes, x, cols, &mut rows, &mut out),
            _ => return,
        }
    }
}

/// `R` rows of W times all of `x`.
#[inline(always)]
fn row_of_tiles<'a, L, X, W, const B: usize, const R: usize>(
    lanes: L,
    x: &[X],
    cols: usize,
    rows: &mut std::slice::ChunksExact<'a, W>,
    out: &mut std::slice::ChunksMut<'a, X::Acc>,
) where
    L: Lanes<X, W, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let w: [&[W]; R] = std::array::from_fn(|_| rows.next().unwrap_or(&[]));
    let mut out: [&mut [X::Acc]; R] = std::array::from_fn(|_| out.next().unwrap_or(&mut []));
    let tokens = x.len() / cols;
    let mut t = 0;
    while t < tokens {
        let left = tokens - t;
        let x = &x[t * cols..];
        match L::TILE.1 {
            4 if left >= 4 => t += tile::<L, X, W, B, R, 4>(lanes, w, x, t, &mut out),
            4 | 2 if left >= 2 => t += tile::<L, X, W, B, R, 2>(lanes, w, x, t, &mut out),
            _ => t += tile::<L, X, W, B, R, 1>(lanes, w, x, t, &mut out),
        }
    }
}

/// `R` rows of W times the first `T` rows of `x`: all sums stay in registers. Returns `T`.
#[inline(always)]
fn tile<L, X, W, const B: usize, const R: usize, const T: usize>(
    lanes: L,
    w: [&[W]; R],
    x: &[X],
    token: usize,
    out: &mut [&mut [X::Acc]; R],
) -> usize
where
    L: Lanes<X, W, B, Acc = X::Acc>,
    X: Element,
    W: Element,
{
    let cols = w[0].len();
    let w = w.map(|row| row[..cols].as_chunks::<B>());
    let x: [_; T] = std::array::from_fn(|t| x[t * cols..(t + 1) * cols].as_chunks::<B>());
    let mut sums = [[lanes.zero(); T]; R];
    for block in 0..cols / B {
        let xs: [_; T] = std::array::from_fn(|t| lanes.load(&x[t].0[block]));
        for r in 0..R {
            let wide = lanes.widen(&w[r].0[block]);
            for t in 0..T {
                sums[r][t] = lanes.multiply_add(sums[r][t], wide, xs[t]);
            }
        }
    }
    if !cols.is_multiple_of(B) {
        let xs: [_; T] = std::array::from_fn(|t| lanes.load(&padded(x[t].1)));
        for r in 0..R {
            let wide = lanes.widen(&padded(w[r].1));
            for t in 0..T {
                sums[r][t] = lanes.multiply_add(sums[r][t], wide, xs[t]);
            }
        }
    }
    for r in 0..R {
        for t in 0..T {
            out[r][token + t] = lanes.fold(sums[r][t]);
        }
    }
    T
}

/// An incomplete block, filled with zeros.
#[inline(always)]
fn padded<T: Element, const B: usize>(rest: &[T]) -> [T; B] {
    std::array::from_fn(|i| rest.get(i).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::tensor::Float;

    /// Numbers over the exponents `low..high`, with some zeros.
    fn numbers<E: Element>(n: usize, seed: u64, low: i32, high: i32) -> Vec<E> {
        let mut state = seed;
        let mut next = move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            state >> 33
        };
        let number = |_| {
            let exponent = low + (next() % (high - low) as u64) as i32;
            let mantissa = next() as f64 / f64::from(1u32 << 30) - 1.0;
            let keep = !next().is_multiple_of(17);
            E::from_f64(if keep {
                mantissa * 2f64.powi(exponent)
            } else {
                0.0
            })
        };
        (0..n).map(number).collect()
    }

    /// The documented order, for f32 and f64, in as few lines as it takes.
    fn naive<A: Float>(w: &[A], x: &[A]) -> A {
        let mut lanes = [A::ZERO; 16];
        for (i, (&w, &x)) in w.iter().zip(x).enumerate() {
            lanes[i % 16] = w.mul_add(x, lanes[i % 16]);
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] = lanes[l] + lanes[l + half];
            }
        }
        lanes[0]
    }

    fn every_level_agrees<E: Element>(low: i32, high: i32) {
        for cols in [1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 640] {
            for (rows, tokens) in [(1, 1), (3, 1), (5, 2), (4, 4), (9, 7)] {
                let x = Matrix::from_vec(cols, numbers::<E>(tokens * cols, 1, low, high));
                let w = Matrix::from_vec(cols, numbers::<E>(rows * cols, 2, low, high));
                let want = matmul(Level::Scalar, &x, &w);
                for level in Level::available() {
                    let got = matmul(level, &x, &w);
                    assert_eq!(
                        bits(&got),
                        bits(&want),
                        "{level} {rows}x{cols} {tokens} tokens"
                    );
                    let single = dot(level, x.row(tokens - 1), w.row(0));
                    assert_eq!(
                        single.to_f64().to_bits(),
                        want.row(tokens - 1)[0].to_f64().to_bits()
                    );
                }
            }
        }
    }

    fn bits<A: Element>(m: &Matrix<A>) -> Vec<u64> {
        m.as_slice().iter().map(|x| x.to_f64().to_bits()).collect()
    }

    #[test]
    fn every_level_gives_the_scalar_bits_f64() {
        every_level_agrees::<f64>(-30, 30);
    }

    #[test]
    fn every_level_gives_the_scalar_bits_f32() {
        every_level_agrees::<f32>(-20, 20);
    }

    #[test]
    fn every_level_gives_the_scalar_bits_bf16() {
        every_level_agrees::<bf16>(-20, 20);
    }

    #[test]
    fn every_level_gives_the_scalar_bits_bf16_denormals() {
        // Products around the smallest normal number, and inputs below it.
        every_level_agrees::<bf16>(-66, -60);
        every_level_agrees::<bf16>(-130, -50);
    }

    #[test]
    fn the_scalar_level_follows_the_documented_order() {
        for cols in [1, 7, 16, 33, 640] {
            let x = numbers::<f32>(cols, 3, -20, 20);
            let w = numbers::<f32>(cols, 4, -20, 20);
            // Zero padding turns −0 into +0 and changes nothing else.
            let want = naive(&w, &x) + 0.0;
            assert_eq!((dot(Level::Scalar, &x, &w) + 0.0).to_bits(), want.to_bits());
        }
    }

    #[test]
    fn a_sum_in_another_order_is_noticed() {
        let x = numbers::<f32>(640, 3, -20, 20);
        let w = numbers::<f32>(640, 4, -20, 20);
        let sequential = x
            .iter()
            .zip(&w)
            .fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum));
        assert_ne!(dot(Level::Scalar, &x, &w), sequential);
    }

    #[test]
    fn stored_weights_are_the_widened_ones() {
        let (rows, cols) = (21, 50);
        let x = Matrix::from_vec(cols, numbers::<f32>(3 * cols, 5, -8, 8));
        let w: Vec<bf16> = numbers(rows * cols, 6, -8, 8);
        let widened: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
        let want = matmul(Level::best(), &x, &Matrix::from_vec(cols, widened.clone()));
        let as_bf16: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        let as_f64: Vec<u8> = widened
            .iter()
            .flat_map(|&w| f64::from(w).to_le_bytes())
            .collect();
        // The same bytes at an odd address take the slow way.
        let odd = Bytes::from([&[0], &as_bf16[..]].concat()).slice(1..);
        for (storage, data) in [
            (Storage::Bf16, Bytes::from(as_bf16)),
            (Storage::Bf16, odd),
            (Storage::F64, Bytes::from(as_f64)),
        ] {
            let tensor = Tensor::new(storage, vec![rows, cols], data).unwrap();
            assert_eq!(
                bits(&matmul(Level::best(), &x, &tensor)),
                bits(&want),
                "{storage}"
            );
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let (rows, cols) = (700, 100);
        let x = Matrix::from_vec(cols, numbers::<f32>(5 * cols, 5, -8, 8));
        let w = Matrix::from_vec(cols, numbers::<f32>(rows * cols, 6, -8, 8));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| bits(&matmul(Level::best(), &x, &w)))
        };
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(7));
    }
}

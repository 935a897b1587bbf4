//! The matrix product of the `gemm` crate, over weights as they are stored.
//!
//! f64 and f32 are computed by the crate's f64 and f32 kernels. bf16 is computed by its f32 kernels: both sides are
//! widened exactly, products and sums are f32 (without the flushing of denormals that `VDPBF16PS` does), and the caller
//! rounds each sum to bf16 once.

use ::gemm::Parallelism;
use rayon::prelude::*;

use super::rows::Rows;
use crate::kernels::elementwise;
use crate::kernels::simd::Level;
use crate::tensor::{Element, Float, Matrix};

/// Bytes of weights that a thread widens at once: what a core's second cache holds beside some activations.
const PANEL: usize = 1 << 19;

/// W x for every row x of `x` `[tokens, in]`: `[tokens, out]`, not yet rounded to the compute type.
///
/// `level` is for widening `x` alone. Threads of the current rayon pool share panels of rows, whose size does not depend on how many threads there are.
pub(super) fn matmul<E: Element>(level: Level, x: &Matrix<E>, w: Rows<'_, E>) -> Matrix<E::Acc> {
    let (rows, cols) = (w.rows(), w.cols());
    assert_eq!(cols, x.cols(), "x and W disagree on the length of a row");
    let x = elementwise::map(level, x, E::acc);
    let at_once = (PANEL / (cols * size_of::<E::Acc>())).max(1);
    let panels = (0..rows.div_ceil(at_once)).into_par_iter().map(|panel| {
        let first = panel * at_once;
        product(&x, &widened(&w, first, at_once.min(rows - first)))
    });
    let parts: Vec<_> = panels.collect();
    let mut y = Matrix::recycled(x.rows(), rows);
    for (panel, part) in parts.iter().enumerate() {
        for (y, part) in y.iter_rows_mut().zip(part.iter_rows()) {
            y[panel * at_once..][..part.len()].copy_from_slice(part);
        }
    }
    y
}

/// Some rows of W in the type of sums, each number rounded to the compute type where that is narrower than what is
/// stored.
fn widened<E: Element>(w: &Rows<'_, E>, first: usize, rows: usize) -> Matrix<E::Acc> {
    let cols = w.cols();
    let mut panel = Matrix::recycled(rows, cols);
    let mut stored = vec![E::default(); cols];
    for (row, wide) in (first..).zip(panel.iter_rows_mut()) {
        let narrow = match *w {
            Rows::Stored(tensor) => {
                tensor.read_row(row, &mut stored);
                &stored
            }
            Rows::Typed(numbers, _) => &numbers[row * cols..][..cols],
        };
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            *wide = narrow.acc();
        }
    }
    panel
}

/// x Wᵀ, `[tokens, rows]`, on this thread.
fn product<A: Float>(x: &Matrix<A>, w: &Matrix<A>) -> Matrix<A> {
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    assert_eq!(k, w.cols(), "x and W disagree on the length of a row");
    let mut y = Matrix::recycled(m, n);
    // SAFETY: a left side of m × k, a right side of k × n and a result of m × n numbers are what the three slices hold,
    // by the assertion above and the line after it, and each pair of strides (of a column, of a row) is that of its
    // row-major matrix, the right side being W transposed. The result is borrowed mutably, so it overlaps neither of
    // the others; all three are initialised.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            y.as_mut_slice().as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_slice().as_ptr(),
            1,
            k as isize,
            w.as_slice().as_ptr(),
            k as isize,
            1,
            A::ZERO,
            A::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    y
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::kernels::Backend;
    use crate::tensor::quantised::tests::blocks;
    use crate::tensor::{Storage, Tensor};

    /// Integers of many sizes below 2⁴⁰, whose products and sums an i128 has exactly; in a type that rounds them they
    /// are integers still.
    fn integers<E: Element>(n: usize, seed: u64) -> Vec<E> {
        let mut state = seed;
        let number = |_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let size = 24 + (state >> 60);
            let low = (state >> 20) & ((1 << size) - 1);
            E::from_f64(low as f64 - (1u64 << (size - 1)) as f64)
        };
        (0..n).map(number).collect()
    }

    /// The largest |y − W x| of all products, in units of what n roundings can do in a sum of n products in whatever
    /// order: γ_n Σ |w x|.
    fn worst<E: Element>(x: &Matrix<E>, w: &Matrix<E>, y: &Matrix<E::Acc>) -> f64 {
        let n = x.cols() as f64 * E::Acc::DTYPE.unit_roundoff();
        let gamma = n / (1.0 - n);
        let mut worst = 0.0f64;
        for (x, y) in x.iter_rows().zip(y.iter_rows()) {
            for (w, y) in w.iter_rows().zip(y) {
                let terms = || {
                    let pairs = w.iter().zip(x);
                    pairs.map(|(w, x)| w.to_f64() as i128 * x.to_f64() as i128)
                };
                let off = (y.to_f64() as i128 - terms().sum::<i128>()).abs() as f64;
                worst = worst.max(off / (gamma * terms().map(i128::abs).sum::<i128>() as f64));
            }
        }
        worst
    }

    /// Sizes below, at and above what the crate's tiles and a panel have, and single tokens, which it multiplies in
    /// another way.
    const SIZES: [(usize, usize, usize); 6] = [
        (1, 1, 1),
        (3, 5, 17),
        (1, 300, 640),
        (2, 70, 2048),
        (7, 500, 641),
        (33, 129, 1152),
    ];

    fn is_within_what_rounding_allows<E: Element>() {
        for (tokens, rows, cols) in SIZES {
            let x = Matrix::from_vec(cols, integers::<E>(tokens * cols, 1));
            let w = Matrix::from_vec(cols, integers::<E>(rows * cols, 2));
            let name = format!("{} {tokens}x{rows}x{cols}", E::DTYPE);
            let share = worst(&x, &w, &matmul(Level::best(), &x, (&w).into()));
            assert!(share <= 1.0, "{name}: {share}");
            // The control: one of the terms left out.
            let mut without = x.clone();
            for x in without.iter_rows_mut() {
                x[cols / 2] = E::default();
            }
            let share = worst(&x, &w, &matmul(Level::best(), &without, (&w).into()));
            assert!(share > 1.0, "{name}: {share} without a term");
        }
    }

    #[test]
    fn every_product_is_within_what_rounding_allows() {
        is_within_what_rounding_allows::<f64>();
        is_within_what_rounding_allows::<f32>();
        is_within_what_rounding_allows::<bf16>();
    }

    #[test]
    fn it_is_another_platform() {
        let x = Matrix::from_vec(640, integers::<f32>(5 * 640, 1));
        let w = Matrix::from_vec(640, integers::<f32>(300 * 640, 2));
        let [native, gemm] =
            [Backend::Native, Backend::Gemm].map(|backend| backend.matmul(Level::best(), &x, &w));
        assert_ne!(native, gemm);
    }

    /// Widened exactly, or rounded to the compute type where that is narrower.
    fn reads_what_is_stored<E: Element>() {
        let (rows, cols) = (300, 650);
        let x = Matrix::from_vec(cols, integers::<E>(2 * cols, 1));
        for storage in [Storage::F64, Storage::F32, Storage::F16, Storage::Bf16] {
            // Within what f16 has.
            let numbers: Vec<_> = integers::<f64>(rows * cols, 2);
            let numbers: Vec<_> = numbers.iter().map(|x| x / 2f64.powi(25)).collect();
            let tensor = Tensor::from_f64(storage, vec![rows, cols], &numbers).unwrap();
            let typed = Matrix::from_vec(cols, tensor.to_vec::<E>());
            let got = matmul(Level::best(), &x, (&tensor).into());
            assert_eq!(got, matmul(Level::best(), &x, (&typed).into()), "{storage}");
            assert!(got.is_finite());
        }
        for storage in Storage::QUANTISED {
            let (rows, cols) = (10, 768);
            let x = Matrix::from_vec(cols, integers::<E>(2 * cols, 1));
            let data = blocks(storage, rows * cols / storage.block().numbers);
            let tensor = Tensor::new(storage, vec![rows, cols], data.into()).unwrap();
            let typed = Matrix::from_vec(cols, tensor.to_vec::<E>());
            let got = matmul(Level::best(), &x, (&tensor).into());
            assert_eq!(got, matmul(Level::best(), &x, (&typed).into()), "{storage}");
            assert!(got.is_finite());
        }
    }

    #[test]
    fn weights_are_read_as_they_are_stored() {
        assert!(f16::MAX.to_f64() > 2f64.powi(40 - 25));
        reads_what_is_stored::<f64>();
        reads_what_is_stored::<f32>();
        reads_what_is_stored::<bf16>();
    }

    #[test]
    fn threads_do_not_change_bits() {
        let x = Matrix::from_vec(640, integers::<f32>(5 * 640, 1));
        let w = Matrix::from_vec(640, integers::<f32>(900 * 640, 2));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            pool.install(|| matmul(Level::best(), &x, (&w).into()))
        };
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(7));
    }

    #[test]
    fn no_tokens_have_no_products() {
        let w = Matrix::<f32>::zeros(3, 4);
        let y = matmul(Level::best(), &Matrix::<f32>::zeros(0, 4), (&w).into());
        assert_eq!((y.rows(), y.cols()), (0, 3));
    }
}

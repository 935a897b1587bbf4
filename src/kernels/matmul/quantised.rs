//! The products of quantised weights.
//!
//! For a few tokens of f32 they are read where they lie and widened in registers. For more tokens, and in the other types, some rows
//! at a time become numbers of the compute type in a cache, and those are multiplied. Either way the sums are those of widened weights.

use std::marker::PhantomData;
use std::ops::Range;

use super::by_type::multiply;
use super::few_tokens::FewTokens;
use super::panel::Panel;
use crate::kernels::simd::{Level, Simd, Task, run_at_level};
use crate::tensor::quantised::decode;
use crate::tensor::{ByType, Dtype, Element, Matrix, Storage, Tensor};

/// As many tokens of f32 are multiplied two by two with weights in registers, which takes less time than a copy of their numbers.
const WIDENED_FOR_TOKENS: usize = 4;

/// Rows that become numbers at once: enough that packing the activations for them counts little, few enough for the second cache.
const DECODED_ROWS: usize = 128;

/// The same for tokens that are not packed: few enough for the first cache.
const FEW_DECODED_ROWS: usize = 4;

/// From this many tokens on they may be packed.
const PACKED_TOKENS: usize = 12;

/// Some rows of W times all of `x`, into `out` `[tokens][rows]`.
pub(super) fn multiply_rows<E: Element>(
    level: Level,
    x: &[E],
    w: &Tensor,
    rows: Range<usize>,
    out: &mut [&mut [E::Acc]],
) {
    let storage = w.storage();
    let cols = w.cols();
    if E::DTYPE == Dtype::F32 && out.len() <= WIDENED_FOR_TOKENS {
        let bytes = w.rows_bytes(rows);
        let x = bytemuck::cast_slice(x);
        let out = out.iter_mut().map(|out| bytemuck::cast_slice_mut(out));
        let mut out: Vec<_> = out.collect();
        let few = FewTokens {
            storage,
            bytes,
            cols,
            x,
            out: &mut out,
        };
        return few.at(level);
    }
    let at_once = if out.len() < PACKED_TOKENS {
        FEW_DECODED_ROWS
    } else {
        DECODED_ROWS
    };
    let mut decoded = Matrix::<E>::recycled(at_once.min(rows.len()), cols);
    for first in rows.clone().step_by(at_once) {
        let now = first..rows.end.min(first + at_once);
        let part = now.start - rows.start..now.end - rows.start;
        let numbers = &mut decoded.as_mut_slice()[..now.len() * cols];
        let decode = Decode {
            storage,
            bytes: w.rows_bytes(now),
            numbers,
        };
        E::by_type::<AtLevel>((level, decode));
        let mut out: Vec<_> = out.iter_mut().map(|out| &mut out[part.clone()]).collect();
        multiply(level, Panel::new(x, numbers, cols, &mut out));
    }
}

/// Whole blocks as numbers.
struct Decode<'a, E> {
    storage: Storage,
    bytes: &'a [u8],
    numbers: &'a mut [E],
}

impl<E: Element> Task for Decode<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        decode(simd, self.storage, self.bytes, self.numbers);
    }
}

/// Runs [`Decode`] of each compute type.
struct AtLevel<'a>(PhantomData<&'a ()>);

impl<'a> ByType for AtLevel<'a> {
    type Input<E: Element> = (Level, Decode<'a, E>);
    run_at_level!();
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use half::bf16;

    use crate::kernels::matmul::matmul;
    use crate::kernels::simd::Level;
    use crate::tensor::quantised::tests::blocks;
    use crate::tensor::{Element, Matrix, Storage, Tensor};

    /// A tensor of random blocks, the first of them at an odd address.
    fn tensor(storage: Storage, rows: usize, cols: usize) -> Tensor {
        let data = blocks(storage, rows * cols / storage.block().numbers);
        let odd = Bytes::from([&[0], &data[..]].concat()).slice(1..);
        Tensor::new(storage, vec![rows, cols], odd).unwrap()
    }

    /// Numbers of many sizes, some of them so small that products with them underflow.
    fn activations<E: Element>(tokens: usize, cols: usize) -> Matrix<E> {
        let mut state = 7u64;
        let number = |i: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let size = if i.is_multiple_of(5) {
                -140
            } else {
                (state >> 60) as i32 - 8
            };
            E::from_f64(((state >> 20) as i32 as f64) * 2f64.powi(size - 31))
        };
        Matrix::from_vec(cols, (0..tokens * cols).map(number).collect())
    }

    fn bits<A: Element>(m: &Matrix<A>) -> Vec<u64> {
        m.as_slice().iter().map(|x| x.to_f64().to_bits()).collect()
    }

    fn is_the_product_of_the_widened<E: Element>() {
        for storage in Storage::QUANTISED {
            let block = storage.block().numbers;
            for (cols, sizes) in [
                (block, [(1, 1), (5, 2), (4, 13)].as_slice()),
                (3 * block, &[(9, 1), (7, 3), (131, 1), (130, 12)]),
                // More than a stretch of packed weights, and more rows than are decoded at once.
                (6144, &[(6, 1), (3, 5), (2, 17)]),
            ] {
                for &(rows, tokens) in sizes {
                    let (w, x) = (tensor(storage, rows, cols), activations::<E>(tokens, cols));
                    let widened = Matrix::from_vec(cols, w.to_vec::<E>());
                    let want = bits(&matmul(Level::Scalar, &x, &widened));
                    for level in Level::available() {
                        let got = bits(&matmul(level, &x, &w));
                        let name = format!("{storage} {level} {rows}x{cols}, {tokens} tokens");
                        assert!(got == want, "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_gives_the_bits_of_widened_weights_f64() {
        is_the_product_of_the_widened::<f64>();
    }

    #[test]
    fn every_level_gives_the_bits_of_widened_weights_f32() {
        is_the_product_of_the_widened::<f32>();
    }

    #[test]
    fn every_level_gives_the_bits_of_widened_weights_bf16() {
        is_the_product_of_the_widened::<bf16>();
    }

    #[test]
    fn every_number_counts() {
        // A quantum more of any one number changes the product of its row, and of no other.
        for level in Level::available() {
            let (rows, cols) = (5, 64);
            let w = tensor(Storage::Q8_0, rows, cols);
            let x = Matrix::from_vec(cols, vec![1.0f32; cols]);
            let before = matmul(level, &x, &w);
            for i in 0..rows * cols {
                let mut data = w.bytes().to_vec();
                let q = &mut data[i / 32 * 34 + 2 + i % 32];
                *q = q.wrapping_add(1);
                let changed = Tensor::new(Storage::Q8_0, vec![rows, cols], data.into()).unwrap();
                let after = matmul(level, &x, &changed);
                let differ = |row: &usize| after.row(0)[*row] != before.row(0)[*row];
                // The first blocks' factors are too small to be seen beside the last ones'.
                let seen: Vec<_> = (0..rows).filter(differ).collect();
                assert!(
                    seen == [i / cols] || (i % cols < 32 && seen.is_empty()),
                    "{level} {i}"
                );
            }
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        for storage in [Storage::Q4K, Storage::Q8_0] {
            let (w, x) = (tensor(storage, 701, 512), activations::<f32>(1, 512));
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let pool = pool.build().unwrap();
                pool.install(|| bits(&matmul(Level::best(), &x, &w)))
            };
            assert_eq!(with(1), with(2), "{storage}");
            assert_eq!(with(1), with(7), "{storage}");
        }
    }
}

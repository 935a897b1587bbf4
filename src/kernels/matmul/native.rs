//! The products of [`Backend::Native`](super::Backend::Native): work shared among threads, weights read as they are stored.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::by_type::{multiply, multiply_bf16};
use super::map::{Bias, Map, finish_row};
use super::panel::Panel;
use super::quantised;
use super::rows::Rows;
use crate::kernels::simd::Level;
use crate::tensor::{Element, Matrix, Storage};

/// Rows that are converted at once where a weight's type has no kernel.
const CONVERTED: usize = 32;

/// A product of fewer multiplications than this is not worth a second thread.
const MIN_PARALLEL_MULTIPLICATIONS: usize = 1 << 17;

/// The most tokens of a task.
const TOKENS_PER_TASK: usize = 256;

/// Minimum rows per task, unless a thread would have none: with many tokens every task packs its activations, which fewer rows
/// do not amortise.
const MIN_ROWS_PER_TASK: usize = 256;

/// Sums that a task rounds at once (1 MB of f32), while they are in a core's second cache: a thousand rows of W for 256 tokens, few
/// enough pieces that each may pack its tokens again.
const SUMS_AT_ONCE: usize = 1 << 18;

/// W x for every row x of `x` `[tokens, in]`: `[tokens, out]`, not yet rounded to the compute type.
///
/// Threads of the current rayon pool share the rows of W and the tokens.
pub fn matmul<'w, E: Element>(
    level: Level,
    x: &Matrix<E>,
    w: impl Into<Rows<'w, E>>,
) -> Matrix<E::Acc> {
    let [y] = matmuls(level, x, [w.into()]);
    y
}

/// [`matmul`] with several W at once, so that threads meet once and not after each.
pub(crate) fn matmuls<E: Element, const N: usize>(
    level: Level,
    x: &Matrix<E>,
    ws: [Rows<'_, E>; N],
) -> [Matrix<E::Acc>; N] {
    let maps = ws.map(|weight| Map { weight, bias: None });
    shared(x, maps, |mut task| {
        let weight = &task.map.weight;
        multiply_rows(level, task.x, weight, task.rows, &mut task.out);
    })
}

/// W x + b in the compute type, for several maps and every row x of `x` `[tokens, in]`: the bits of [`matmuls`], the sum with b and
/// the roundings, with no sum going to memory between them.
pub(crate) fn linears<E: Element, const N: usize>(
    level: Level,
    x: &Matrix<E>,
    maps: [Map<'_, E>; N],
) -> [Matrix<E>; N] {
    if E::DTYPE == E::Acc::DTYPE && maps.iter().all(|map| map.bias.is_none()) {
        return matmuls(level, x, maps.map(|map| map.weight)).map(Matrix::retyped);
    }
    shared(x, maps, |task| task.finish(level))
}

/// y of some maps, of which tasks fill some rows each.
fn shared<E: Element, Y: Element, const N: usize>(
    x: &Matrix<E>,
    maps: [Map<'_, E>; N],
    run: impl Fn(RowsTask<'_, E, Y>) + Send + Sync,
) -> [Matrix<Y>; N] {
    let (tokens, cols) = (x.rows(), x.cols());
    let rows: usize = maps.iter().map(|map| map.weight.rows()).sum();
    let mut ys = maps.map(|Map { weight, .. }| {
        assert_eq!(
            cols,
            weight.cols(),
            "x and W disagree on the length of a row"
        );
        Matrix::recycled(tokens, weight.rows())
    });
    let pairs = maps.iter().zip(&mut ys);
    let threads = rayon::current_num_threads();
    if threads == 1 || rows * tokens * cols < MIN_PARALLEL_MULTIPLICATIONS {
        for (map, y) in pairs {
            let all = map.weight.rows();
            tasks_of(x, map, y, all).into_iter().for_each(&run);
        }
        return ys;
    }
    // Several tasks a thread, so that a slow one holds nobody up.
    let tasks = (4 * threads).div_ceil(tokens.div_ceil(TOKENS_PER_TASK));
    let tasks = tasks.min(threads * (rows / (threads * MIN_ROWS_PER_TASK)).max(1));
    let rows_per_task = rows.div_ceil(tasks).next_multiple_of(16);
    let tasks: Vec<_> = pairs
        .flat_map(|(map, y)| tasks_of(x, map, y, rows_per_task))
        .collect();
    tasks.into_par_iter().for_each(run);
    ys
}

/// Some rows of W times some tokens.
struct RowsTask<'a, E: Element, Y> {
    x: &'a [E],
    map: &'a Map<'a, E>,
    rows: Range<usize>,
    /// Where each token's numbers go.
    out: Vec<&'a mut [Y]>,
}

impl<E: Element> RowsTask<'_, E, E> {
    /// W x + b, some rows after the other.
    fn finish(mut self, level: Level) {
        let tokens = self.out.len();
        let most = (SUMS_AT_ONCE / tokens.max(1)).max(MIN_ROWS_PER_TASK);
        // Rows of memory whose distance is a power of two would fall into one cache set.
        let mut sums = Matrix::recycled(tokens, most.min(self.rows.len()) + 16);
        for first in self.rows.clone().step_by(most) {
            let rows = first..self.rows.end.min(first + most);
            let parts = sums.iter_rows_mut().map(|row| &mut row[..rows.len()]);
            let mut parts: Vec<_> = parts.collect();
            multiply_rows(level, self.x, &self.map.weight, rows.clone(), &mut parts);
            let bias = self.map.bias.map(|bias| Bias {
                numbers: &bias.numbers[rows.clone()],
                ..bias
            });
            let start = first - self.rows.start;
            for (sums, out) in parts.iter().zip(&mut self.out) {
                finish_row(level, sums, bias, &mut out[start..start + rows.len()]);
            }
        }
    }
}

/// A product in tasks of at most `rows_per_task` rows and [`TOKENS_PER_TASK`] tokens.
fn tasks_of<'a, E: Element, Y: Element>(
    x: &'a Matrix<E>,
    map: &'a Map<'a, E>,
    y: &'a mut Matrix<Y>,
    rows_per_task: usize,
) -> Vec<RowsTask<'a, E, Y>> {
    let (rows, cols) = (map.weight.rows(), map.weight.cols());
    let mut tasks = Vec::new();
    if rows == 0 {
        return tasks;
    }
    let outs = y.as_mut_slice().chunks_mut(TOKENS_PER_TASK * rows);
    for (x, y) in x.as_slice().chunks(TOKENS_PER_TASK * cols).zip(outs) {
        let first = tasks.len();
        tasks.extend((0..rows).step_by(rows_per_task).map(|start| RowsTask {
            x,
            map,
            rows: start..rows.min(start + rows_per_task),
            out: Vec::with_capacity(x.len() / cols),
        }));
        for y in y.chunks_exact_mut(rows) {
            for (task, y) in tasks[first..].iter_mut().zip(y.chunks_mut(rows_per_task)) {
                task.out.push(y);
            }
        }
    }
    tasks
}

/// The dot product of two vectors of equal length.
pub fn dot<E: Element>(level: Level, a: &[E], b: &[E]) -> E::Acc {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    let mut out = [E::Acc::default()];
    multiply(level, Panel::new(a, b, a.len(), &mut [&mut out]));
    out[0]
}

/// Some rows of W times all of `x`, into `out` `[tokens][rows]`.
fn multiply_rows<E: Element>(
    level: Level,
    x: &[E],
    w: &Rows<'_, E>,
    rows: Range<usize>,
    out: &mut [&mut [E::Acc]],
) {
    let cols = w.cols();
    let numbers = rows.start * cols..rows.end * cols;
    let tensor = match *w {
        Rows::Typed(data, _) => {
            return multiply(level, Panel::new(x, &data[numbers], cols, out));
        }
        Rows::Stored(tensor) => tensor,
    };
    if tensor.storage().is_quantised() {
        return quantised::multiply_rows(level, x, tensor, rows, out);
    }
    if tensor.storage() == Storage::Bf16 {
        let bytes = &tensor.bytes()[2 * numbers.start..2 * numbers.end];
        // A file may put them at an odd address; then they go the slow way below.
        if let Ok(w) = bytemuck::try_cast_slice::<u8, bf16>(bytes) {
            return multiply_bf16(level, Panel::new(x, w, cols, out));
        }
    }
    // Any other type: a few rows at a time, converted.
    let mut converted = Matrix::recycled(CONVERTED.min(rows.len()), cols);
    for first in rows.clone().step_by(CONVERTED) {
        let now = CONVERTED.min(rows.end - first);
        for (r, row) in converted.iter_rows_mut().take(now).enumerate() {
            tensor.read_row(first + r, row);
        }
        let w = &converted.as_slice()[..now * cols];
        let part = first - rows.start..first - rows.start + now;
        let mut out: Vec<_> = out.iter_mut().map(|out| &mut out[part.clone()]).collect();
        multiply(level, Panel::new(x, w, cols, &mut out));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::tensor::{Float, Tensor};

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
        let sizes = [(1, 1), (3, 1), (5, 2), (4, 4), (9, 7), (6, 17), (17, 33)];
        // Rows so long that a sum is left and taken up again, and that not all tokens are packed at once.
        let long = ([6000].as_slice(), [(10, 70), (5, 140)].as_slice());
        let short = [1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 640, 1403];
        for (cols, sizes) in [(short.as_slice(), sizes.as_slice()), long] {
            let each = cols
                .iter()
                .flat_map(|&cols| sizes.iter().map(move |&size| (cols, size)));
            for (cols, (rows, tokens)) in each {
                let x = Matrix::from_vec(cols, numbers::<E>(tokens * cols, 1, low, high));
                let w = Matrix::from_vec(cols, numbers::<E>(rows * cols, 2, low, high));
                let want = matmul(Level::Scalar, &x, &w);
                for level in Level::available() {
                    // What y is given as memory next, so that a product left out is noticed.
                    drop(Matrix::from_vec(
                        rows,
                        vec![E::Acc::from_f64(f64::NAN); rows * tokens],
                    ));
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
    fn every_level_flushes_what_only_the_denormal_grid_rounds_up() {
        // Element 1 comes first and is 2⁻¹²⁶; element 0 takes so little from it that f32 rounds it back up.
        let least = 2f64.powi(-126);
        for (taken, want) in [(0.75, 0.0), (0.375, least)] {
            let w = [-taken * 2f64.powi(-75), 2f64.powi(-63)].map(bf16::from_f64);
            let x = [2f64.powi(-75), 2f64.powi(-63)].map(bf16::from_f64);
            for level in Level::available() {
                assert_eq!(f64::from(dot(level, &x, &w)), want, "{level} {taken}");
            }
        }
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

    fn sums_and_biases_are_rounded<E: Element>() {
        // Fewer sums than are rounded at once, and more.
        for (tokens, cols, rows) in [(3, 50, 21), (300, 16, 2500)] {
            let x = Matrix::from_vec(cols, numbers::<E>(tokens * cols, 7, -8, 8));
            let w = Matrix::from_vec(cols, numbers::<E>(rows * cols, 8, -8, 8));
            let b = numbers::<E::Acc>(rows, 9, -8, 8);
            let bias = |rounded_first| Bias {
                numbers: &b,
                rounded_first,
            };
            let sums = matmul(Level::best(), &x, &w);
            let of_sums = |y: &dyn Fn(E::Acc, E::Acc) -> E| -> Vec<E> {
                let rows = sums.iter_rows().flat_map(|sums| sums.iter().zip(&b));
                rows.map(|(&sum, &b)| y(sum, b)).collect()
            };
            let want: [Vec<E>; 3] = [
                of_sums(&|sum, _| E::round(sum)),
                of_sums(&|sum, b| E::round(sum + b)),
                of_sums(&|sum, b| E::round(E::round(sum).acc() + b)),
            ];
            let biases = [None, Some(bias(false)), Some(bias(true))];
            let maps = biases.map(|bias| Map {
                weight: Rows::from(&w),
                bias,
            });
            for level in Level::available() {
                let got = linears(level, &x, maps);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert!(got.as_slice() == want, "{level}, {tokens} tokens, map {i}");
                }
                let after = maps.map(|map| map.finish(level, sums.clone()));
                assert!(after == got, "{level}");
            }
            assert_ne!(want[0], want[1]);
            if E::DTYPE != E::Acc::DTYPE {
                assert_ne!(want[1], want[2]);
            }
        }
    }

    #[test]
    fn sums_and_biases_are_rounded_in_the_compute_type() {
        sums_and_biases_are_rounded::<f64>();
        sums_and_biases_are_rounded::<f32>();
        sums_and_biases_are_rounded::<bf16>();
    }

    #[test]
    fn threads_do_not_change_bits() {
        // The tokens of more than one task.
        let (tokens, rows, cols) = (300, 700, 100);
        let x = Matrix::from_vec(cols, numbers::<f32>(tokens * cols, 5, -8, 8));
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

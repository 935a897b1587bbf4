//! Elementwise operations: rounding, sums and products of two.
//!
//! Each is computed as it is written, without fused multiply-add, whatever instructions a level has.

use rayon::prelude::*;

use super::simd::{Level, Simd, Task};
use crate::tensor::{Element, Matrix};

/// Fewer numbers than this are not worth a second thread; more are divided into tasks of this size.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;

/// x + y, rounded to the compute type.
pub(crate) fn add<E: Element>(level: Level, x: &Matrix<E>, y: &Matrix<E>) -> Matrix<E> {
    of_pairs(level, x, y, |x, y| E::round(x.acc() + y.acc()))
}

/// x ⊙ y, rounded to the compute type.
pub(crate) fn multiply<E: Element>(level: Level, x: &Matrix<E>, y: &Matrix<E>) -> Matrix<E> {
    of_pairs(level, x, y, |x, y| E::round(x.acc() * y.acc()))
}

/// Every sum, rounded to the compute type.
pub(crate) fn round<E: Element>(level: Level, sums: Matrix<E::Acc>) -> Matrix<E> {
    if E::DTYPE == E::Acc::DTYPE {
        sums.retyped()
    } else {
        map(level, &sums, E::round)
    }
}

/// Every sum, rounded to the compute type, into `out`.
pub(crate) fn round_into<E: Element>(level: Level, sums: &[E::Acc], out: &mut [E]) {
    level.run(Map {
        x: sums,
        out,
        f: &E::round,
    });
}

/// `f` of every number.
pub(crate) fn map<E: Element, F: Element>(
    level: Level,
    x: &Matrix<E>,
    f: impl Fn(E) -> F + Sync,
) -> Matrix<F> {
    let mut all = Matrix::recycled(x.rows(), x.cols());
    let (x, out) = (x.as_slice(), all.as_mut_slice());
    if out.len() <= ELEMENTS_PER_TASK {
        level.run(Map { x, out, f: &f });
    } else {
        let pieces = out
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(x.par_chunks(ELEMENTS_PER_TASK));
        pieces.for_each(|(out, x)| level.run(Map { x, out, f: &f }));
    }
    all
}

/// `f` of every pair of numbers of two matrices of one shape.
fn of_pairs<E: Element>(
    level: Level,
    x: &Matrix<E>,
    y: &Matrix<E>,
    f: impl Fn(E, E) -> E + Sync,
) -> Matrix<E> {
    let shapes = [x, y].map(|m| (m.rows(), m.cols()));
    assert_eq!(shapes[0], shapes[1], "shapes differ");
    let mut out = Matrix::recycled(x.rows(), x.cols());
    zip_map(level, x.as_slice(), y.as_slice(), out.as_mut_slice(), f);
    out
}

/// `f` of every pair of numbers, into `out`.
pub fn zip_map<A, B, F>(level: Level, x: &[A], y: &[A], out: &mut [B], f: F)
where
    A: Copy + Sync,
    B: Send,
    F: Fn(A, A) -> B + Sync,
{
    if out.len() <= ELEMENTS_PER_TASK {
        return level.run(ZipMap { x, y, out, f: &f });
    }
    let pairs = x
        .par_chunks(ELEMENTS_PER_TASK)
        .zip(y.par_chunks(ELEMENTS_PER_TASK));
    let pieces = out.par_chunks_mut(ELEMENTS_PER_TASK).zip(pairs);
    pieces.for_each(|(out, (x, y))| level.run(ZipMap { x, y, out, f: &f }));
}

/// `f` of every number, in its place. It should own what it needs: what it refers to is read again for every number.
pub fn update<A: Copy, F: Fn(A) -> A>(level: Level, x: &mut [A], f: F) {
    level.run(Update { x, f });
}

/// [`update`] of many numbers.
pub(super) fn update_all<A: Copy + Send, F: Fn(A) -> A + Copy + Sync>(
    level: Level,
    x: &mut [A],
    f: F,
) {
    if x.len() <= ELEMENTS_PER_TASK {
        return update(level, x, f);
    }
    let pieces = x.par_chunks_mut(ELEMENTS_PER_TASK);
    pieces.for_each(|x| update(level, x, f));
}

struct Update<'a, A, F> {
    x: &'a mut [A],
    f: F,
}

impl<A: Copy, F: Fn(A) -> A> Task for Update<'_, A, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for x in self.x {
            *x = (self.f)(*x);
        }
    }
}

struct Map<'a, A, B, F> {
    x: &'a [A],
    out: &'a mut [B],
    f: &'a F,
}

impl<A: Copy, B, F: Fn(A) -> B> Task for Map<'_, A, B, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = (self.f)(x);
        }
    }
}

struct ZipMap<'a, A, B, F> {
    x: &'a [A],
    y: &'a [A],
    out: &'a mut [B],
    f: &'a F,
}

impl<A: Copy, B, F: Fn(A, A) -> B> Task for ZipMap<'_, A, B, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, (&x, &y)) in self.out.iter_mut().zip(self.x.iter().zip(self.y)) {
            *out = (self.f)(x, y);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernels::observed;

    /// More numbers than one task takes.
    fn matrix<E: Element>(seed: usize) -> Matrix<E> {
        let number = |i: usize| E::from_f64(libm::sin((i + seed) as f64) * 100.0);
        Matrix::from_vec(5, (0..5 * 4001).map(number).collect())
    }

    /// Each operation, against one number after the other.
    fn each_is_its_definition<E: Element>() {
        let (x, y, sums) = (matrix::<E>(0), matrix::<E>(7), matrix::<E::Acc>(3));
        let pairs = || x.as_slice().iter().zip(y.as_slice());
        let added: Vec<_> = pairs().map(|(x, y)| E::round(x.acc() + y.acc())).collect();
        let multiplied: Vec<_> = pairs().map(|(x, y)| E::round(x.acc() * y.acc())).collect();
        let rounded: Vec<_> = sums.as_slice().iter().map(|&s| E::round(s)).collect();
        let halved: Vec<_> = x.as_slice().iter().map(|x| x.to_f64() / 2.0).collect();
        for level in Level::available() {
            assert!(add(level, &x, &y).as_slice() == added, "{level}");
            assert!(multiply(level, &x, &y).as_slice() == multiplied, "{level}");
            assert!(
                round::<E>(level, sums.clone()).as_slice() == rounded,
                "{level}"
            );
            assert!(
                map(level, &x, |x| x.to_f64() / 2.0).as_slice() == halved,
                "{level}"
            );
            let mut updated = x.clone();
            update(level, updated.as_mut_slice(), |x| {
                E::from_f64(x.to_f64() / 2.0)
            });
            let want = x.map(|x| E::from_f64(x.to_f64() / 2.0));
            assert!(updated == want, "{level}");
            let mut updated = x.clone();
            update_all(level, updated.as_mut_slice(), |x| {
                E::from_f64(x.to_f64() / 2.0)
            });
            assert!(updated == want, "{level}");
        }
    }

    #[test]
    fn every_level_does_what_plain_loops_do() {
        each_is_its_definition::<f64>();
        each_is_its_definition::<f32>();
        each_is_its_definition::<bf16>();
    }

    #[test]
    fn each_runs_at_the_level_it_is_given() {
        for level in Level::available() {
            let (x, sums) = (matrix::<bf16>(0), matrix::<f32>(0));
            assert_eq!(observed::levels(|| drop(add(level, &x, &x))), [level]);
            assert_eq!(observed::levels(|| drop(multiply(level, &x, &x))), [level]);
            assert_eq!(
                observed::levels(|| drop(map(level, &x, bf16::acc))),
                [level]
            );
            let negated = || update_all(level, x.clone().as_mut_slice(), |x: bf16| -x);
            assert_eq!(observed::levels(negated), [level]);
            let rounded = || drop(round::<bf16>(level, sums.clone()));
            assert_eq!(observed::levels(rounded), [level]);
        }
    }
}

//! What happens to every number by itself: roundings, sums and products of two.
//!
//! Each is computed as it is written, without fused multiply-add, whatever instructions a level has.

use rayon::prelude::*;

use super::Level;
use super::lanes::{Simd, Task};

/// Fewer numbers than this are not worth a second thread.
pub(crate) const SHARE: usize = 1 << 14;

/// `f` of every number, into `out`.
pub(crate) fn map<A, B, F>(level: Level, x: &[A], out: &mut [B], f: F)
where
    A: Copy + Sync,
    B: Send,
    F: Fn(A) -> B + Sync,
{
    if out.len() <= SHARE {
        return level.run(Map { x, out, f: &f });
    }
    let pieces = out.par_chunks_mut(SHARE).zip(x.par_chunks(SHARE));
    pieces.for_each(|(out, x)| level.run(Map { x, out, f: &f }));
}

/// `f` of every pair of numbers, into `out`.
pub fn zip_map<A, B, F>(level: Level, x: &[A], y: &[A], out: &mut [B], f: F)
where
    A: Copy + Sync,
    B: Send,
    F: Fn(A, A) -> B + Sync,
{
    if out.len() <= SHARE {
        return level.run(ZipMap { x, y, out, f: &f });
    }
    let pairs = x.par_chunks(SHARE).zip(y.par_chunks(SHARE));
    let pieces = out.par_chunks_mut(SHARE).zip(pairs);
    pieces.for_each(|(out, (x, y))| level.run(ZipMap { x, y, out, f: &f }));
}

/// `f` of every number, in its place.
pub fn update<A: Copy, F: Fn(A) -> A>(level: Level, x: &mut [A], f: F) {
    level.run(Update { x, f: &f });
}

struct Update<'a, A, F> {
    x: &'a mut [A],
    f: &'a F,
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

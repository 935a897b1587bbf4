//! Numbers of every kind for an operation, wherever they may lie in memory.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use context_patch::tensor::{Dtype, Element, Storage, Tensor};
use half::bf16;

use crate::random::random;

/// The numbers that an operation is given.
#[derive(Clone, Debug)]
pub struct Operands {
    pub seed: u64,
    /// They are in ±2^e for an e in this range, but for some zeros.
    pub exponents: (i32, i32),
    /// What stands in the place of some of them, and whether with a minus sign.
    pub special: Vec<(usize, Special, bool)>,
    /// How many numbers after an allocation the first slice begins; each one after it begins a number later.
    pub start: usize,
}

#[derive(Clone, Copy, Debug)]
pub enum Special {
    Zero,
    Infinity,
    Nan,
    Largest,
    SmallestNormal,
    Denormal,
}

/// Numbers that begin some numbers after an allocation.
#[derive(Clone)]
pub struct Slice<E> {
    allocation: Vec<E>,
    start: usize,
}

impl<E> Deref for Slice<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.allocation[self.start..]
    }
}

impl<E> DerefMut for Slice<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.allocation[self.start..]
    }
}

impl<E: Element> Slice<E> {
    /// The same numbers in the type of sums.
    pub fn accs(&self) -> Slice<E::Acc> {
        Slice {
            allocation: self.allocation.iter().map(|x| x.acc()).collect(),
            start: self.start,
        }
    }
}

impl Operands {
    /// Slices of these lengths.
    pub fn slices<E: Element, const N: usize>(&self, lengths: [usize; N]) -> [Slice<E>; N] {
        let mut numbers = self.numbers::<E>(lengths.iter().sum()).into_iter();
        std::array::from_fn(|i| {
            let start = self.start + i;
            let mut allocation = vec![E::default(); start];
            allocation.extend(numbers.by_ref().take(lengths[i]));
            Slice { allocation, start }
        })
    }

    fn numbers<E: Element>(&self, n: usize) -> Vec<E> {
        let mut next = random(self.seed);
        let (low, high) = self.exponents;
        let mut number = || {
            let exponent = low + (next() % (high - low) as u64) as i32;
            let fraction = next() as f64 / f64::from(1u32 << 30) - 1.0;
            // In two steps: 2^−1074 is not the inverse of a number.
            let number = fraction * 2f64.powi(exponent / 2) * 2f64.powi(exponent - exponent / 2);
            E::from_f64(if next().is_multiple_of(17) {
                0.0
            } else {
                number
            })
        };
        let mut numbers: Vec<E> = (0..n).map(|_| number()).collect();
        for &(i, special, negative) in &self.special {
            let special = special.value(E::DTYPE);
            numbers[i % n] = E::from_f64(if negative { -special } else { special });
        }
        numbers
    }
}

impl Special {
    fn value(self, dtype: Dtype) -> f64 {
        match (self, dtype) {
            (Self::Zero, _) => 0.0,
            (Self::Infinity, _) => f64::INFINITY,
            (Self::Nan, _) => f64::NAN,
            (Self::Largest, Dtype::F64) => f64::MAX,
            (Self::Largest, Dtype::F32) => f32::MAX.into(),
            (Self::Largest, Dtype::Bf16) => bf16::MAX.to_f64(),
            (Self::SmallestNormal, Dtype::F64) => f64::MIN_POSITIVE,
            (Self::SmallestNormal, _) => f32::MIN_POSITIVE.into(),
            (Self::Denormal, _) => 3.0 * dtype.ulp(0.0),
        }
    }
}

/// Weights rounded to a type, or random blocks of a quantised one that depend on all of them, the first of them `start` bytes after
/// the beginning of an allocation.
pub fn stored<E: Element>(storage: Storage, start: usize, cols: usize, w: &[E]) -> Tensor {
    let shape = vec![w.len() / cols, cols];
    let w: Vec<_> = w.iter().map(|w| w.to_f64()).collect();
    let bytes = match storage.bytes_of(w.len()) {
        Some(bytes) if storage.is_quantised() => {
            let mix = |seed: u64, w: &f64| seed.rotate_left(7) ^ w.to_bits();
            let mut next = random(w.iter().fold(1, mix));
            (0..bytes).map(|_| next() as u8).collect()
        }
        _ => {
            let rounded = Tensor::from_f64(storage, shape.clone(), &w);
            rounded.expect("as many as the shape says").bytes().to_vec()
        }
    };
    let moved = Bytes::from([vec![0; start], bytes].concat()).slice(start..);
    Tensor::new(storage, shape, moved).expect("the same bytes")
}

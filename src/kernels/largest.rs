//! Where the largest of many numbers is.

use super::Level;
use super::simd::{Simd, Task};
use crate::tensor::{Element, Float};

/// Numbers of which the largest is found first, before it is looked for among them.
const PIECE: usize = 256;

/// The index of the largest number, the lowest of several. NaN is never the largest; where there is nothing else it is 0.
pub fn largest<E: Element>(level: Level, numbers: &[E]) -> usize {
    level.run(Largest(numbers))
}

struct Largest<'a, E>(&'a [E]);

impl<E: Element> Task for Largest<'_, E> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        let (mut at, mut most) = (0, E::Acc::NEG_INFINITY);
        for (i, piece) in self.0.chunks(PIECE).enumerate() {
            let largest = of_piece(piece);
            if largest > most {
                (at, most) = (i * PIECE, largest);
            }
        }
        let mut rest = self.0[at..].iter();
        at + rest.position(|x| x.acc() == most).unwrap_or_default()
    }
}

/// Sixteen at a time: which of them the largest is compared with first makes no difference.
#[inline(always)]
fn of_piece<E: Element>(piece: &[E]) -> E::Acc {
    let larger = |a: E, b: E::Acc| if a.acc() > b { a.acc() } else { b };
    let mut lanes = [E::Acc::NEG_INFINITY; 16];
    let (blocks, rest) = piece.as_chunks::<16>();
    for block in blocks {
        lanes = std::array::from_fn(|l| larger(block[l], lanes[l]));
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(x, *lane);
    }
    let [mut most, ..] = lanes;
    for lane in lanes {
        if lane > most {
            most = lane;
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_level_finds_the_first_of_the_largest() {
        for length in [1, 15, 16, 17, 255, 256, 257, 1000] {
            for at in [0, length / 3, length / 2, length - 1] {
                let mut numbers = vec![bf16::ZERO; length];
                numbers[at] = bf16::ONE;
                *numbers.last_mut().unwrap_or(&mut bf16::ZERO) = bf16::ONE;
                numbers[0] = if at == 0 { bf16::ONE } else { bf16::NAN };
                for level in Level::available() {
                    assert_eq!(largest(level, &numbers), at, "{level} {length}");
                }
            }
        }
        for level in Level::available() {
            assert_eq!(largest(level, &[f64::NEG_INFINITY; 20]), 0);
            assert_eq!(largest(level, &[f32::NAN; 300]), 0);
            assert_eq!(largest::<f32>(level, &[]), 0);
        }
    }
}

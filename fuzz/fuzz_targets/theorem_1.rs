//! Theorem 1 on random blocks: equality within the derived bound, or a typed error.
#![no_main]

mod block;

use arbitrary::{Arbitrary, Unstructured};
use block::Block;
use libfuzzer_sys::fuzz_target;

/// Numbers of every kind: zeros of both signs, infinities, denormals, and any size between.
fn number(u: &mut Unstructured<'_>) -> arbitrary::Result<f64> {
    Ok(match u.arbitrary::<u8>()? {
        0..=15 => 0.0,
        16..=19 => -0.0,
        20 => f64::INFINITY,
        21 => f64::NEG_INFINITY,
        22 => f64::NAN,
        23..=30 => f64::from_bits(u.arbitrary::<u64>()? >> 12),
        31..=60 => f64::from(u.arbitrary::<i8>()?) * 2f64.powi(u.arbitrary::<i8>()?.into()),
        61..=70 => f64::arbitrary(u)?,
        _ => f64::from(u.arbitrary::<i16>()?) / 8192.0,
    })
}

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let size = |u: &mut Unstructured<'_>| u.int_in_range(1..=20).unwrap_or(1);
    let (hidden, intermediate) = (size(&mut u), size(&mut u));
    // Where the bytes run out the numbers are zeros.
    Block::new(hidden, intermediate, || number(&mut u).unwrap_or(0.0)).check();
});

//! Theorem 1 on random blocks: equality within the derived bound, or a typed error.
#![no_main]

mod block;
mod number;

use arbitrary::Unstructured;
use block::Block;
use libfuzzer_sys::fuzz_target;
use number::number;

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let size = |u: &mut Unstructured<'_>| u.int_in_range(1..=20).unwrap_or(1);
    let (hidden, intermediate) = (size(&mut u), size(&mut u));
    // Where the bytes run out the numbers are zeros.
    Block::new(hidden, intermediate, || number(&mut u).unwrap_or(0.0)).check();
});

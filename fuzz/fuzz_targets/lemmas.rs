//! Each lemma on random numbers: equality within the derived bound, or a typed error.
#![no_main]

mod lemma;
mod number;

use arbitrary::Unstructured;
use lemma::Case;
use libfuzzer_sys::fuzz_target;
use number::number;

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let lemma = *u.choose(&[6, 8, 9, 10, 11]).unwrap_or(&6);
    let size = |u: &mut Unstructured<'_>| u.int_in_range(1..=20).unwrap_or(1);
    let (rows, length) = (size(&mut u), size(&mut u));
    // Where the bytes run out the numbers are zeros.
    Case::new(lemma, rows, length, || number(&mut u).unwrap_or(0.0)).check();
});

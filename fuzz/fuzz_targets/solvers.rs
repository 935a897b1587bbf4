//! The solvers of one layer on random numbers: equality within the derived bound, or a refusal.
#![no_main]

mod number;
mod solver;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use number::number;
use solver::{Layer, Span};

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let which = u.int_in_range(0..=3).unwrap_or(0);
    let size = |u: &mut Unstructured<'_>| u.int_in_range(1..=12).unwrap_or(1);
    let sizes = [0; 4].map(|_| size(&mut u));
    let repeat = u.arbitrary().unwrap_or(false);
    // Where the bytes run out the numbers are zeros.
    let numbers = || number(&mut u).unwrap_or(0.0);
    match which {
        0 => Layer::new(sizes[0], sizes[1], numbers).closed_form(),
        1 => Layer::new(sizes[0], sizes[1], numbers).appendix_b(),
        2 => Layer::new(sizes[0], sizes[1], numbers).sphere(),
        _ => Span::new(sizes, repeat, numbers).check(),
    };
});

//! Any division of a random sequence on a small random model: the bits of one piece on one thread.
#![no_main]

mod division;
mod parts;
mod pools;
mod random;

use arbitrary::{Result, Unstructured};
use context_patch::kernels::Level;
use context_patch::tensor::{Dtype, Storage};
use division::{Division, Shape};
use libfuzzer_sys::fuzz_target;
use pools::MOST;
use random::lengthened;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(division) = division(&mut Unstructured::new(&lengthened(bytes))) {
        division.check();
    }
});

fn division(u: &mut Unstructured<'_>) -> Result<Division> {
    Ok(Division {
        shape: shape(u)?,
        seed: u.arbitrary()?,
        dtype: *u.choose(&[Dtype::F64, Dtype::F32, Dtype::Bf16])?,
        level: u.choose(&Level::available())?.to_string(),
        // Beyond the window a sliding layer keeps 256 tokens before it lets go of the oldest.
        tokens: if u.ratio(1, 16)? {
            u.int_in_range(250..=320)?
        } else {
            u.int_in_range(1..=70)?
        },
        pieces: (0..u.int_in_range(0..=6)?)
            .map(|_| u.int_in_range(1..=40))
            .collect::<Result<_>>()?,
        chunk: u.int_in_range(1..=80)?,
        threads: u.int_in_range(1..=MOST)?,
        last: u.int_in_range(0..=40)?,
    })
}

fn shape(u: &mut Unstructured<'_>) -> Result<Shape> {
    let key_value_heads = u.int_in_range(1..=2)?;
    let heads = key_value_heads * u.int_in_range(1..=3)?;
    let storages = [Storage::Bf16, Storage::F16, Storage::F32, Storage::F64];
    Ok(Shape {
        vocab: u.int_in_range(3..=60)?,
        // What transformers asks of Gemma 3, although heads have a length of their own.
        hidden: heads * u.int_in_range(1..=50 / heads)?,
        intermediate: u.int_in_range(1..=50)?,
        heads,
        key_value_heads,
        head_dim: 2 * u.int_in_range(1..=10)?,
        window: u.int_in_range(1..=20)?,
        sliding: (0..u.int_in_range(1..=3)?)
            .map(|_| u.arbitrary())
            .collect::<Result<_>>()?,
        storage: *u.choose(&storages)?,
    })
}

//! Sequences in pieces on small random models; what the fuzz target `chunking` does, and that it can fail.

use crate::division::{Division, Shape};
use context_patch::tensor::{Dtype, Storage};

/// More tokens than a sliding layer keeps, in pieces that begin and end anywhere.
fn long() -> Division {
    Division {
        shape: Shape {
            vocab: 37,
            hidden: 44,
            intermediate: 50,
            heads: 4,
            key_value_heads: 2,
            head_dim: 10,
            window: 9,
            sliding: vec![true, false, true],
            storage: Storage::Bf16,
        },
        seed: 5,
        dtype: Dtype::F32,
        level: "avx2".to_owned(),
        tokens: 310,
        pieces: vec![3, 1, 40, 17],
        chunk: 33,
        threads: 3,
        last: 20,
    }
}

#[test]
fn pieces_give_the_bits_of_the_whole() {
    for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
        for chunk in [1, 8, 33, 400] {
            Division {
                dtype,
                chunk,
                ..long()
            }
            .check();
        }
    }
}

#[test]
fn another_window_does_not() {
    let [whole, pieces] = long().bits();
    let mut wider = long();
    wider.shape.window += 1;
    let [other, _] = wider.bits();
    assert_eq!(whole.len(), (3 + 1 + 20 + 17 + 20) * 37);
    assert!(whole == pieces);
    assert!(whole != other);
}

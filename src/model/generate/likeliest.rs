//! The likeliest tokens, by their logits.

use crate::tensor::{Element, Float};

/// The token with the largest logit, the lowest id of several.
pub fn greedy<E: Element>(logits: &[E]) -> u32 {
    // The largest of each piece first, which is a few instructions for many logits.
    const PIECE: usize = 256;
    let larger = |a: E::Acc, b: &E| if b.acc() > a { b.acc() } else { a };
    let largest = |piece: &[E]| piece.iter().fold(E::Acc::NEG_INFINITY, larger);
    let (mut at, mut most) = (0, E::Acc::NEG_INFINITY);
    for (i, piece) in logits.chunks(PIECE).enumerate() {
        let largest = largest(piece);
        if largest > most {
            (at, most) = (i * PIECE, largest);
        }
    }
    let piece = logits[at..]
        .iter()
        .position(|logit| Element::acc(*logit) == most);
    (at + piece.unwrap_or_default()) as u32
}

/// The `count` tokens with the largest logits, or all if there are fewer: likeliest first, of equals the lowest id.
pub fn likeliest<E: Element>(logits: &[E], count: usize) -> Vec<u32> {
    let logit = |id: u32| logits[id as usize].to_f64();
    let likelier = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if 0 < count && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, likelier);
    }
    ids.truncate(count);
    ids.sort_unstable_by(likelier);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, -1.0, 2.0, 1.0];

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(greedy(&LOGITS), 1);
        let mut many = vec![0.0f32; 1000];
        (many[700], many[701]) = (1.0, 1.0);
        assert_eq!(greedy(&many), 700);
    }

    #[test]
    fn the_likeliest_are_in_one_order() {
        let all = [1, 3, 4, 0, 2];
        for count in 0..7 {
            assert_eq!(likeliest(&LOGITS, count), all[..count.min(5)], "{count}");
        }
    }
}

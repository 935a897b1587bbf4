//! The likeliest tokens, by their logits.

use crate::kernels::{Level, largest};
use crate::tensor::Element;

/// The token with the largest logit, the lowest id of several.
pub fn greedy<E: Element>(logits: &[E]) -> u32 {
    largest(Level::best(), logits) as u32
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
    }

    #[test]
    fn the_likeliest_are_in_one_order() {
        let all = [1, 3, 4, 0, 2];
        for count in 0..7 {
            assert_eq!(likeliest(&LOGITS, count), all[..count.min(5)], "{count}");
        }
    }
}

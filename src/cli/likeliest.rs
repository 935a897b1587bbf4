//! The order of tokens by their logits.

use context_patch::tensor::Element;

/// All tokens, the likeliest first; of two alike the one with the lower id.
pub(super) fn likeliest<E: Element>(logits: &[E]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |id: u32| logits[id as usize].to_f64();
    order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    order
}

//! What the model itself writes: answers, texts that must not change, and queries where none are given.

use rand_core::Rng;
use rand_pcg::Pcg64;

use super::lesson::prefix;
use super::passes::Writing;
use crate::kernels::{Level, softmax};
use crate::model::generate::greedy;
use crate::model::{Model, Overlay, Result};
use crate::tensor::Element;

/// The likeliest answers to some prompts, each until an end token or until `ended` says so, that token included; at most `most`
/// tokens. `on_token` is called after each.
///
/// # Errors
///
/// Those of [`Session::forward`](crate::Session::forward).
pub fn answers<E: Element>(
    model: &Model,
    overlay: Option<&Overlay<E>>,
    prompts: &[Vec<u32>],
    most: usize,
    ended: impl Fn(&[u32]) -> bool,
    mut on_token: impl FnMut(),
) -> Result<Vec<Vec<u32>>> {
    let writing = Writing {
        most,
        draw: &mut |_, logits: &[E]| greedy(logits),
        ended: &ended,
        on_token: &mut on_token,
    };
    written(model, overlay, prompts, writing)
}

/// `count` texts that the model writes after `prompt` at temperature 1, each with random numbers of its own from `seed`: the same
/// on every machine.
///
/// # Errors
///
/// Those of [`Session::forward`](crate::Session::forward).
pub fn texts<E: Element>(
    model: &Model,
    prompt: &[u32],
    count: usize,
    most: usize,
    seed: u64,
    ended: impl Fn(&[u32]) -> bool,
    mut on_token: impl FnMut(),
) -> Result<Vec<Vec<u32>>> {
    let stream = |i| Pcg64::new(u128::from(seed), i);
    let mut random: Vec<_> = (0..count as u128).map(stream).collect();
    let writing = Writing {
        most,
        draw: &mut |i, logits: &[E]| drawn(logits, &mut random[i]),
        ended: &ended,
        on_token: &mut on_token,
    };
    written(model, None, &vec![prompt.to_vec(); count], writing)
}

fn written<E: Element>(
    model: &Model,
    overlay: Option<&Overlay<E>>,
    prompts: &[Vec<u32>],
    mut writing: Writing<'_, E>,
) -> Result<Vec<Vec<u32>>> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let shared = prefix(model, overlay, &prompts)?;
    writing.after(&shared, overlay, &prompts)
}

/// A token at temperature 1, in the order of ids. `Sampler` sorts them, which for a large vocabulary takes longer than the model.
fn drawn<E: Element>(logits: &[E], random: &mut Pcg64) -> u32 {
    let mut p: Vec<f64> = logits.iter().map(|logit| logit.to_f64()).collect();
    softmax(Level::best(), &mut p);
    // 53 random bits: a number from 0 up to, and not, 1.
    let mut left = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * p.iter().sum::<f64>();
    for (id, p) in p.iter().enumerate() {
        left -= p;
        if left < 0.0 {
            return id as u32;
        }
    }
    greedy(logits)
}

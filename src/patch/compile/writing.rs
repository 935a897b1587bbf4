//! What the model itself writes: answers, texts that must not change, and queries where none are given.

use std::sync::Arc;

use rayon::prelude::*;

use super::kept::{Kept, key};
use super::lesson::prefix;
use super::passes::Batch;
use crate::model::generate::{Sampler, Sampling};
use crate::model::{Model, Overlay, Result, Session};
use crate::tensor::Element;

/// Sequences that are written on at once: the logits of each are a megabyte.
const TOGETHER: usize = 64;

/// Where a text ends, besides the model's end tokens.
pub struct Until<'f> {
    /// Tokens at most.
    pub most: usize,
    /// Whether what is written is whole.
    pub ended: &'f dyn Fn(&[u32]) -> bool,
}

/// The likeliest answers to some prompts, each with the token that ends it. `on_token` is called after each token that is not in
/// `kept`, which is of this model under this patch.
///
/// # Errors
///
/// Those of [`Session::forward`](crate::Session::forward).
pub fn answers<E: Element>(
    model: &Model,
    overlay: Option<&Overlay<E>>,
    prompts: &[Vec<u32>],
    until: &Until<'_>,
    kept: &mut Kept,
    mut on_token: impl FnMut(),
) -> Result<Vec<Vec<u32>>> {
    let writing = Writing {
        until,
        random: None,
        kept,
        on_token: &mut on_token,
    };
    writing.after(model, overlay, prompts)
}

/// `count` texts that the model writes after `prompt` at temperature 1, each with random numbers of its own from `seed`: the same
/// on every machine. `on_token` is called after each token that is not in `kept`, which is of this model.
///
/// # Errors
///
/// Those of [`Session::forward`](crate::Session::forward).
pub fn texts<E: Element>(
    model: &Model,
    prompt: &[u32],
    count: usize,
    seed: u64,
    until: &Until<'_>,
    kept: &mut Kept,
    mut on_token: impl FnMut(),
) -> Result<Vec<Vec<u32>>> {
    let writing = Writing {
        until,
        random: Some(seed),
        kept,
        on_token: &mut on_token,
    };
    writing.after::<E>(model, None, &vec![prompt.to_vec(); count])
}

/// How sequences are written on.
struct Writing<'f> {
    until: &'f Until<'f>,
    /// The seed of what is drawn at temperature 1; without it the likeliest tokens are taken.
    random: Option<u64>,
    kept: &'f mut Kept,
    on_token: &'f mut dyn FnMut(),
}

/// A sequence that is written on.
struct Text {
    /// Its key among those that are kept.
    key: String,
    written: Vec<u32>,
    sampler: Sampler,
}

impl Writing<'_> {
    /// What follows each of some prompts.
    fn after<E: Element>(
        mut self,
        model: &Model,
        overlay: Option<&Overlay<E>>,
        prompts: &[Vec<u32>],
    ) -> Result<Vec<Vec<u32>>> {
        let tokens: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut shared = prefix(model, overlay, &tokens)?;
        if let Some(cancel) = &self.kept.cancel {
            shared = shared.with_cancel(Arc::clone(cancel));
        }
        let mut written = Vec::with_capacity(prompts.len());
        for prompts in tokens.chunks(TOGETHER) {
            let mut texts = self.begun(written.len(), prompts);
            let ended = self.together(&shared, overlay, prompts, &mut texts);
            for text in texts {
                self.kept.keep(text.key, text.written.clone());
                written.push(text.written);
            }
            ended?;
        }
        Ok(written)
    }

    /// What is kept of the texts after some prompts, of which the first has this number.
    fn begun(&self, first: usize, prompts: &[&[u32]]) -> Vec<Text> {
        let each = prompts.iter().zip(first..).map(|(prompt, number)| {
            let (how, sampling) = match self.random {
                None => ("likeliest".to_owned(), Sampling::default()),
                Some(seed) => (format!("{seed}-{number}"), at_temperature_1(seed, number)),
            };
            let key = key(&how, prompt);
            let mut sampler = Sampler::new(sampling);
            let mut written = Vec::new();
            for token in self.kept.text(&key).iter().take(self.until.most) {
                written.push(*token);
                sampler.skip(*token);
                if (self.until.ended)(&written) {
                    break;
                }
            }
            Text {
                key,
                written,
                sampler,
            }
        });
        each.collect()
    }

    /// Writes on texts, which go through the layers together, until all are whole.
    fn together<'m, E: Element>(
        &mut self,
        shared: &Session<'m, E>,
        overlay: Option<&'m Overlay<E>>,
        prompts: &[&[u32]],
        texts: &mut [Text],
    ) -> Result<()> {
        let model = shared.model();
        let ends = model.checkpoint().eos_token_ids();
        let goes_on = |text: &Text, room: bool| {
            let Some(last) = text.written.last() else {
                return self.until.most > 0;
            };
            let whole = ends.contains(last) || (self.until.ended)(&text.written);
            room && text.written.len() < self.until.most && !whole
        };
        let mut next: Vec<Vec<u32>> = (prompts.iter().zip(&*texts))
            .map(|(prompt, text)| [&prompt[shared.position()..], &text.written].concat())
            .collect();
        let mut batch = Batch::new(model, vec![shared.clone(); texts.len()]).with_overlay(overlay);
        let mut active: Vec<&mut Text> = texts.iter_mut().collect();
        loop {
            let open = batch.open(&next);
            let stay: Vec<bool> = (active.iter().zip(open))
                .map(|(text, room)| goes_on(text, room))
                .collect();
            batch.retain(&stay);
            retain(&mut active, &stay);
            retain(&mut next, &stay);
            if active.is_empty() {
                return Ok(());
            }
            let logits = batch.last_logits(&next)?;
            let texts = active.par_iter_mut().enumerate();
            texts.zip(&mut next).for_each(|((row, text), next)| {
                let token = text.sampler.next(logits.row(row));
                text.written.push(token);
                *next = vec![token];
            });
            active.iter().for_each(|_| (self.on_token)());
        }
    }
}

fn at_temperature_1(seed: u64, text: usize) -> Sampling {
    Sampling {
        temperature: 1.0,
        seed,
        stream: text as u64,
        ..Sampling::default()
    }
}

/// Keeps those of `all` that have a `true`.
fn retain<T>(all: &mut Vec<T>, stay: &[bool]) {
    let mut stay = stay.iter();
    all.retain(|_| stay.next() == Some(&true));
}

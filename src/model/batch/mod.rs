//! Continuous batching: sequences that join and leave between steps, and read the weights together.
//!
//! ```
//! use context_patch::Model;
//! use context_patch::model::batch::{Batch, BatchOptions, Entry};
//! use context_patch::model::generate::greedy;
//!
//! # fn main() -> context_patch::Result<()> {
//! let model = Model::open("reference/tiny")?;
//! let tokenizer = model.checkpoint().tokenizer()?;
//! let mut batch = Batch::<f32>::new(&model, BatchOptions::default());
//! let mut answers = std::collections::BTreeMap::new();
//! for prompt in ["Ann likes plums. Ann likes", "Bob likes figs. Bob likes"] {
//!     let id = batch.join(Entry::new(tokenizer.encode(prompt)?, 3))?;
//!     answers.insert(id, Vec::new());
//! }
//! while !batch.is_idle() {
//!     let step = batch.step()?;
//!     for said in step.said() {
//!         let answer = answers.entry(said.id).or_default();
//!         answer.push(greedy(said.logits));
//!         if answer.len() == 3 {
//!             batch.leave(said.id);
//!         } else {
//!             batch.push(said.id, answer[answer.len() - 1])?;
//!         }
//!     }
//! }
//! for answer in answers.values() {
//!     println!("{}", tokenizer.decode(answer)?);
//! }
//! # Ok(())
//! # }
//! ```

mod member;
mod prefixes;
mod shares;
mod step;

use std::collections::BTreeMap;
use std::sync::Arc;

use member::Member;
use prefixes::Prefixes;
use shares::shares;
pub use step::{Said, Step};

use super::cache::SLACK;
use super::error::{Error, Result};
use super::{Model, Overlay, Session};
use crate::tensor::Element;

/// What a batch may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Tokens of prompts that a step takes in beside one token of each sequence that writes: the fewer, the shorter it is
    /// for those. At least one.
    pub prefill_tokens: usize,
    /// Bytes of keys and values of all sequences. What a sequence may need is set aside when it joins.
    pub cache_limit: usize,
    /// Bytes of keys and values that are kept for sequences that begin like earlier ones. 0 keeps none.
    pub prefix_cache: usize,
}

impl Default for BatchOptions {
    /// 128 tokens, 1 GiB, 256 MiB.
    fn default() -> Self {
        Self {
            prefill_tokens: 128,
            cache_limit: 1 << 30,
            prefix_cache: 256 << 20,
        }
    }
}

/// What a sequence begins with, and what it may need.
#[derive(Clone, Debug)]
pub struct Entry<E: Element> {
    /// Its first tokens.
    pub prompt: Vec<u32>,
    /// The positions of the first of them, which ascend and may have gaps, as those of the tokens that a patch has left; the
    /// others follow on. Without any, which is usual, they are 0, 1, 2…
    pub positions: Vec<usize>,
    /// The most tokens that are pushed after them.
    pub max_tokens: usize,
    /// The patch it runs under.
    pub overlay: Option<Arc<Overlay<E>>>,
    /// Whether the logits after every token of the prompt are wanted, and not after the last alone. Then nothing of it comes
    /// from the prefix cache.
    pub every_logits: bool,
}

impl<E: Element> Entry<E> {
    /// A sequence without a patch, of which the logits after the prompt are wanted.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            positions: Vec::new(),
            max_tokens,
            overlay: None,
            every_logits: false,
        }
    }
}

/// A sequence of a [`Batch`]. Ids ascend in the order of joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// Bytes of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMemory {
    /// Set aside for the sequences, of [`BatchOptions::cache_limit`].
    pub reserved: usize,
    /// Kept for later ones, of [`BatchOptions::prefix_cache`].
    pub prefixes: usize,
}

/// Sequences of a model that go through it together.
///
/// What a sequence says does not depend on the others, to the last bit: neither on which there are, nor on when they come
/// and go, nor on whether its beginning was computed for it or for an earlier one. One that fails leaves the others alone.
#[derive(Debug)]
pub struct Batch<'m, E: Element> {
    model: &'m Model,
    options: BatchOptions,
    sequences: BTreeMap<SequenceId, Member<'m, E>>,
    prefixes: Prefixes<E>,
    joined: u64,
}

impl<'m, E: Element> Batch<'m, E> {
    /// A batch without sequences.
    pub fn new(model: &'m Model, options: BatchOptions) -> Self {
        Self {
            model,
            options,
            sequences: BTreeMap::new(),
            prefixes: Prefixes::new(options.prefix_cache),
            joined: 0,
        }
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Whether no sequence has tokens to take in, so that there is nothing to [step](Self::step).
    pub fn is_idle(&self) -> bool {
        self.sequences.values().all(|member| member.left() == 0)
    }

    /// The memory for keys and values.
    pub fn memory(&self) -> BatchMemory {
        BatchMemory {
            reserved: self.sequences.values().map(|member| member.reserved).sum(),
            prefixes: self.prefixes.bytes(),
        }
    }

    /// How many tokens of a sequence came from the prefix cache so far.
    ///
    /// # Panics
    ///
    /// If the sequence is not in the batch.
    pub fn cached_tokens(&self, id: SequenceId) -> usize {
        self.member(id).cached
    }

    /// Takes a sequence in, which begins with the next step.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`], [`Error::TokenId`], [`Error::PromptTooLong`], [`Error::CacheLimit`] where the batch is too
    /// small for the sequence, and [`Error::BatchFull`] where it is until others have left.
    ///
    /// # Panics
    ///
    /// If the positions do not ascend, or are more than the tokens.
    pub fn join(&mut self, entry: Entry<E>) -> Result<SequenceId> {
        let most = entry.prompt.len().saturating_add(entry.max_tokens);
        self.model.check_tokens(&entry.prompt, 0)?;
        let ascend = entry.positions.is_sorted_by(|a, b| a < b);
        assert!(
            ascend && entry.positions.len() <= entry.prompt.len(),
            "positions of a prompt"
        );
        let session = Session::new(self.model);
        let whole = session.clone().with_cache_limit(self.options.cache_limit);
        whole.at(member::gaps(&entry.positions)).check_room(most)?;
        let reserved = self.model.cache_bytes::<E>(most);
        let session = session.with_cache_limit(reserved);
        self.enter(Member::new(session, reserved, entry))
    }

    /// Takes in a copy of a sequence, which has seen what that one has and goes on by itself.
    ///
    /// # Errors
    ///
    /// [`Error::BatchFull`].
    ///
    /// # Panics
    ///
    /// If the sequence is not in the batch.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        self.enter(self.member(id).clone())
    }

    fn enter(&mut self, member: Member<'m, E>) -> Result<SequenceId> {
        let allowed = self.options.cache_limit;
        let free = allowed - self.memory().reserved;
        if member.reserved > free {
            return Err(Error::BatchFull {
                needed: member.reserved,
                free,
                allowed,
            });
        }
        let id = SequenceId(self.joined);
        self.joined += 1;
        self.sequences.insert(id, member);
        Ok(id)
    }

    /// Gives a sequence its next token.
    ///
    /// # Errors
    ///
    /// [`Error::TokenId`]; [`Error::PromptTooLong`] and [`Error::CacheLimit`] where it was to have no more tokens. The sequence
    /// stays as it was.
    ///
    /// # Panics
    ///
    /// If the sequence is not in the batch.
    pub fn push(&mut self, id: SequenceId, token: u32) -> Result<()> {
        let member = self.member(id);
        self.model
            .check_tokens(&[token], member.position_of(member.tokens.len()))?;
        member.session.check_room(member.left() + 1)?;
        let member = self.sequences.get_mut(&id);
        member
            .into_iter()
            .for_each(|member| member.tokens.push(token));
        Ok(())
    }

    /// Drops a sequence, wherever it is. Returns whether it was there.
    pub fn leave(&mut self, id: SequenceId) -> bool {
        self.sequences.remove(&id).is_some()
    }

    fn member(&self, id: SequenceId) -> &Member<'m, E> {
        &self.sequences[&id]
    }

    /// Takes in one token of each sequence that has one, and some tokens of prompts.
    ///
    /// # Errors
    ///
    /// What keeps all sequences from going on: a device that failed. What keeps one from it is in [`Step::failed`].
    pub fn step(&mut self) -> Result<Step<E>> {
        for member in self.sequences.values_mut() {
            member.take_stored(&mut self.prefixes);
        }
        let left: Vec<_> = self.sequences.values().map(Member::together).collect();
        let shares = shares(&left, self.options.prefill_tokens, SLACK);
        let members = self.sequences.iter_mut().zip(shares);
        let members = members.map(|((id, member), share)| (*id, member, share));
        let step = Step::take(self.model, members.collect())?;
        for (id, _) in &step.failed {
            self.sequences.remove(id);
        }
        for member in self.sequences.values_mut() {
            member.store(&mut self.prefixes);
        }
        Ok(step)
    }
}

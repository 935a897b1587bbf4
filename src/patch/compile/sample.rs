//! What a patch is compiled from: sequences as the model sees them with the prompt and without it.

use std::ops::Range;

/// Tokens of a text that must not change which are compared: what a large vocabulary makes of each takes as long as all layers.
const COMPARED: usize = 16;

/// What a sample is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A query that the patch is for.
    Query,
    /// A text that must not change.
    Text,
    /// A query of another kind, which is to be answered as without the prompt.
    Away,
    /// A query that the model made up, beside those that are given: compiled from, and never tried.
    Own,
}

impl Role {
    /// Those that are left out and tried, in the order of their numbers.
    pub(super) const TRIED: [Self; 3] = [Self::Query, Self::Text, Self::Away];
}

/// A sequence with the prompt and without it, which end in the same tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// With the prompt.
    pub prompted: Vec<u32>,
    /// Without it, at positions 0, 1, 2, …
    pub bare: Vec<u32>,
    /// How many of the last tokens are answer: what is compared.
    pub answer: usize,
    /// How many of the last tokens are the last turn, query and answer: what the layers are fitted on.
    pub turn: usize,
    /// What it is there for. What is not to be answered as with the prompt is the same with it and without it.
    pub role: Role,
    /// The number of the query or text that it is about: what is about one is left out together.
    pub about: usize,
}

impl Sample {
    /// A query behind a prompt, and what the model with the prompt answers.
    pub fn query(about: usize, prompted: &[u32], bare: &[u32], answer: &[u32]) -> Self {
        Self {
            prompted: [prompted, answer].concat(),
            bare: [bare, answer].concat(),
            answer: answer.len(),
            turn: bare.len() + answer.len(),
            role: Role::Query,
            about,
        }
    }

    /// The same where the first `before` tokens, without the prompt, are earlier turns of the conversation.
    #[must_use]
    pub fn after(self, before: usize) -> Self {
        let turn = self.turn.saturating_sub(before);
        Self { turn, ..self }
    }

    /// A text that must not change.
    pub fn anchor(about: usize, text: Vec<u32>) -> Self {
        Self {
            prompted: text.clone(),
            answer: text.len().saturating_sub(1).min(COMPARED),
            turn: text.len(),
            bare: text,
            role: Role::Text,
            about,
        }
    }

    /// How many tokens at the end are the same in both and of the last turn, but for the first of each and the last: what the layers
    /// are fitted on.
    pub fn rows(&self) -> usize {
        let same = self.prompted.iter().rev().zip(self.bare.iter().rev());
        let same = same.take_while(|(a, b)| a == b).count();
        let most = self.bare.len().min(self.prompted.len()).saturating_sub(1);
        same.min(most).min(self.turn).saturating_sub(1)
    }

    /// The tokens that go through the model without the prompt: all but the last, after which nothing is asked.
    pub(super) fn taken(&self) -> &[u32] {
        &self.bare[..self.bare.len().saturating_sub(1)]
    }

    /// Which of [`taken`](Self::taken) are rows.
    pub(super) fn fitted(&self) -> Range<usize> {
        let end = self.taken().len();
        end - self.rows()..end
    }

    /// Whether it is the same with the prompt and without it, and all its tokens but the first are rows.
    pub(super) fn stays(&self) -> bool {
        self.prompted == self.bare && self.fitted().start <= 1
    }

    /// The tokens before the rows, with the prompt.
    pub(super) fn before(&self) -> &[u32] {
        &self.prompted[..self.taken_prompted().len() - self.rows()]
    }

    /// [`taken`](Self::taken) with the prompt.
    pub(super) fn taken_prompted(&self) -> &[u32] {
        &self.prompted[..self.prompted.len().saturating_sub(1)]
    }
}

/// How many tokens some sequences have in common at the beginning.
pub(super) fn common(sequences: &[&[u32]]) -> usize {
    let Some((first, others)) = sequences.split_first() else {
        return 0;
    };
    let same = |other: &&[u32]| first.iter().zip(*other).take_while(|(a, b)| a == b).count();
    others.iter().map(same).fold(first.len(), usize::min)
}

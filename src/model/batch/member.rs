//! One of the sequences of a batch.

use std::sync::Arc;

use super::Entry;
use super::prefixes::{BLOCK, Beginning, Prefixes};
use crate::Session;
use crate::model::Overlay;
use crate::tensor::Element;

/// A sequence that has taken in some of its tokens.
#[derive(Clone, Debug)]
pub(super) struct Member<'m, E: Element> {
    pub(super) session: Session<'m, E>,
    pub(super) overlay: Option<Arc<Overlay<E>>>,
    pub(super) tokens: Vec<u32>,
    /// How many of them it has taken in.
    taken: usize,
    /// The positions of the first ones, where they have gaps.
    positions: Vec<usize>,
    /// Whether the logits after each of them are wanted.
    pub(super) every_logits: bool,
    /// Bytes that are set aside for it.
    pub(super) reserved: usize,
    /// How many of its tokens came from the prefix cache.
    pub(super) cached: usize,
    /// Its first blocks, as far as they were looked for or stored.
    beginning: Beginning,
    /// The tokens of these.
    known: usize,
}

impl<'m, E: Element> Member<'m, E> {
    /// A sequence that has taken in nothing.
    pub(super) fn new(session: Session<'m, E>, reserved: usize, entry: Entry<E>) -> Self {
        Self {
            session,
            overlay: entry.overlay,
            tokens: entry.prompt,
            taken: 0,
            positions: entry.positions,
            every_logits: entry.every_logits,
            reserved,
            cached: 0,
            beginning: Beginning::default(),
            known: 0,
        }
    }

    /// The tokens it has still to take in.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.taken
    }

    /// How many of these there are up to the next gap between positions.
    pub(super) fn together(&self) -> usize {
        let next = self.positions.get(self.taken..).unwrap_or_default();
        let gap = next.windows(2).position(|pair| pair[0] + 1 < pair[1]);
        gap.map_or(self.left(), |gap| gap + 1)
    }

    /// The position of a token.
    pub(super) fn position_of(&self, token: usize) -> usize {
        let position = self.positions.get(token).copied();
        position.unwrap_or(token + gaps(&self.positions))
    }

    /// The session, and the next tokens that it takes in, which are [together](Self::together).
    pub(super) fn next(&mut self, count: usize) -> (&mut Session<'m, E>, &[u32]) {
        self.session.go_to(self.position_of(self.taken));
        let tokens = self.taken..self.taken + count;
        self.taken = tokens.end;
        (&mut self.session, &self.tokens[tokens])
    }

    /// Takes in the blocks that come next, as far as they are stored. The last token is always computed, for its logits.
    pub(super) fn take_stored(&mut self, prefixes: &mut Prefixes<E>) {
        while !self.every_logits
            && self.positions.is_empty()
            && self.taken == self.known
            && self.left() > BLOCK
        {
            let tokens = &self.tokens[self.known..][..BLOCK];
            let stored = prefixes.get(self.overlay.as_ref(), self.beginning, tokens);
            let Some((block, beginning)) = stored else {
                return;
            };
            self.session.append(BLOCK, block);
            self.taken += BLOCK;
            self.cached += BLOCK;
            self.know(beginning);
        }
    }

    /// Stores the blocks that it has taken in since the last time.
    pub(super) fn store(&mut self, prefixes: &mut Prefixes<E>) {
        while self.positions.is_empty() && self.taken >= self.known + BLOCK {
            let positions = self.known..self.known + BLOCK;
            let tokens = &self.tokens[positions.clone()];
            let block = || self.session.block(positions);
            self.know(prefixes.insert(self.overlay.as_ref(), self.beginning, tokens, block));
        }
    }

    fn know(&mut self, beginning: Beginning) {
        self.beginning = beginning;
        self.known += BLOCK;
    }
}

/// How many positions no token has before those that follow on from `positions`.
pub(super) fn gaps(positions: &[usize]) -> usize {
    let last = positions.last();
    last.map_or(0, |last| last + 1 - positions.len())
}

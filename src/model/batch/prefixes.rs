//! Keys and values of beginnings that many sequences share, within a bound of memory.
//!
//! A sequence is cut into blocks of [`BLOCK`] tokens. A block is known by its tokens, by all those before it and by the patch
//! under which they were taken in; where any of these differs, so do its keys. A block goes only after those that follow
//! it, the least recently used one first.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use sha2::{Digest, Sha256};

use crate::model::Overlay;
use crate::model::cache::CacheBlock;
use crate::tensor::Element;

/// Tokens of a block.
pub(super) const BLOCK: usize = 32;

/// The SHA-256 of some blocks of tokens, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Beginning([u8; 32]);

impl Beginning {
    /// The same with one block more.
    fn then(self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(self.0);
        tokens
            .iter()
            .for_each(|token| hash.update(token.to_le_bytes()));
        Self(hash.finalize().into())
    }
}

/// Where a block is found: by the address of its patch, which stays taken while a [`Weak`] to it is here, and by its tokens
/// with all before them.
type Key = (usize, Beginning);

fn address<E: Element>(overlay: Option<&Arc<Overlay<E>>>) -> usize {
    overlay.map_or(0, |overlay| Arc::as_ptr(overlay).addr())
}

#[derive(Debug)]
struct Stored<E: Element> {
    block: CacheBlock<E>,
    overlay: Option<Weak<Overlay<E>>>,
    before: Option<Key>,
    /// How many blocks follow it.
    after: usize,
    /// When it was last used.
    used: u64,
}

impl<E: Element> Stored<E> {
    fn bytes(&self) -> usize {
        self.block.bytes() + size_of::<(Key, Self)>()
    }

    /// Whether its patch is still there.
    fn is_loaded(&self) -> bool {
        let overlay = self.overlay.as_ref();
        overlay.is_none_or(|overlay| overlay.strong_count() > 0)
    }
}

/// The blocks that are stored.
#[derive(Debug)]
pub(super) struct Prefixes<E: Element> {
    blocks: HashMap<Key, Stored<E>>,
    bytes: usize,
    most: usize,
    clock: u64,
}

impl<E: Element> Prefixes<E> {
    /// Of at most `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self {
            blocks: HashMap::new(),
            bytes: 0,
            most,
            clock: 0,
        }
    }

    /// The bytes that the blocks take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The block of `tokens` after a beginning, and the beginning that they make with it.
    pub(super) fn get(
        &mut self,
        overlay: Option<&Arc<Overlay<E>>>,
        beginning: Beginning,
        tokens: &[u32],
    ) -> Option<(&CacheBlock<E>, Beginning)> {
        if self.blocks.is_empty() {
            return None;
        }
        let then = beginning.then(tokens);
        let stored = self.blocks.get_mut(&(address(overlay), then))?;
        self.clock += 1;
        stored.used = self.clock;
        Some((&stored.block, then))
    }

    /// Stores the block of `tokens` after a beginning, unless it is there or a block before it is not. Returns the
    /// beginning that they make with it.
    pub(super) fn insert(
        &mut self,
        overlay: Option<&Arc<Overlay<E>>>,
        beginning: Beginning,
        tokens: &[u32],
        block: impl FnOnce() -> Option<CacheBlock<E>>,
    ) -> Beginning {
        if self.most == 0 {
            return beginning;
        }
        let then = beginning.then(tokens);
        let key = |beginning| (address(overlay), beginning);
        self.clock += 1;
        if let Some(stored) = self.blocks.get_mut(&key(then)) {
            stored.used = self.clock;
            return then;
        }
        let before = (beginning != Beginning::default()).then(|| key(beginning));
        if before.is_some_and(|before| !self.blocks.contains_key(&before)) {
            return then;
        }
        let Some(block) = block() else {
            return then;
        };
        let stored = Stored {
            block,
            overlay: overlay.map(Arc::downgrade),
            before,
            after: 0,
            used: self.clock,
        };
        if let Some(before) = before.and_then(|before| self.blocks.get_mut(&before)) {
            before.after += 1;
        }
        self.bytes += stored.bytes();
        self.blocks.insert(key(then), stored);
        self.forget_unloaded();
        while self.bytes > self.most {
            self.forget_oldest();
        }
        then
    }

    /// Drops the blocks of patches that nobody has any more.
    fn forget_unloaded(&mut self) {
        self.blocks.retain(|_, stored| {
            let loaded = stored.is_loaded();
            if !loaded {
                self.bytes -= stored.bytes();
            }
            loaded
        });
    }

    /// Drops the block that was used least recently, of those that none follows.
    fn forget_oldest(&mut self) {
        let last = self.blocks.iter().filter(|(_, stored)| stored.after == 0);
        let Some((&key, _)) = last.min_by_key(|(_, stored)| stored.used) else {
            return;
        };
        let Some(stored) = self.blocks.remove(&key) else {
            return;
        };
        self.bytes -= stored.bytes();
        if let Some(before) = stored
            .before
            .and_then(|before| self.blocks.get_mut(&before))
        {
            before.after -= 1;
        }
    }
}

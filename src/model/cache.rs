//! The key-value cache of one sequence: all keys on full layers, the window's on sliding ones.
//!
//! Its size is known before a token arrives: vectors grow by [`STEP`] tokens instead of doubling, and a sliding layer drops
//! the keys that no later token sees before it would exceed its window plus [`SLACK`].

use std::ops::Range;

#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::cuda::{DeviceCache, OnDevice};
use crate::tensor::Element;

/// How many keys beyond its window a sliding layer may hold before it drops the oldest, so that not every token moves the
/// whole window. Also the most tokens that enter together.
pub(super) const SLACK: usize = 256;

/// The tokens by which a vector grows. Decoding then copies it once every 64 tokens, which costs little: attention reads all of
/// it for each token.
const STEP: usize = 64;

/// The tokens a layer has room for while it holds `tokens`: powers of two up to [`STEP`], because many sequences are only a
/// token or two long.
fn room(window: Option<usize>, tokens: usize) -> usize {
    let most = window.map_or(usize::MAX, |window| window.saturating_add(SLACK));
    let room = if (1..=STEP).contains(&tokens) {
        Some(tokens.next_power_of_two())
    } else {
        tokens.checked_next_multiple_of(STEP)
    };
    room.unwrap_or(usize::MAX).min(most)
}

/// The keys and values of one sequence, layer by layer.
#[derive(Clone, Debug)]
pub(crate) struct Cache<E> {
    pub(super) layers: Vec<LayerCache<E>>,
    /// Where a device has the keys and values, and the layers none.
    #[cfg(feature = "cuda")]
    device: Option<DeviceCache>,
}

impl<E: Element> Cache<E> {
    /// An empty cache; `windows` are those of the layers, `None` for a full one.
    pub(crate) fn new(
        windows: impl IntoIterator<Item = Option<usize>>,
        kv_heads: usize,
        head_dim: usize,
    ) -> Self {
        let layers = windows.into_iter().map(|window| LayerCache {
            window,
            head_dim,
            positions: Vec::new(),
            keys: vec![Vec::new(); kv_heads],
            values: vec![Vec::new(); kv_heads],
        });
        Self {
            layers: layers.collect(),
            #[cfg(feature = "cuda")]
            device: None,
        }
    }

    /// The same on a device, if there is one.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(mut self, device: Option<Arc<OnDevice>>) -> Self {
        let layers = self.layers.len();
        self.device =
            device.map(|device| DeviceCache::new(device, layers, |tokens| room(None, tokens)));
        if self.device.is_some() {
            // A device keeps the keys that a window has left behind.
            self.layers.iter_mut().for_each(|layer| layer.window = None);
        }
        self
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn device_mut(&mut self) -> Option<&mut DeviceCache> {
        self.device.as_mut()
    }

    /// The keys and values of a layer; `None` where a device has them.
    pub(super) fn layer_mut(&mut self, layer: usize) -> Option<&mut LayerCache<E>> {
        #[cfg(feature = "cuda")]
        if self.device.is_some() {
            return None;
        }
        self.layers.get_mut(layer)
    }

    /// The tokens it holds. Where all layers are sliding ones, a long sequence has more than that.
    pub(super) fn tokens(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            return device.tokens();
        }
        let layers = self.layers.iter().map(|layer| layer.positions.len());
        layers.max().unwrap_or_default()
    }

    /// The most bytes that keys, values and positions take while `tokens` enter. The largest vector counts twice, because its
    /// old memory is freed only after it has been copied.
    pub(super) fn bytes(&self, tokens: usize) -> usize {
        #[cfg(feature = "cuda")]
        let of_layer = match self.device {
            // A device copies a layer as a whole.
            Some(_) => LayerCache::bytes,
            None => LayerCache::vector,
        };
        #[cfg(not(feature = "cuda"))]
        let of_layer = LayerCache::vector;
        let vectors = self.layers.iter().map(|layer| of_layer(layer, tokens));
        let layers = self.layers.iter().map(|layer| layer.bytes(tokens));
        layers.fold(vectors.max().unwrap_or_default(), usize::saturating_add)
    }

    /// The most tokens, up to `most`, that take no more than `allowed` bytes.
    pub(super) fn fit(&self, allowed: usize, most: usize) -> usize {
        let (mut fit, mut over) = (0, most.saturating_add(1));
        while over - fit > 1 {
            let middle = fit + (over - fit) / 2;
            if self.bytes(middle) <= allowed {
                fit = middle;
            } else {
                over = middle;
            }
        }
        fit
    }

    /// What a sequence needs of the tokens at `positions` to go on after them; `None` where a device has it. No more than
    /// [`SLACK`] tokens may have entered together with the first that comes after them.
    pub(super) fn block(&self, positions: Range<usize>) -> Option<CacheBlock<E>> {
        #[cfg(feature = "cuda")]
        if self.device.is_some() {
            return None;
        }
        let layers = self.layers.iter();
        let layers = layers.map(|layer| layer.block(positions.clone())).collect();
        Some(CacheBlock {
            end: positions.end,
            layers,
        })
    }

    /// Takes in a block of the tokens that come next.
    pub(super) fn append(&mut self, block: &CacheBlock<E>) {
        for (layer, block_layer) in self.layers.iter_mut().zip(&block.layers) {
            layer.append(block.end, block_layer);
        }
    }

    /// The bytes that are allocated for keys, values and positions.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        let vectors = |layer: &LayerCache<E>| -> usize {
            let vectors = layer.keys.iter().chain(&layer.values);
            vectors.map(|v| v.capacity() * size_of::<E>()).sum()
        };
        let layers = self.layers.iter();
        layers
            .map(|layer| vectors(layer) + layer.positions.capacity() * size_of::<usize>())
            .sum()
    }
}

/// A copy of the keys and values of some tokens: in a sliding layer of those that a token after them sees.
#[derive(Debug)]
pub(super) struct CacheBlock<E> {
    /// The position after the last token.
    end: usize,
    layers: Vec<LayerBlock<E>>,
}

impl<E> CacheBlock<E> {
    /// The bytes of its numbers.
    pub(super) fn bytes(&self) -> usize {
        let layers = self.layers.iter();
        layers.map(|layer| 2 * size_of_val(&*layer.keys)).sum()
    }
}

/// The last tokens of a block in one layer, as many as there are keys.
#[derive(Debug)]
struct LayerBlock<E> {
    tokens: usize,
    /// `[kv_heads, tokens, head_dim]`
    keys: Box<[E]>,
    values: Box<[E]>,
}

/// The keys (after RoPE) and values of one layer, oldest first.
#[derive(Clone, Debug)]
pub(super) struct LayerCache<E> {
    window: Option<usize>,
    head_dim: usize,
    /// The position of each key, ascending; gaps are tokens that a patch has absorbed.
    positions: Vec<usize>,
    /// `[kv_heads][keys · head_dim]`
    keys: Vec<Vec<E>>,
    values: Vec<Vec<E>>,
}

impl<E: Element> LayerCache<E> {
    /// The bytes of keys, values and positions while it holds `tokens`.
    fn bytes(&self, tokens: usize) -> usize {
        let numbers = (2 * self.keys.len()).saturating_mul(self.head_dim);
        let token = numbers
            .saturating_mul(size_of::<E>())
            .saturating_add(size_of::<usize>());
        room(self.window, tokens).saturating_mul(token)
    }

    /// The bytes of its largest vector while it holds `tokens`.
    fn vector(&self, tokens: usize) -> usize {
        let token = self.head_dim.saturating_mul(size_of::<E>());
        room(self.window, tokens).saturating_mul(token.max(size_of::<usize>()))
    }

    /// Makes room for `tokens` more, at most [`SLACK`], the first of them at `position`.
    pub(super) fn make_room(&mut self, position: usize, tokens: usize) {
        debug_assert!(tokens <= SLACK, "{tokens} tokens at once");
        let most = self.window.map(|window| window.saturating_add(SLACK));
        if most.is_some_and(|most| self.positions.len() + tokens > most) {
            self.forget(position);
        }
        let held = self.positions.len();
        let more = room(self.window, held + tokens) - held;
        self.positions.reserve_exact(more);
        for vectors in self.keys.iter_mut().chain(&mut self.values) {
            vectors.reserve_exact(more * self.head_dim);
        }
    }

    /// Adds the token at `position`; `key` and `value` are `[kv_heads · head_dim]`.
    pub(super) fn push(&mut self, position: usize, key: &[E], value: &[E]) {
        let ascending = self.positions.last().is_none_or(|&last| last < position);
        assert!(
            ascending,
            "a token at position {position} after a later one"
        );
        self.positions.push(position);
        let heads = key.chunks(self.head_dim).zip(value.chunks(self.head_dim));
        for (head, (key, value)) in heads.enumerate() {
            self.keys[head].extend_from_slice(key);
            self.values[head].extend_from_slice(value);
        }
    }

    /// The tokens at `positions`, as far as a later one sees them.
    fn block(&self, positions: Range<usize>) -> LayerBlock<E> {
        let before = |position| self.positions.partition_point(|&j| j < position);
        let first = before(positions.start).max(self.first_seen_from(positions.end));
        let seen = first..before(positions.end);
        let heads = 0..self.keys.len();
        let keys = heads.clone().flat_map(|head| self.keys(head, seen.clone()));
        let values = heads.flat_map(|head| self.values(head, seen.clone()));
        LayerBlock {
            tokens: seen.len(),
            keys: keys.copied().collect(),
            values: values.copied().collect(),
        }
    }

    /// Takes in a block that ends before the position `end`.
    fn append(&mut self, end: usize, block: &LayerBlock<E>) {
        if block.tokens == 0 {
            return;
        }
        let first = end - block.tokens;
        self.make_room(first, block.tokens);
        self.positions.extend(first..end);
        let stored = block.keys.chunks(block.tokens * self.head_dim);
        for (keys, stored) in self.keys.iter_mut().zip(stored) {
            keys.extend_from_slice(stored);
        }
        let stored = block.values.chunks(block.tokens * self.head_dim);
        for (values, stored) in self.values.iter_mut().zip(stored) {
            values.extend_from_slice(stored);
        }
    }

    /// Which keys the query at `position` sees: of key j those with position − window < j ≤ position.
    pub(super) fn seen_from(&self, position: usize) -> Range<usize> {
        let end = self.positions.partition_point(|&j| j <= position);
        self.first_seen_from(position)..end
    }

    /// Some keys of a head, `[keys, head_dim]`.
    pub(super) fn keys(&self, head: usize, range: Range<usize>) -> &[E] {
        &self.keys[head][range.start * self.head_dim..range.end * self.head_dim]
    }

    /// Some values of a head, `[keys, head_dim]`.
    pub(super) fn values(&self, head: usize, range: Range<usize>) -> &[E] {
        &self.values[head][range.start * self.head_dim..range.end * self.head_dim]
    }

    fn first_seen_from(&self, position: usize) -> usize {
        match self.window {
            None => 0,
            Some(window) => self.positions.partition_point(|&j| j + window <= position),
        }
    }

    /// Drops the keys that no token from `position` on sees.
    fn forget(&mut self, position: usize) {
        let unseen = self.first_seen_from(position);
        self.positions.drain(..unseen);
        for vectors in self.keys.iter_mut().chain(&mut self.values) {
            vectors.drain(..unseen * self.head_dim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer of one head of two numbers that has taken in `tokens`, `together` at a time.
    fn filled(window: Option<usize>, tokens: usize, together: usize) -> Cache<f32> {
        let mut cache = Cache::new([window], 1, 2);
        for start in (0..tokens).step_by(together) {
            let end = tokens.min(start + together);
            cache.layers[0].make_room(start, end - start);
            for t in start..end {
                cache.layers[0].push(t, &[t as f32, 0.0], &[0.0, t as f32]);
            }
        }
        cache
    }

    fn seen(cache: &Cache<f32>, position: usize) -> Vec<f32> {
        let layer = &cache.layers[0];
        let keys = layer.keys(0, layer.seen_from(position));
        keys.iter().step_by(2).copied().collect()
    }

    #[test]
    fn the_window_counts_the_token_itself() {
        let cache = filled(Some(3), 10, 1);
        assert_eq!(seen(&cache, 9), [7.0, 8.0, 9.0]);
        assert_eq!(seen(&cache, 1), [0.0, 1.0]);
        assert_eq!(seen(&filled(Some(1), 10, 1), 9), [9.0]);
        assert_eq!(seen(&filled(None, 10, 1), 9).len(), 10);
    }

    #[test]
    fn a_sliding_layer_forgets() {
        for together in [1, 7, SLACK] {
            let cache = filled(Some(3), 2000, together);
            assert!(cache.tokens() <= SLACK + 3);
            assert_eq!(seen(&cache, 1999), [1997.0, 1998.0, 1999.0]);
            assert_eq!(seen(&cache, 1999 - together % SLACK).len(), 3);
        }
    }

    #[test]
    fn what_is_allocated_is_what_was_computed() {
        for window in [None, Some(1), Some(3), Some(64), Some(100), Some(512)] {
            for tokens in [1, 63, 64, 65, 255, 256, 257, 300, 769, 2000] {
                for together in [1, 5, 64, SLACK] {
                    let cache = filled(window, tokens, together);
                    // Nothing grows any more.
                    let computed = cache.bytes(tokens) - cache.layers[0].vector(tokens);
                    // A sliding layer may let go of keys before its last growth, of less than a step.
                    let step = cache.layers[0].bytes(STEP);
                    assert!(
                        (computed.saturating_sub(step - 1)..=computed).contains(&cache.allocated()),
                        "{window:?} {tokens} {together}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_bound_fits_the_tokens_it_says() {
        let cache = Cache::<f32>::new([None, Some(3)], 2, 8);
        for tokens in [1, 63, 64, 65, 259, 260, 1000] {
            let bytes = cache.bytes(tokens);
            let fit = cache.fit(bytes, 100_000);
            assert_eq!(fit, room(None, tokens));
            assert_eq!(cache.bytes(fit), bytes);
            assert!(cache.bytes(fit + 1) > bytes);
            assert!(cache.fit(bytes - 1, 100_000) < tokens);
        }
        assert_eq!(cache.fit(usize::MAX, 100_000), 100_000);
        assert_eq!(cache.bytes(usize::MAX), usize::MAX);
    }
}

//! The key-value cache of one sequence: all keys on full layers, the window's on sliding ones.
//!
//! Its size is known before a token arrives: vectors grow by [`STEP`] tokens instead of doubling, and a sliding layer drops
//! the keys that no later token sees before it would exceed its window plus [`SLACK`]. The tokens of an image see each other, so
//! that they enter together, however many they are.

use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::cuda::{DeviceCache, OnDevice};
use crate::tensor::Element;

/// How many keys beyond its window a sliding layer may hold before it drops the oldest, so that not every token moves the
/// whole window. Also the most tokens that enter together, but for an image's.
pub(super) const SLACK: usize = 256;

/// The tokens by which a vector grows. Decoding then copies it once every 64 tokens, which costs little: attention reads all of
/// it for each token.
const STEP: usize = 64;

/// The tokens a layer has room for while it holds `tokens`, of which at most `together` enter together: powers of two up to
/// [`STEP`], because many sequences are only a token or two long.
fn room(window: Option<usize>, tokens: usize, together: usize) -> usize {
    let most = window.map_or(usize::MAX, |window| most(window, together));
    let room = if (1..=STEP).contains(&tokens) {
        Some(tokens.next_power_of_two())
    } else {
        tokens.checked_next_multiple_of(STEP)
    };
    room.unwrap_or(usize::MAX).min(most)
}

/// The most keys of a layer with a window.
fn most(window: usize, together: usize) -> usize {
    window.saturating_add(together.max(SLACK))
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
            together: Arc::from([]),
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
            device.map(|device| DeviceCache::new(device, layers, |tokens| room(None, tokens, 0)));
        if self.device.is_some() {
            // A device keeps the keys that a window has left behind.
            self.layers.iter_mut().for_each(|layer| layer.window = None);
        }
        self
    }

    /// Says which positions see each other, of tokens that enter from now on.
    pub(crate) fn see_together(&mut self, spans: &[Range<usize>]) {
        let together: Arc<[_]> = spans.into();
        for layer in &mut self.layers {
            layer.together = together.clone();
        }
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

    /// The most bytes that keys, values and positions take while `tokens` enter, at most `together` of them together. The
    /// largest vector counts twice, because its old memory is freed only after it has been copied.
    pub(super) fn bytes(&self, tokens: usize, together: usize) -> usize {
        #[cfg(feature = "cuda")]
        let of_layer = match self.device {
            // A device copies a layer as a whole.
            Some(_) => LayerCache::bytes,
            None => LayerCache::vector,
        };
        #[cfg(not(feature = "cuda"))]
        let of_layer = LayerCache::vector;
        let vectors = self
            .layers
            .iter()
            .map(|layer| of_layer(layer, tokens, together));
        let layers = self
            .layers
            .iter()
            .map(|layer| layer.bytes(tokens, together));
        layers.fold(vectors.max().unwrap_or_default(), usize::saturating_add)
    }

    /// The most tokens, up to `most`, that take no more than `allowed` bytes.
    pub(super) fn fit(&self, allowed: usize, most: usize, together: usize) -> usize {
        let (mut fit, mut over) = (0, most.saturating_add(1));
        while over - fit > 1 {
            let middle = fit + (over - fit) / 2;
            if self.bytes(middle, together) <= allowed {
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
    /// The positions that see each other, ascending.
    together: Arc<[Range<usize>]>,
    /// The position of each key, ascending; gaps are tokens that a patch has absorbed.
    positions: Vec<usize>,
    /// `[kv_heads][keys · head_dim]`
    keys: Vec<Vec<E>>,
    values: Vec<Vec<E>>,
}

impl<E: Element> LayerCache<E> {
    /// The bytes of keys, values and positions while it holds `tokens`.
    fn bytes(&self, tokens: usize, together: usize) -> usize {
        let numbers = (2 * self.keys.len()).saturating_mul(self.head_dim);
        let token = numbers
            .saturating_mul(size_of::<E>())
            .saturating_add(size_of::<usize>());
        room(self.window, tokens, together).saturating_mul(token)
    }

    /// The bytes of its largest vector while it holds `tokens`.
    fn vector(&self, tokens: usize, together: usize) -> usize {
        let token = self.head_dim.saturating_mul(size_of::<E>());
        room(self.window, tokens, together).saturating_mul(token.max(size_of::<usize>()))
    }

    /// How the tokens at `positions` enter: at most [`SLACK`] together, but those that see each other all at once.
    pub(super) fn entries(&self, positions: &[usize]) -> Vec<Range<usize>> {
        pieces(positions, SLACK, &self.together)
    }

    /// Makes room for `tokens` more, the first of them at `position`.
    pub(super) fn make_room(&mut self, position: usize, tokens: usize) {
        let most = self.window.map(|window| most(window, tokens));
        if most.is_some_and(|most| self.positions.len() + tokens > most) {
            self.forget(position);
        }
        let held = self.positions.len();
        let more = room(self.window, held + tokens, tokens) - held;
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
        let numbers = seen.start * self.head_dim..seen.end * self.head_dim;
        let keys = self.keys.iter().flat_map(|keys| &keys[numbers.clone()]);
        let values = self
            .values
            .iter()
            .flat_map(|values| &values[numbers.clone()]);
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

    /// Which keys the query at `position` sees: of key j those with position − window < j ≤ position, and those behind it
    /// that it sees [together](Cache::see_together) with.
    pub(super) fn seen_from(&self, position: usize) -> Range<usize> {
        let span = self.together.iter().find(|span| span.contains(&position));
        let last = span.map_or(position, |span| span.end - 1);
        let end = self.positions.partition_point(|&j| j <= last);
        self.first_seen_from(position)..end
    }

    /// The keys of a head, `[keys, head_dim]`.
    pub(super) fn keys(&self, head: usize) -> &[E] {
        &self.keys[head]
    }

    /// The values of a head, `[keys, head_dim]`.
    pub(super) fn values(&self, head: usize) -> &[E] {
        &self.values[head]
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

/// Ranges of at most `most` of `positions`, which ascend, none of which ends within a span: one that is longer is a range.
pub(super) fn pieces(
    positions: &[usize],
    most: usize,
    spans: &[Range<usize>],
) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < positions.len() {
        let mut end = positions.len().min(start.saturating_add(most));
        let within = |span: &&Range<usize>| {
            let next = positions.get(end);
            span.contains(&positions[end - 1]) && next.is_some_and(|next| span.contains(next))
        };
        if let Some(span) = spans.iter().find(within) {
            let first = positions.partition_point(|&position| position < span.start);
            let last = positions.partition_point(|&position| position < span.end);
            end = if first > start { first } else { last };
        }
        pieces.push(start..end);
        start = end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

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
        let keys = layer.keys(0).iter().step_by(2);
        let seen = layer.seen_from(position);
        keys.skip(seen.start).take(seen.len()).copied().collect()
    }

    #[test]
    fn the_window_counts_the_token_itself() {
        let cache = filled(Some(3), 10, 1);
        assert_eq!(seen(&cache, 9), [7.0, 8.0, 9.0]);
        assert_eq!(seen(&cache, 1), [0.0, 1.0]);
        assert_eq!(seen(&filled(Some(1), 10, 1), 9), [9.0]);
        assert_eq!(seen(&filled(None, 10, 1), 9).len(), 10);
    }

    /// Two images, one longer than the window and one shorter.
    #[test]
    fn an_image_sees_itself_and_the_window_before_it() {
        let mut cache = Cache::<f32>::new([Some(3)], 1, 2);
        cache.see_together(&[2..7, 9..11]);
        cache.layers[0].make_room(0, 12);
        for t in 0..12 {
            cache.layers[0].push(t, &[t as f32, 0.0], &[0.0, t as f32]);
        }
        let seen = |position| seen(&cache, position);
        assert_eq!(seen(1), [0.0, 1.0]);
        assert_eq!(seen(2), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(seen(6), [4.0, 5.0, 6.0]);
        assert_eq!(seen(7), [5.0, 6.0, 7.0]);
        assert_eq!(seen(9), [7.0, 8.0, 9.0, 10.0]);
        assert_eq!(seen(11), [9.0, 10.0, 11.0]);
    }

    #[test]
    fn no_piece_ends_within_an_image() {
        let positions: Vec<usize> = (10..30).collect();
        let pieces = |most, spans: &[Range<usize>]| pieces(&positions, most, spans);
        assert_eq!(pieces(8, &[]), [0..8, 8..16, 16..20]);
        // It begins a piece, and one longer than a piece is one.
        assert_eq!(pieces(8, from_ref(&(15..20))), [0..5, 5..13, 13..20]);
        assert_eq!(
            pieces(3, from_ref(&(15..20))),
            [0..3, 3..5, 5..10, 10..13, 13..16, 16..19, 19..20]
        );
        assert_eq!(pieces(8, from_ref(&(10..30))), from_ref(&(0..20)));
        // One that ends with a piece, and one that follows it at once.
        assert_eq!(pieces(8, &[12..18, 18..22]), [0..8, 8..16, 16..20]);
    }

    #[test]
    fn an_image_longer_than_the_slack_enters_a_sliding_layer_whole() {
        let (tokens, image) = (1000, 300..700);
        let mut cache = Cache::<f32>::new([Some(3)], 1, 2);
        cache.see_together(from_ref(&image));
        let positions: Vec<_> = (0..tokens).collect();
        for entry in cache.layers[0].entries(&positions) {
            cache.layers[0].make_room(entry.start, entry.len());
            for t in entry {
                cache.layers[0].push(t, &[t as f32, 0.0], &[0.0, t as f32]);
            }
            assert!(cache.allocated() <= cache.bytes(tokens, image.len()));
            assert!(cache.tokens() <= 3 + image.len());
        }
        assert_eq!(seen(&cache, tokens - 1), [997.0, 998.0, 999.0]);
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
                    let computed = cache.bytes(tokens, 1) - cache.layers[0].vector(tokens, 1);
                    // A sliding layer may let go of keys before its last growth, of less than a step.
                    let step = cache.layers[0].bytes(STEP, 1);
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
            let bytes = cache.bytes(tokens, 1);
            let fit = cache.fit(bytes, 100_000, 1);
            assert_eq!(fit, room(None, tokens, 1));
            assert_eq!(cache.bytes(fit, 1), bytes);
            assert!(cache.bytes(fit + 1, 1) > bytes);
            assert!(cache.fit(bytes - 1, 100_000, 1) < tokens);
        }
        assert_eq!(cache.fit(usize::MAX, 100_000, 1), 100_000);
        assert_eq!(cache.bytes(usize::MAX, 1), usize::MAX);
    }
}

//! The key-value cache of one sequence: all keys on full layers, the window's on sliding ones.

use std::ops::Range;

use crate::tensor::Element;

/// How many keys beyond the window a sliding layer may hold before it lets go of the oldest, so that
/// not every token moves the whole window.
const SLACK: usize = 256;

/// The keys and values of one sequence, layer by layer.
#[derive(Clone, Debug)]
pub(crate) struct Cache<E> {
    pub(super) layers: Vec<LayerCache<E>>,
}

impl<E: Element> Cache<E> {
    /// An empty cache; `windows` are those of the layers, `None` for a full one.
    pub(super) fn new(
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
        }
    }
}

/// The keys (turned) and values of one layer, oldest first.
#[derive(Clone, Debug)]
pub(super) struct LayerCache<E> {
    window: Option<usize>,
    head_dim: usize,
    /// Of each key, ascending; gaps are absorbed tokens.
    positions: Vec<usize>,
    /// `[kv_heads][keys · head_dim]`
    keys: Vec<Vec<E>>,
    values: Vec<Vec<E>>,
}

impl<E: Element> LayerCache<E> {
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

    /// Lets go of the keys that no later query can see.
    pub(super) fn trim(&mut self) {
        let Some(&last) = self.positions.last() else {
            return;
        };
        let unseen = self.first_seen_from(last + 1);
        if unseen < SLACK {
            return;
        }
        self.positions.drain(..unseen);
        for vectors in self.keys.iter_mut().chain(&mut self.values) {
            vectors.drain(..unseen * self.head_dim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(window: Option<usize>, tokens: usize) -> LayerCache<f32> {
        let mut cache = Cache::new([window], 1, 2).layers.remove(0);
        for t in 0..tokens {
            cache.push(t, &[t as f32, 0.0], &[0.0, t as f32]);
            cache.trim();
        }
        cache
    }

    fn seen(cache: &LayerCache<f32>, position: usize) -> Vec<f32> {
        cache
            .keys(0, cache.seen_from(position))
            .iter()
            .step_by(2)
            .copied()
            .collect()
    }

    #[test]
    fn the_window_counts_the_token_itself() {
        let cache = filled(Some(3), 10);
        assert_eq!(seen(&cache, 9), [7.0, 8.0, 9.0]);
        assert_eq!(seen(&cache, 1), [0.0, 1.0]);
        assert_eq!(seen(&filled(Some(1), 10), 9), [9.0]);
        assert_eq!(seen(&filled(None, 10), 9).len(), 10);
    }

    #[test]
    fn a_sliding_layer_forgets() {
        let cache = filled(Some(3), 2000);
        assert!(cache.positions.len() <= SLACK + 3);
        assert_eq!(seen(&cache, 1999), [1997.0, 1998.0, 1999.0]);
    }
}

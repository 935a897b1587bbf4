//! The keys and values of one sequence on a device.

use std::collections::HashMap;
use std::sync::Arc;

use super::attention::{Entering, HeadShape, KeysValues, Preparation, Seen};
use super::error::Result;
use super::memory::{DeviceRows, Memory};
use super::on_device::{OnDevice, not_a_number};
use crate::checkpoint::form::AttentionForm;
use crate::tensor::{Element, Matrix};

/// The most bytes of scores at once: tokens that would need more go one piece after the other.
const MOST_SCORES: usize = 256 << 20;

/// Tokens whose scores are computed at once, where a token has `of_token` bytes of them.
fn piece(of_token: usize) -> usize {
    (MOST_SCORES / of_token).max(1)
}

/// The bytes that the scores of some tokens take at once, each of which sees `keys`.
pub(crate) fn scores_bytes<E: Element>(heads: usize, tokens: usize, keys: usize) -> usize {
    let of_token = heads * keys * size_of::<E::Acc>();
    of_token * tokens.min(piece(of_token))
}

/// The keys and values of one sequence, layer by layer: all of them, because those of a window would have to be moved.
#[derive(Clone, Debug)]
pub(crate) struct DeviceCache {
    on: Arc<OnDevice>,
    /// The position of each token that it holds, ascending.
    positions: Vec<usize>,
    layers: Vec<Layer>,
    /// The tokens that a layer has room for while it holds some.
    room: fn(usize) -> usize,
    /// What the tokens that came last see, by the window and the first of them: most layers have one of two windows.
    seen: Vec<((Option<usize>, usize), Seen)>,
    /// Matrices of the patch that the sequence runs under, by the place of their numbers, which are lent for longer than the
    /// cache is there.
    lent: HashMap<usize, Memory>,
}

#[derive(Clone, Debug, Default)]
struct Layer {
    /// The tokens it holds.
    tokens: usize,
    stored: Option<KeysValues>,
}

impl DeviceCache {
    /// An empty cache of some layers; `room` are the tokens that one has room for while it holds some.
    pub(crate) fn new(on: Arc<OnDevice>, layers: usize, room: fn(usize) -> usize) -> Self {
        Self {
            on,
            positions: Vec::new(),
            layers: vec![Layer::default(); layers],
            room,
            seen: Vec::new(),
            lent: HashMap::new(),
        }
    }

    /// The tokens it holds.
    pub(crate) fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// A matrix of a patch on the device: it goes there once.
    pub(crate) fn lent<E: Element>(&mut self, matrix: &Matrix<E>) -> Result<Memory> {
        let place = matrix.as_slice().as_ptr() as usize;
        if let Some(memory) = self.lent.get(&place) {
            return Ok(memory.clone());
        }
        let memory = Memory::of(self.on.device(), matrix.as_slice())?;
        self.lent.insert(place, memory.clone());
        Ok(memory)
    }

    /// softmax(q kᵀ · scaling) v of the next tokens of a layer, whose keys and values it takes in. Where there is a `preparation`,
    /// q and k still have to go through it.
    pub(crate) fn attend<E: Element>(
        &mut self,
        layer: usize,
        form: &AttentionForm,
        positions: &[usize],
        ([q, k, v], preparation): ([&DeviceRows<E>; 3], Option<&Preparation>),
        mixed: &DeviceRows<E>,
    ) -> Result<()> {
        let device = self.on.device().clone();
        let shape = HeadShape::of(form);
        let first = self.layers[layer].tokens;
        if self.positions.len() == first {
            self.positions.extend(positions);
            self.seen.clear();
        }
        debug_assert_eq!(
            self.positions[first..],
            *positions,
            "all layers get the same tokens"
        );
        let seen = self.seen(form.window, first)?;
        let stored = self.make_room::<E>(layer, positions.len(), shape)?;
        let entering = Entering {
            k,
            v,
            seen: &seen,
            cache: &stored,
        };
        let q = match preparation {
            Some(preparation) => {
                let prepared = DeviceRows::new(&device, q.rows(), q.cols())?;
                device.heads(preparation, Some([q, &prepared]), Some(entering), shape)?;
                prepared
            }
            None => {
                device.heads(&Preparation::default(), None, Some(entering), shape)?;
                q.clone()
            }
        };
        let scaling = (
            form.scaling,
            form.rounded_scores,
            form.softcap.unwrap_or(0.0),
        );
        let piece = piece(form.heads * seen.keys * size_of::<E::Acc>());
        for start in (0..q.rows()).step_by(piece) {
            let rows = start..q.rows().min(start + piece);
            let seen = seen.of_tokens(start);
            let (q, mixed) = (q.view(rows.clone()), mixed.view(rows));
            let scores = DeviceRows::new(&device, form.heads * q.rows(), seen.keys)?;
            device.scores(&q, &stored, &seen, shape, &scores)?;
            device.probabilities::<E>(&scores, &seen, scaling, [q.rows(), form.heads])?;
            device.weighted_sums(&scores, &stored, &seen, shape, &mixed)?;
        }
        Ok(())
    }

    /// [`attend`](Self::attend) for rows that are on the host and go back there. Where the device fails the numbers are NaN, and
    /// [`OnDevice::check`] says why.
    pub(crate) fn attended<E: Element>(
        &mut self,
        layer: usize,
        form: &AttentionForm,
        positions: &[usize],
        [q, k, v]: &[Matrix<E>; 3],
    ) -> Matrix<E> {
        let on = self.on.clone();
        let device = on.device();
        let mut attended = || {
            let upload = |x| DeviceRows::upload(device, x);
            let qkv = [&upload(q)?, &upload(k)?, &upload(v)?];
            let mixed = DeviceRows::new(device, q.rows(), q.cols())?;
            self.attend(layer, form, positions, (qkv, None), &mixed)?;
            mixed.download(device)
        };
        attended().unwrap_or_else(|error| {
            on.fail(error);
            not_a_number(q.rows(), q.cols())
        })
    }

    /// The keys that the tokens from the `first` on see.
    fn seen(&mut self, window: Option<usize>, first: usize) -> Result<Seen> {
        let key = (window, first);
        if let Some((_, seen)) = self.seen.iter().find(|(known, _)| *known == key) {
            return Ok(seen.clone());
        }
        let device = self.on.device();
        let firsts = self.positions[first..].iter().map(|position| {
            let unseen = |&j: &usize| window.is_some_and(|window| j + window <= *position);
            self.positions.partition_point(unseen)
        });
        let seen = Seen {
            indices: device.indices(firsts.chain(first..self.positions.len()))?,
            tokens: self.positions.len() - first,
            skip: 0,
            keys: self.positions.len(),
        };
        self.seen.push((key, seen.clone()));
        Ok(seen)
    }

    /// Makes room for `tokens` more in a layer, in memory that nobody else has, and counts them.
    fn make_room<E: Element>(
        &mut self,
        layer: usize,
        tokens: usize,
        shape: HeadShape,
    ) -> Result<KeysValues> {
        let device = self.on.device();
        let layer = &mut self.layers[layer];
        let held = layer.tokens;
        layer.tokens += tokens;
        let own = |stored: &KeysValues| {
            stored.capacity >= layer.tokens
                && stored.keys.is_ones_own()
                && stored.values.is_ones_own()
        };
        if let Some(stored) = layer.stored.as_ref().filter(|stored| own(stored)) {
            return Ok(stored.clone());
        }
        let row = shape.head_dim * size_of::<E>();
        let capacity = (self.room)(layer.tokens);
        let stored = KeysValues {
            keys: Memory::new(device, shape.kv_heads * capacity * row)?,
            values: Memory::new(device, shape.kv_heads * capacity * row)?,
            capacity,
        };
        if let Some(old) = &layer.stored {
            for head in 0..shape.kv_heads {
                let [from, to] =
                    [old.capacity, capacity].map(|tokens| (head * tokens * row) as u64);
                for (old, new) in [(&old.keys, &stored.keys), (&old.values, &stored.values)] {
                    let (from, to) = (old.address() + from, new.address() + to);
                    device.machine().copy(from, to, held * row)?;
                }
            }
        }
        layer.stored = Some(stored.clone());
        Ok(stored)
    }
}

//! Memory for numbers, on cache lines of their own and used again.
//!
//! A pass needs a few sizes again and again, layer after layer. Memory fresh from the system costs a page fault every 4 KB,
//! a fifth of a prefill when measured, so the buffers that were freed last are kept.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// Fewer cache lines than this (4 KB) are not worth keeping.
const MIN_KEPT_LINES: usize = 64;

/// The most cache lines (128 MB) that are kept: a step of a batch of 64 sequences has 67 MB of logits in f32, for a vocabulary of
/// 262 144, and the MLP of Gemma 3's vision tower has 71 MB of f32 between its maps.
const MAX_KEPT_LINES: usize = 1 << 21;

/// Those of all threads, because one often frees what another one asked for, and each would keep what the others need.
static SPARE: Mutex<Spare> = Mutex::new(Spare(Vec::new()));

fn spare() -> MutexGuard<'static, Spare> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Buffers that may be used again, the longest unused first.
struct Spare(Vec<Vec<Line>>);

impl Spare {
    /// The smallest buffer that has `needed` lines and not more than twice as many.
    fn take(&mut self, needed: usize) -> Option<Vec<Line>> {
        let fitting = self.0.iter().enumerate().rev();
        let fitting = fitting.filter(|(_, lines)| (needed..=2 * needed).contains(&lines.len()));
        let (best, _) = fitting.min_by_key(|(_, lines)| lines.len())?;
        Some(self.0.remove(best))
    }

    /// Keeps a buffer, instead of those that were unused for the longest time where there are too many.
    fn keep(&mut self, lines: Vec<Line>) {
        self.0.push(lines);
        while self.lines() > MAX_KEPT_LINES {
            self.0.remove(0);
        }
    }

    fn lines(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

/// Memory for numbers of a type that its owner knows.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// Room for `len` numbers. What is in it is left from earlier use.
    pub(crate) fn recycled<E: Pod>(len: usize) -> Self {
        // Eighths of a power of two, so that sizes which grow step by step find what the last step left.
        let needed = (len * size_of::<E>()).div_ceil(size_of::<Line>());
        let step = (needed.next_power_of_two() / 8).max(1);
        let needed = needed.next_multiple_of(step);
        let spare = spare().take(needed);
        Self {
            lines: spare.unwrap_or_else(|| vec![Line::zeroed(); needed]),
        }
    }

    /// The first `len` numbers.
    pub(super) fn numbers<E: Pod>(&self, len: usize) -> &[E] {
        &bytemuck::cast_slice(&self.lines)[..len]
    }

    /// The first `len` numbers, to be written.
    pub(crate) fn numbers_mut<E: Pod>(&mut self, len: usize) -> &mut [E] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if (MIN_KEPT_LINES..=MAX_KEPT_LINES).contains(&lines.len()) {
            spare().keep(lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again() {
        let mut spare = Spare(Vec::new());
        let lines = vec![Line::zeroed(); 500];
        let at = lines.as_ptr();
        spare.keep(lines);
        // Much less than what is there is not cut from it, and there is nothing for more.
        assert!(spare.take(249).is_none() && spare.take(501).is_none());
        spare.keep(vec![Line::zeroed(); 600]);
        let taken = spare.take(400).unwrap();
        assert_eq!((taken.len(), taken.as_ptr()), (500, at));
        assert_eq!(spare.take(400).unwrap().len(), 600);
        assert!(spare.take(400).is_none());
    }

    #[test]
    fn no_more_is_kept_than_the_most() {
        let mut spare = Spare(Vec::new());
        for megabytes in (1..50).flat_map(|megabytes| [megabytes; 3]) {
            spare.keep(vec![Line::zeroed(); megabytes << 14]);
            assert!(spare.lines() <= MAX_KEPT_LINES);
        }
        // The last ones, 49 and 49 MB.
        assert_eq!(spare.lines(), 98 << 14);
    }

    #[test]
    fn a_freed_buffer_is_kept_unless_it_is_too_large() {
        // Fresh memory is zero. Tests that run beside may take the buffer first, so there are some attempts.
        let again = |bytes: usize| {
            let mut buffer = Buffer::recycled::<u8>(bytes);
            buffer.numbers_mut::<u8>(1)[0] = 7;
            drop(buffer);
            Buffer::recycled::<u8>(bytes).numbers::<u8>(1)[0] == 7
        };
        assert!((0..20).any(|_| again(5 << 20)));
        assert!(!again(129 << 20));
    }

    #[test]
    fn numbers_start_on_a_line() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let buffer = Buffer::recycled::<f32>(len);
            assert_eq!(buffer.numbers::<f32>(len).len(), len);
            assert!(
                buffer
                    .numbers::<f32>(len)
                    .as_ptr()
                    .addr()
                    .is_multiple_of(64)
            );
        }
    }
}

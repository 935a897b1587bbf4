//! Memory for numbers, on cache lines of their own and used again.
//!
//! A pass needs a few sizes again and again, layer after layer. Memory fresh from the system costs a page fault every 4 KB,
//! a fifth of a prefill when measured, so each thread keeps the buffers it freed last.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// Fewer cache lines than this (4 KB) are not worth keeping.
const MIN_KEPT_LINES: usize = 64;

/// The most cache lines (128 MB) that a thread keeps: a step of a batch of 64 sequences has 67 MB of logits in f32, for a vocabulary of
/// 262 144, and the MLP of Gemma 3's vision tower has 71 MB of f32 between its maps.
const MAX_KEPT_LINES: usize = 1 << 21;

thread_local! {
    /// The buffers this thread may use again, the longest unused first.
    static SPARE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
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
        let spare = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            let fitting = spare.iter().enumerate().rev();
            let fitting = fitting.filter(|(_, lines)| (needed..=2 * needed).contains(&lines.len()));
            let best = fitting.min_by_key(|(_, lines)| lines.len());
            best.map(|(i, _)| i).map(|i| spare.remove(i))
        });
        let lines = spare.ok().flatten();
        Self {
            lines: lines.unwrap_or_else(|| vec![Line::zeroed(); needed]),
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
        if !(MIN_KEPT_LINES..=MAX_KEPT_LINES).contains(&lines.len()) {
            return;
        }
        // A thread that ends has nothing left to keep it in.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            spare.push(lines);
            while spare.iter().map(Vec::len).sum::<usize>() > MAX_KEPT_LINES {
                spare.remove(0);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Vec<usize> {
        SPARE.with(|spare| spare.borrow().iter().map(Vec::len).collect())
    }

    #[test]
    fn memory_is_used_again() {
        let buffer = Buffer::recycled::<f32>(5000);
        let at = buffer.numbers::<f32>(1).as_ptr();
        drop(buffer);
        let (lines, again) = (kept(), Buffer::recycled::<u16>(9000));
        assert_eq!(again.numbers::<u16>(1).as_ptr().cast(), at);
        assert_eq!(lines.len(), 1);
        assert!(kept().is_empty());
        // Much less than what is there is not cut from it.
        drop(again);
        assert_ne!(Buffer::recycled::<f32>(1000).numbers::<f32>(1).as_ptr(), at);
    }

    #[test]
    fn a_thread_keeps_no_more_than_the_most() {
        for megabytes in 1..50 {
            drop(Buffer::recycled::<u8>(megabytes << 20));
            let all: Vec<_> = (0..3)
                .map(|_| Buffer::recycled::<u8>(megabytes << 20))
                .collect();
            drop(all);
            assert!(kept().iter().sum::<usize>() <= MAX_KEPT_LINES);
        }
        drop(Buffer::recycled::<u8>(129 << 20));
        assert!(kept().iter().all(|&lines| lines <= MAX_KEPT_LINES));
        assert!(!kept().is_empty());
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

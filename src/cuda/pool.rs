//! The memory of a device that is in use, and what of it is kept to be used again.

use std::collections::HashMap;

/// The most bytes that are kept unused: what a chunk of tokens needs. A cache that grows and chunks of other sizes leave arrays
/// behind that nothing else has the size of, and those must not add up.
pub(super) const MOST_SPARE: usize = 512 << 20;

/// Arrays by their addresses; each has one of the sizes that [`rounded_up`] gives.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Unused arrays of each size, and when each was given back.
    spare: HashMap<usize, Vec<(u64, u64)>>,
    /// How often one was.
    returns: u64,
    spare_bytes: usize,
    taken: Taken,
}

/// Bytes that arrays of a device take.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// By arrays in use: now.
    pub used: usize,
    /// The most ever.
    pub most_used: usize,
    /// The most ever, with those that are kept to be used again.
    pub most_held: usize,
}

impl Pool {
    /// An unused array of a size; it is in use then.
    pub(super) fn take(&mut self, size: usize) -> Option<u64> {
        let (_, address) = self.spare.get_mut(&size)?.pop()?;
        self.spare_bytes -= size;
        self.count(size);
        Some(address)
    }

    /// Counts an array that is new, or in use again.
    pub(super) fn count(&mut self, size: usize) {
        let taken = &mut self.taken;
        taken.used += size;
        taken.most_used = taken.most_used.max(taken.used);
        taken.most_held = taken.most_held.max(taken.used + self.spare_bytes);
    }

    /// Takes an array back, and says which are to be freed, those first that have been unused for longest.
    pub(super) fn give_back(&mut self, address: u64, size: usize) -> Vec<u64> {
        self.returns += 1;
        let unused = self.spare.entry(size).or_default();
        unused.push((self.returns, address));
        self.spare_bytes += size;
        self.taken.used -= size;
        let mut freed = Vec::new();
        while self.spare_bytes > MOST_SPARE {
            let longest = |(_, unused): &(&usize, &mut Vec<_>)| unused.first().copied();
            let with_some = self.spare.iter_mut().filter(|(_, all)| !all.is_empty());
            let Some((&size, unused)) = with_some.min_by_key(longest) else {
                break;
            };
            freed.push(unused.remove(0).1);
            self.spare_bytes -= size;
        }
        freed
    }

    /// Every unused array, to be freed.
    pub(super) fn drain(&mut self) -> Vec<u64> {
        self.spare_bytes = 0;
        let unused = self.spare.drain().flat_map(|(_, unused)| unused);
        unused.map(|(_, address)| address).collect()
    }

    pub(super) fn taken(&self) -> Taken {
        self.taken
    }
}

/// A size that many arrays have: an eighth larger at most, and 2 MiB.
pub(super) fn rounded_up(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).clamp(256, 2 << 20);
    bytes.max(1).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_a_bound_and_the_oldest_goes_first() {
        const SIZE: usize = MOST_SPARE / 4;
        let mut pool = Pool::default();
        for _ in 0..6 {
            pool.count(SIZE);
        }
        for address in 0..4 {
            assert!(pool.give_back(address, SIZE).is_empty());
        }
        // The last that was given back is the next in use.
        assert_eq!(pool.take(SIZE), Some(3));
        assert!(pool.give_back(3, SIZE).is_empty());
        assert_eq!(pool.give_back(4, SIZE), [0]);
        assert_eq!(pool.give_back(5, SIZE), [1]);
        assert_eq!(pool.take(SIZE / 2), None);
        let taken = pool.taken();
        assert_eq!([taken.used, taken.most_used], [0, 6 * SIZE]);
        assert_eq!(taken.most_held, 6 * SIZE);
        let mut left = pool.drain();
        left.sort_unstable();
        assert_eq!(left, [2, 3, 4, 5]);
        assert_eq!(pool.take(SIZE), None);
    }
}

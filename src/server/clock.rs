//! The time, and numbers that nobody can guess.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// 64 random bits: the hash of nothing under keys that the standard library draws from the system.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(())
}

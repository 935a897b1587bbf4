//! Thread pools that are kept: starting threads takes longer than most cases, and memory that they give back late
//! sends libFuzzer looking for leaks.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads of the largest pool.
pub const MOST: usize = 3;

/// Does `work` in a pool of `threads`, at most [`MOST`].
pub fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    static POOLS: [OnceLock<ThreadPool>; MOST] = [const { OnceLock::new() }; MOST];
    let pool = POOLS[threads - 1].get_or_init(|| {
        let pool = ThreadPoolBuilder::new().num_threads(threads);
        pool.build().expect("threads")
    });
    pool.install(work)
}

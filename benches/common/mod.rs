//! What several benchmarks share: how a time is taken, and the 270M.
#![allow(dead_code, reason = "each benchmark uses a part of this")]

pub mod machine;
pub mod peer;

use std::path::Path;
use std::time::Instant;

use context_patch::tensor::Element;

/// Where the 270M is; `None`, and a line that says so, where it is not.
pub fn gemma_270m() -> Option<&'static str> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gemma-3-270m");
    if Path::new(path).exists() {
        return Some(path);
    }
    println!(
        "skipped: no models/gemma-3-270m (python3 reference/fetch_models.py gemma-3-270m brings it)"
    );
    None
}

/// What the command line has for this benchmark; cargo adds `--bench`.
pub fn arguments() -> Vec<String> {
    let arguments = std::env::args().skip(1);
    arguments
        .filter(|argument| !argument.starts_with("--"))
        .collect()
}

/// A pool of so many threads.
pub fn pool(threads: usize) -> rayon::ThreadPool {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    builder.build().unwrap()
}

/// The seconds that something takes, and what it gives.
pub fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

/// The middle one of some times.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Something to be timed, and how often at once.
pub type Candidate<'a> = (usize, Box<dyn FnMut() + 'a>);

/// A candidate that is done `repeats` times at once.
pub fn candidate<'a>(repeats: usize, work: impl FnMut() + 'a) -> Candidate<'a> {
    (repeats, Box::new(work))
}

/// The median seconds of each candidate. All have their turn in every round, so that a slow spell of the machine
/// hits all.
pub fn medians<const N: usize>(rounds: usize, mut candidates: [Candidate<'_>; N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (times, (repeats, work)) in times.iter_mut().zip(&mut candidates) {
            let (seconds, ()) = timed(|| (0..*repeats).for_each(|_| work()));
            times.push(seconds / *repeats as f64);
        }
    }
    times.map(median)
}

/// Numbers from -1 to 1, the same for the same seed.
pub fn numbers<E: Element>(n: usize, seed: u64) -> Vec<E> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        E::from_f64((state >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

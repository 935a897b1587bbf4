//! Pseudo-random numbers from a seed.

/// Numbers of 31 bits.
pub fn random(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state >> 33
    }
}

/// The fuzzer's bytes and random ones after them: short inputs, which are all that it tries at first, would else
/// be made into the same few cases.
#[allow(dead_code, reason = "tests write their cases down")]
pub fn lengthened(bytes: &[u8]) -> Vec<u8> {
    let seed = bytes.iter().fold(bytes.len() as u64, |seed, &byte| {
        random(seed ^ u64::from(byte))()
    });
    let mut next = random(seed);
    let tail = (0..256).map(|_| (next() >> 8) as u8);
    bytes.iter().copied().chain(tail).collect()
}

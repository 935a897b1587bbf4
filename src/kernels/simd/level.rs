//! Which instruction set to use, decided while the program runs.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use super::aarch64::Neon;
use super::lanes::Task;
use super::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::x86_64::{Avx2, Avx512, Avx512Bf16};

/// An instruction set. Every level gives the same bits; they differ only in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust, on every machine.
    Scalar,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 as above, with the bf16 dot-product instruction.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// NEON, on 64-bit ARM.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// The levels this machine has, slowest first.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx2::detect().map(|_| Self::Avx2));
            levels.extend(Avx512::detect().map(|_| Self::Avx512));
            levels.extend(Avx512Bf16::detect().map(|_| Self::Avx512Bf16));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(Neon::detect().map(|_| Self::Neon));
        levels
    }

    /// The fastest level this machine has, found out once.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().pop().unwrap_or(Self::Scalar))
    }

    /// Runs `task` compiled for this level, or for [`Level::Scalar`] where the machine lacks it.
    pub(in crate::kernels) fn run<T: Task>(self, task: T) -> T::Output {
        #[cfg(test)]
        observed::note(self);
        match self {
            Self::Scalar => {}
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                if let Some(simd) = Avx2::detect() {
                    return simd.run(task);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                if let Some(simd) = Avx512::detect() {
                    return simd.run(task);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                if let Some(simd) = Avx512Bf16::detect() {
                    return simd.run(task);
                }
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => {
                if let Some(simd) = Neon::detect() {
                    return simd.run(task);
                }
            }
        }
        task.run(Scalar)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let available = Self::available();
        let found = available.iter().find(|level| level.to_string() == s);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = available.iter().map(Self::to_string).collect();
            format!(
                "'{s}' is not a level of this machine: it has {}",
                names.join(", ")
            )
        })
    }
}

/// Which levels tasks were run at: for tests that an operation obeys the level it is given.
#[cfg(test)]
pub(crate) mod observed {
    use std::cell::RefCell;

    use super::Level;

    thread_local! {
        static LEVELS: RefCell<Vec<Level>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(level: Level) {
        LEVELS.with_borrow_mut(|levels| {
            if !levels.contains(&level) {
                levels.push(level);
            }
        });
    }

    /// The levels of all tasks that `f` runs, each once. It has a thread of its own, rayon's tasks included.
    pub(crate) fn levels(f: impl FnOnce() + Send) -> Vec<Level> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        pool.build().unwrap().install(|| {
            f();
            LEVELS.take()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_the_last_available_one() {
        assert_eq!(Some(&Level::best()), Level::available().last());
    }

    #[test]
    #[cfg(target_arch = "aarch64")]
    fn the_best_level_of_64_bit_arm_is_neon() {
        assert_eq!(Level::best(), Level::Neon);
    }
}

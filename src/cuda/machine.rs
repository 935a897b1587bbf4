//! Where kernels run: a GPU, or its twin on the CPU.

use std::fmt::Debug;

use super::error::Result;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Argument {
    /// Of numbers in the machine's memory; 0 where there are none.
    Address(u64),
    /// `unsigned`
    Count(u32),
    /// `size_t`
    Size(usize),
    /// `double`
    Number(f64),
    /// `bool`
    Flag(bool),
}

impl Argument {
    /// Its bytes, from the lowest on.
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Address(address) => address,
            Self::Count(count) => count.into(),
            Self::Size(size) => size as u64,
            Self::Number(number) => number.to_bits(),
            Self::Flag(flag) => flag.into(),
        }
    }
}

/// A kernel on its way: which one, how many threads, and what it gets.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) kernel: &'a str,
    /// Blocks in x, y and z.
    pub(super) grid: [u32; 3],
    /// Of a block.
    pub(super) threads: u32,
    pub(super) arguments: &'a [Argument],
}

/// Memory, and kernels that run on it one after the other.
pub(super) trait Machine: Debug + Send + Sync {
    /// What people call it.
    fn name(&self) -> String;

    /// Bytes that are free, and all of them.
    fn memory(&self) -> Result<[usize; 2]>;

    /// The address of `bytes` that were not in use.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives back what [`allocate`](Self::allocate) gave, once everything that was asked for before is done.
    fn free(&self, address: u64);

    /// Fills memory with zeros.
    fn clear(&self, address: u64, bytes: usize) -> Result<()>;

    /// Brings bytes to the machine.
    fn upload(&self, bytes: &[u8], to: u64) -> Result<()>;

    /// Brings bytes back, once everything that was asked for before is done.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Copies within the machine.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Runs a kernel after everything that was asked for before.
    fn launch(&self, launch: Launch<'_>) -> Result<()>;

    /// Does nothing for a moment, in which more can be asked for than it does in it.
    fn pause(&self) -> Result<()>;

    /// Takes down the time when everything that was asked for before is done.
    fn mark(&self) -> Result<()>;

    /// The seconds from each mark to the next, once all are there; they are gone then.
    fn between_marks(&self) -> Result<Vec<f64>>;
}

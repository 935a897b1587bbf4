//! Instruction sets, and how a kernel is compiled for each of them.
//!
//! A kernel is a [`Task`]: its body is written once, over the operations of [`lanes`]. [`Level::run`] compiles it for every
//! instruction set and chooses one while the program runs. A type for each set ([`Scalar`](scalar::Scalar), and those of
//! `x86_64.rs` and `aarch64.rs`) proves by existing that the machine has it.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod instructions;
mod lanes;
mod level;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(super) use lanes::{HeldFactors, Lanes, PackedLanes, Prefetch, Simd, Task, fold};
pub use level::Level;
#[cfg(test)]
pub(crate) use level::observed;

/// The functions of a [`ByType`](crate::tensor::ByType) whose input is a level and a task: the level runs the task.
macro_rules! run_at_level {
    () => {
        fn f64((level, task): Self::Input<f64>) {
            level.run(task);
        }
        fn f32((level, task): Self::Input<f32>) {
            level.run(task);
        }
        fn bf16((level, task): Self::Input<half::bf16>) {
            level.run(task);
        }
    };
}
pub(super) use run_at_level;

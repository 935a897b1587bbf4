//! What runs models in the test program itself, and so compiles the passes of every compute type: one program, for each
//! would compile them again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

#[path = "../../fuzz/fuzz_targets/block.rs"]
mod block;
#[path = "../../fuzz/fuzz_targets/block_form.rs"]
mod block_form;
#[path = "../../fuzz/fuzz_targets/division.rs"]
mod division;
#[path = "../../fuzz/fuzz_targets/exact.rs"]
mod exact;
#[path = "../../fuzz/fuzz_targets/kernel.rs"]
mod kernel;
#[path = "../../fuzz/fuzz_targets/lemma.rs"]
mod lemma;
#[path = "../../fuzz/fuzz_targets/operands.rs"]
mod operands;
#[path = "../../fuzz/fuzz_targets/parts.rs"]
mod parts;
#[path = "../../fuzz/fuzz_targets/pools.rs"]
mod pools;
#[path = "../../fuzz/fuzz_targets/random.rs"]
mod random;
#[path = "../../fuzz/fuzz_targets/solver.rs"]
mod solver;

mod activations_q8;
mod backends;
mod batches;
mod compile;
#[cfg(feature = "cli")]
mod compiled_report;
mod divisions;
mod exports;
mod families;
mod gguf;
mod golden;
mod images;
mod kernels;
mod lemmas;
mod patch_files;
mod quantised;
mod recordings;
mod recordings_of_images;
#[cfg(feature = "cli")]
mod report;
mod sessions;
mod snapshots;
mod solvers;
mod theorem_1;
mod verification;

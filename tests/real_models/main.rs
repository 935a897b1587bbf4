//! The real models, which `python3 reference/fetch_models.py` brings.
//!
//! A model that is absent has its tests reported as ignored, by name; with `CONTEXT_PATCH_REQUIRE_MODELS=1`, as in CI, that is
//! a failure. This is what fits into a few minutes; `docs/verify.md` has the commands that check all of it.

#[path = "../common/mod.rs"]
mod common;
mod gemma_270m;
mod gguf;
mod small;

use common::ways::levels_here;
use libtest_mimic::Arguments;

fn main() {
    eprintln!("{}", levels_here());
    let trials = [gemma_270m::trials(), small::trials(), gguf::trials()];
    // One at a time: each uses all cores, and those in f64 gigabytes.
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit();
}

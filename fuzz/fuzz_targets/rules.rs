//! Any bytes as a map file: rules, or an error of one line.
#![no_main]

use std::path::Path;

use context_patch::compare::Rules;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Err(error) = Rules::parse(Path::new("engine.map"), file) {
        assert_eq!(error.to_string().lines().count(), 1);
    }
});

//! Any bytes as a file of token ids: ids that survive a round trip, or an error of one line.
#![no_main]

use std::path::Path;

use context_patch::trace::parse_ids;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    match parse_ids(Path::new("ids.json"), json) {
        Ok(ids) => {
            let again = parse_ids(Path::new("ids.json"), format!("{ids:?}").as_bytes());
            assert_eq!(again.ok(), Some(ids));
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1),
    }
});

//! `context-patch serve` under a random load: by itself, because it takes all processors.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "common/load.rs"]
mod random;
#[path = "common/server.rs"]
mod server;

use std::time::Duration;

use context_patch::Model;
use context_patch::receipt::AnyReceipt;
use random::Load;
use server::{Server, patch};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/tiny");

/// Joins, leaves, clients that go, a patch, shared beginnings; `cargo bench --bench server` does the same with the 270M for a minute.
#[test]
fn a_random_load_changes_no_answer_and_no_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let patch = patch(&dir);
    let server = Server::start(TINY, &["--patch", &format!("figs={patch}")]);
    let model = Model::open(TINY).unwrap();
    let load = Load::new(&server, &["tiny", "tiny+figs"]);
    let mut checked = 0;
    for receipt in load.receipts() {
        let json = receipt.to_string();
        let (receipt, changed) = AnyReceipt::parse("r.json".as_ref(), json.as_bytes()).unwrap();
        let AnyReceipt::Generation(receipt) = receipt else {
            panic!("{json}")
        };
        let under = receipt.patch.as_ref().map(|_| patch.as_ref());
        assert_eq!(changed, [] as [&str; 0]);
        assert_eq!(receipt.check(&model, under, &[]).unwrap(), None, "{json}");
        checked += 1;
    }
    assert_eq!(checked, 28);
    let outcome = load.run(&server, 12, Duration::from_secs(3));
    assert_eq!(outcome.different, [] as [serde_json::Value; 0]);
    assert!(
        outcome.answers > 20 && outcome.cancelled > 2 && outcome.cached > 0,
        "{outcome:?}"
    );
}

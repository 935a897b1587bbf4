//! Any bytes as a receipt: a receipt, or an error of one line; what was written is read again as it was, without a changed
//! field; and a field that is changed by hand is named.
#![no_main]

use std::path::Path;

use context_patch::receipt::AnyReceipt;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// The field whose value is replaced, and what by.
fn replaced(json: &str, field: &str, value: Value) -> Option<Vec<u8>> {
    let mut file: Value = serde_json::from_str(json).ok()?;
    let there = file.get_mut(field)?;
    let other = *there != value;
    *there = value;
    other.then(|| file.to_string().into_bytes())
}

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("receipt.json");
    let (receipt, _) = match AnyReceipt::parse(path, bytes) {
        Ok(read) => read,
        Err(error) => {
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            return;
        }
    };
    let json = receipt.json();
    let (again, changed) = AnyReceipt::parse(path, json.as_bytes()).expect("what was written");
    assert_eq!(again, receipt);
    assert!(changed.is_empty(), "{changed:?}");
    let other = "0".repeat(64).into();
    if let Some(changed) = replaced(&json, "tokenizer", other) {
        let (_, fields) = AnyReceipt::parse(path, &changed).expect("a field of the same type");
        assert_eq!(fields, ["tokenizer"]);
    }
});

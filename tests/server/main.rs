//! `context-patch serve`: what it says, to how many, and what it does when it is not treated well.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod answers;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod endings;
mod patches;
mod refusals;
#[path = "../common/server.rs"]
mod server;

use std::sync::LazyLock;

use common::open;
use context_patch::Model;
use serde_json::{Value, json};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/tiny");

static MODEL: LazyLock<Model> = LazyLock::new(|| open("tiny"));

/// A bias that keeps the model from ending.
fn no_end() -> Value {
    let ends = MODEL.checkpoint().eos_token_ids().iter();
    ends.map(|id| (id.to_string(), json!(-100)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// 490 tokens of which none is an end token.
fn long() -> Value {
    json!({ "prompt": "Ann likes", "max_tokens": 490, "temperature": 2, "seed": 5, "logit_bias": no_end() })
}

/// A request, and more parameters.
fn with(mut request: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("{more}")
    };
    request.as_object_mut().unwrap().extend(more);
    request
}

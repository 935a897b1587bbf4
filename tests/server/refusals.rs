//! What it refuses, and with which words.

use serde_json::{Value, json};

use super::common::program;
use super::server::Server;
use super::{TINY, long, with};

#[test]
fn who_has_no_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "first\n\n second \n").unwrap();
    let server = Server::start(TINY, &["--api-key-file", file.to_str().unwrap()]);
    for (header, status) in [
        ("", 401),
        ("Authorization: Bearer third\r\n", 401),
        ("Authorization: first\r\n", 401),
        ("Authorization: Bearer first\r\n", 200),
        ("Authorization: Bearer second\r\n", 200),
    ] {
        let models = server.send_with("GET", "/v1/models", header, "").finish();
        assert_eq!(models.status, status, "{header}");
        let body = json!({ "prompt": "x", "max_tokens": 1 }).to_string();
        let answer = server
            .send_with("POST", "/v1/completions", header, &body)
            .finish();
        assert_eq!(answer.status, status, "{header}");
    }
    assert_eq!(server.request("GET", "/health", "").status, 200);
}

#[test]
fn other_pages_may_ask_only_where_that_was_allowed() {
    let header = "Origin: https://a.example\r\n";
    let server = Server::start(TINY, &["--cors", "https://a.example"]);
    let shared = server
        .send_with("OPTIONS", "/v1/completions", header, "")
        .finish();
    assert_eq!(shared.status, 204);
    assert!(
        shared
            .head
            .contains("access-control-allow-origin: https://a.example"),
        "{shared:?}"
    );
    let closed = Server::start(TINY, &[]);
    let closed = closed.send_with("GET", "/v1/models", header, "").finish();
    assert!(!closed.head.contains("access-control"), "{closed:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let small = [
        "--cache-mib",
        "1",
        "--body-kib",
        "4",
        "--sequences",
        "2",
        "--queue",
        "1",
    ];
    let server = Server::start(TINY, &small);
    let post = |body: Value| server.complete(&body);
    let raw = |body: &str| server.request("POST", "/v1/completions", body);
    for (response, status, reason) in [
        (
            post(json!({ "prompt": "figs ".repeat(300), "max_tokens": 500 })),
            400,
            "is the most that prompt and answer may have",
        ),
        (
            post(json!({ "prompt": "figs", "max_tokens": i64::MAX })),
            400,
            "context_length_exceeded",
        ),
        (
            post(json!({ "prompt": "figs", "n": 4 })),
            400,
            "4 answers, and the server takes at most 3",
        ),
        (
            post(json!({ "prompt": "figs ".repeat(1000) })),
            413,
            "4096 bytes",
        ),
        (
            post(json!({ "prompt": "x", "model": "gpt-4" })),
            404,
            "model_not_found",
        ),
        (
            post(json!({ "prompt": "x", "model": "reference+x" })),
            404,
            "GET /v1/models",
        ),
        (
            post(json!({ "prompt": "x", "tools": [1] })),
            400,
            "unsupported_parameter",
        ),
        (
            post(json!({ "prompt": "x", "temperature": -1 })),
            400,
            "from 0 to 2",
        ),
        (raw(""), 400, "not JSON"),
        (raw(&"[".repeat(4000)), 400, "not JSON"),
        (server.request("GET", "/", ""), 404, "/v1/completions"),
        (server.request("GET", "/v1/completions", ""), 405, "POST"),
        (server.request("GET", "/v1/models/x/y", ""), 404, "x/y"),
    ] {
        assert_eq!(response.status, status, "{response:?}");
        let error = &response.json()["error"];
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
    assert_eq!(server.metric("generation_tokens_total"), 0);
    assert_eq!(
        post(json!({ "prompt": "figs", "max_tokens": 3 })).status,
        200
    );
}

#[test]
fn who_comes_when_all_places_are_taken_is_told_so() {
    let server = Server::start(TINY, &["--sequences", "1", "--queue", "1"]);
    let want = server.complete(&long()).text();
    // Two answers take both places. They may be done before the next request comes, in which case all is asked again.
    let two = with(long(), json!({ "stream": true, "n": 2 })).to_string();
    let refused = (0..50).find_map(|_| {
        server.wait_until_idle();
        let mut both = server.send("POST", "/v1/completions", &two);
        both.first_event();
        let third = server.complete(&long());
        assert_both_are_whole(&both.rest(), &want);
        if third.status == 200 {
            assert_eq!(third.text(), want);
            return None;
        }
        Some(third)
    });
    let refused = refused.unwrap();
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.body.contains("try again later") && refused.head.contains("retry-after: 1"));
}

/// The rest of a stream of two answers: both end, and the first is `want`, of which the event that was read is missing.
fn assert_both_are_whole(rest: &str, want: &str) {
    assert!(rest.contains("[DONE]"), "{rest}");
    assert_eq!(rest.matches("\"finish_reason\":\"length\"").count(), 2);
    let events = rest.lines().filter_map(|line| line.strip_prefix("data: {"));
    let events = events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).unwrap());
    let choices = events.map(|event| event["choices"][0].clone());
    let text: String = choices
        .filter(|choice| choice["index"] == 0)
        .filter_map(|choice| choice["text"].as_str().map(str::to_owned))
        .collect();
    assert!(
        !text.is_empty() && want.ends_with(&text),
        "{text:?}, {want:?}"
    );
}

#[test]
fn what_cannot_be_served_is_said_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("keys");
    std::fs::write(&empty, "\n").unwrap();
    let empty = empty.to_str().unwrap();
    let taken = Server::start(TINY, &[]);
    for (arguments, why) in [
        (
            &["--listen", taken.address()][..],
            "cannot listen on 127.0.0.1",
        ),
        (
            &["--listen", "nowhere.invalid:1"],
            "cannot listen on nowhere.invalid:1",
        ),
        (&["--listen", "localhost"], "cannot listen on localhost"),
        (
            &["--listen", "127.0.0.1:0", "--patch", "a=none.patch"],
            "cannot read none.patch",
        ),
        (
            &["--listen", "127.0.0.1:0", "--api-key-file", empty],
            "there is no key in it",
        ),
        (
            &["--listen", "127.0.0.1:0", "--api-key-file", "none"],
            "cannot read none",
        ),
    ] {
        let done = program(dir.path())
            .args(["serve", "--model", TINY])
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(
            (done.status.code(), said.lines().count()),
            (Some(2), 1),
            "{said}"
        );
        assert!(said.contains(why), "{said}");
    }
}

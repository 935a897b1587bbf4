//! How it ends.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::answers::expected;
use super::server::Server;
use super::{TINY, long, with};

#[test]
#[cfg(unix)]
fn a_signal_lets_it_finish_what_was_begun() {
    for signal in ["INT", "TERM", "HUP"] {
        let mut server = Server::start(TINY, &["--threads", "1", "--drain-seconds", "300"]);
        let idle = server.connect();
        let mut running = server.send(
            "POST",
            "/v1/completions",
            &with(long(), json!({ "stream": true })).to_string(),
        );
        let whole = server.send("POST", "/v1/completions", &long().to_string());
        running.first_event();
        server.wait_until("time_to_first_token_seconds_count", 2);
        server.signal(signal);
        assert_eq!(whole.finish().text(), expected(&long()).0);
        let rest = running.rest();
        assert!(
            rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"),
            "{rest}"
        );
        assert!(server.wait().success(), "{signal}");
        drop(idle);
    }
}

#[test]
#[cfg(unix)]
fn what_takes_too_long_after_a_signal_is_broken_off() {
    let mut server = Server::start(
        TINY,
        &["--threads", "1", "--sequences", "1", "--drain-seconds", "0"],
    );
    let many = with(long(), json!({ "stream": true, "n": 128 })).to_string();
    let mut running = server.send("POST", "/v1/completions", &many);
    running.first_event();
    let waiting = server.send("POST", "/v1/completions", &long().to_string());
    // One of them is what is left of the first request.
    server.wait_until("sequences_waiting", 2);
    server.signal("TERM");
    let rest = running.rest();
    assert!(
        rest.contains("shutting down") && !rest.contains("[DONE]"),
        "{rest}"
    );
    let waiting = waiting.finish();
    assert_eq!(waiting.status, 503, "{waiting:?}");
    assert!(server.wait().success());
}

#[test]
#[cfg(unix)]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(TINY, &["--threads", "1"]);
    let many = with(long(), json!({ "stream": true, "n": 128 })).to_string();
    let mut running = server.send("POST", "/v1/completions", &many);
    running.first_event();
    server.signal("TERM");
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(143));
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
}

#[test]
#[cfg(unix)]
fn after_kill_9_another_takes_its_place() {
    let mut server = Server::start(TINY, &[]);
    let address = server.address().to_owned();
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with(long(), json!({ "stream": true, "n": 16 })).to_string(),
    );
    running.first_event();
    server.signal("KILL");
    server.wait();
    let again = Server::start_at(&address, TINY, &[]);
    assert_eq!(again.complete(&long()).text(), expected(&long()).0);
    drop(running);
}

//! The example `server`: what it says, to how many, and what it does when it is not treated well.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::thread;

use common::open;
use context_patch::Session;
use context_patch::model::generate::{Sampler, Stop, generate};
use serde_json::{Value, json};
use server::Server;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/tiny");

/// Draws 490 tokens of which none is an end token, as this seed has it on every machine.
const LONG: &str = r#"{"prompt": "Ann likes", "max_tokens": 490, "temperature": 30, "seed": 5}"#;

/// Sixteen requests that differ: greedy and drawn, short prompts and some of more than one piece.
fn requests() -> Vec<Value> {
    let request = |i: usize| {
        let prompt = "Bob likes figs. ".repeat(1 + 7 * (i % 4)) + "Bob likes";
        let temperature = [0.0, 0.7, 30.0][i % 3];
        json!({ "prompt": prompt, "max_tokens": 20 + 5 * i, "temperature": temperature, "seed": i })
    };
    (0..16).map(request).collect()
}

/// What the library gives for a request, as the server writes it.
fn expected(request: &Value) -> String {
    let model = open("tiny");
    let tokenizer = model.checkpoint().tokenizer().unwrap();
    let prompt = tokenizer.encode(request["prompt"].as_str().unwrap());
    let temperature = request["temperature"].as_f64().unwrap();
    let mut sampler = Sampler::new(temperature, 0, 1.0, request["seed"].as_u64().unwrap());
    let max_tokens = request["max_tokens"].as_u64().unwrap() as usize;
    let mut stream = tokenizer.stream();
    let mut lines = String::new();
    let mut session = Session::<f32>::new(&model);
    let on_token = |id| -> context_patch::Result<()> {
        lines += &format!("{}\n", json!({ "id": id, "text": stream.push(id)? }));
        Ok(())
    };
    let prompt = prompt.unwrap();
    let stop = generate(&mut session, &prompt, max_tokens, &mut sampler, on_token).unwrap();
    let stop = if stop == Stop::End { "end" } else { "length" };
    lines
        + &format!(
            "{}\n",
            json!({ "text": stream.finish().unwrap(), "stop": stop })
        )
}

#[test]
fn the_same_bytes_as_the_library_alone_and_among_sixteen() {
    let server = Server::start(TINY, &["--threads", "2", "--generations", "3"]);
    let requests = requests();
    let want: Vec<String> = requests.iter().map(expected).collect();
    assert!(want.iter().any(|lines| lines.contains(r#""text":"""#)));
    let ask = |i: usize| {
        let response = server.generate(&requests[i].to_string());
        assert_eq!((response.status, &response.body), (200, &want[i]));
    };
    (0..16).for_each(ask);
    thread::scope(|scope| {
        for client in 0..16 {
            scope.spawn(move || (0..3).for_each(|round| ask((client + 5 * round) % 16)));
        }
    });
    // Two that compute and one that talks.
    assert!(server.threads().is_none_or(|threads| threads <= 3));
}

#[test]
fn a_client_that_goes_frees_its_slot() {
    let server = Server::start(TINY, &["--threads", "1", "--generations", "1"]);
    const CLIENTS: u64 = 20;
    for _ in 0..CLIENTS {
        let mut running = server.send("POST", "/generate", LONG);
        running.first_token();
        // This one goes while it waits.
        drop(server.send("POST", "/generate", LONG));
        drop(running);
        server.wait_until_idle();
    }
    // A tenth of what they asked for is what this model writes in a few milliseconds.
    let tokens = server.health("tokens");
    assert!((CLIENTS..CLIENTS * 49).contains(&tokens), "{tokens} tokens");
    assert_eq!(server.generate(LONG).body.lines().count(), 491);
}

#[test]
fn what_does_not_fit_is_refused() {
    let small = ["--cache-mib", "1", "--body-kib", "4"];
    let server = Server::start(TINY, &small);
    let too_long = json!({ "prompt": "figs ".repeat(300), "max_tokens": 500 }).to_string();
    let huge = json!({ "prompt": "figs", "max_tokens": u64::MAX }).to_string();
    let large = json!({ "prompt": "figs ".repeat(1000) }).to_string();
    let post = |body: &str| server.generate(body);
    for (response, status, reason) in [
        (post(&too_long), 400, "positions, the model has 512"),
        (post(&huge), 400, "positions, the model has 512"),
        (post(LONG), 400, "bytes, and 1048576 are allowed"),
        (post(&large), 413, "length limit exceeded"),
        (post(""), 400, "the body is no such request"),
        (post("{"), 400, "the body is no such request"),
        (post(r#"{"promt": "x"}"#), 400, "unknown field `promt`"),
        (post(r#"{"prompt": ""}"#), 400, "must not be empty"),
        (
            post(r#"{"prompt": "x", "max_tokens": 0}"#),
            400,
            "at least 1",
        ),
        (
            post(r#"{"prompt": "x", "max_tokens": -1}"#),
            400,
            "invalid value",
        ),
        (
            post(r#"{"prompt": "x", "temperature": -1}"#),
            400,
            "0 or more",
        ),
        (post(r#"{"prompt": "x", "top_p": 0}"#), 400, "above 0"),
        (post(&"[".repeat(4000)), 400, "the body is no such request"),
        (server.request("GET", "/", ""), 404, "POST /generate"),
        (
            server.request("GET", "/generate", ""),
            405,
            "POST /generate",
        ),
    ] {
        assert_eq!(response.status, status, "{response:?}");
        let body: Value = serde_json::from_str(&response.body).unwrap();
        assert!(body["error"].as_str().unwrap().contains(reason), "{body}");
    }
    assert_eq!(server.health("tokens"), 0);
}

#[test]
fn who_comes_when_all_places_are_taken_is_told_so() {
    let server = Server::start(TINY, &["--generations", "1", "--waiting", "1"]);
    let want = server.generate(LONG);
    // The first may be done before the third comes, in which case they are asked again.
    let refused = (0..50).find_map(|_| {
        let mut running = server.send("POST", "/generate", LONG);
        running.first_token();
        let waiting = server.send("POST", "/generate", LONG);
        let third = server.generate(LONG);
        assert_eq!(waiting.finish(), want);
        assert!(third.status == 503 || third == want);
        (third.status == 503).then_some(third)
    });
    assert!(refused.unwrap().body.contains("try again later"));
}

#[test]
fn memory_does_not_grow() {
    let arguments = ["--threads", "2", "--generations", "4"];
    let server = Server::start(TINY, &arguments);
    let some = |requests: usize| {
        thread::scope(|scope| {
            for client in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    for i in 0..requests / 4 {
                        let prompt = "Bob likes figs. ".repeat(1 + (i + client) % 20);
                        let body = json!({ "prompt": prompt, "max_tokens": 1 + i % 60 });
                        let mut sent = server.send("POST", "/generate", &body.to_string());
                        match i % 5 {
                            0 => drop(sent),
                            1 => sent.first_token(),
                            _ => assert_eq!(sent.finish().status, 200),
                        }
                    }
                });
            }
        });
        server.wait_until_idle();
        server.resident()
    };
    // Every thread's allocator has met the largest request by then.
    let Some(before) = some(200) else {
        println!("skipped: this system does not say what a process has in use");
        return;
    };
    let after = some(500).unwrap();
    println!("{before} bytes after 200 requests, {after} after 500 more");
    // 8 KiB a request: an eighth of the least that a cache of this model takes.
    assert!(after < before + 500 * 8192, "{before} {after}");
}

#[test]
fn garbage_leaves_it_running() {
    let server = Server::start(TINY, &[]);
    let mut noise = common::numbers(3, 2.0, 3);
    let random: Vec<u8> = (0..5000).map(|_| (noise() * 1e6) as i64 as u8).collect();
    let endless = ["GET /", &"a".repeat(1_000_000), " HTTP/1.1\r\n\r\n"].concat();
    for bytes in [
        &b""[..],
        b"\r\n\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{\"pr",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\xff\xfe\xfd\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &random,
        endless.as_bytes(),
    ] {
        server.raw(bytes);
    }
    assert_eq!(server.wait_until_idle().as_secs(), 0);
    assert_eq!(server.generate(LONG).body.lines().count(), 491);
}

#[test]
#[cfg(unix)]
fn a_signal_ends_it_after_a_token() {
    for signal in ["INT", "TERM", "HUP"] {
        let mut server = Server::start(TINY, &["--threads", "1"]);
        let mut running = server.send("POST", "/generate", LONG);
        running.first_token();
        server.signal(signal);
        let rest = running.rest();
        let ended = [r#""stop":"cancelled""#, r#""stop":"length""#];
        assert!(
            ended.iter().any(|end| rest.contains(end)),
            "{signal}: {rest}"
        );
        assert!(server.wait().success(), "{signal}");
    }
}

/// A client that is in the middle of its request would be waited for.
#[test]
#[cfg(unix)]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(TINY, &[]);
    let stuck = server.stuck();
    // Answered one after the other: the one before has arrived.
    server.health("running");
    server.signal("TERM");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let start = std::time::Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(1));
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
    drop(stuck);
}

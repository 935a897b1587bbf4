//! Clients that go, keep still, or send garbage.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::answers::expected;
use super::common::numbers;
use super::process::Server;
use super::{TINY, long, with};

#[test]
fn a_client_that_goes_frees_its_place() {
    let server = Server::start(TINY, &["--threads", "1", "--sequences", "1"]);
    let stream = with(long(), json!({ "stream": true })).to_string();
    const CLIENTS: u64 = 20;
    for i in 0..CLIENTS {
        let mut running = server.send("POST", "/v1/completions", &stream);
        running.first_event();
        // These go while they wait, with a stream and with an answer that is whole or none.
        drop(server.send("POST", "/v1/completions", &stream));
        drop(server.send(
            "POST",
            "/v1/completions",
            &with(long(), json!({ "seed": i })).to_string(),
        ));
        drop(running);
        server.wait_until_idle();
    }
    assert!(server.metric("cancelled_total") >= CLIENTS / 2);
    // Half of what the first of each asked for.
    let tokens = server.metric("generation_tokens_total");
    assert!(
        (CLIENTS..CLIENTS * 245).contains(&tokens),
        "{tokens} tokens"
    );
    assert_eq!(server.complete(&long()).text(), expected(&long()).0);
}

#[test]
fn clients_that_go_change_nobody_elses_answer() {
    let server = Server::start(TINY, &["--sequences", "4", "--queue", "99"]);
    let want = expected(&long()).0;
    thread::scope(|scope| {
        for client in 0..3 {
            let server = &server;
            scope.spawn(move || {
                for i in 0..12 {
                    let stream = with(long(), json!({ "stream": true, "seed": i, "n": 1 + i % 3 }));
                    let mut open = server.send("POST", "/v1/completions", &stream.to_string());
                    if (client + i) % 2 == 0 {
                        open.first_event();
                    }
                }
            });
        }
        (0..4).for_each(|_| assert_eq!(server.complete(&long()).text(), want));
    });
    server.wait_until_idle();
}

#[test]
fn memory_does_not_grow() {
    let server = Server::start(
        TINY,
        &["--threads", "2", "--sequences", "4", "--prefix-mib", "8"],
    );
    let some = |requests: usize| {
        thread::scope(|scope| {
            for client in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    for i in 0..requests / 4 {
                        let prompt = "Bob likes figs. ".repeat(1 + (i + client) % 20);
                        let body = json!({ "prompt": prompt, "max_tokens": 1 + i % 60, "stream": true, "temperature": 0 });
                        let mut sent = server.send("POST", "/v1/completions", &body.to_string());
                        match i % 5 {
                            0 => drop(sent),
                            1 => sent.first_event(),
                            _ => assert_eq!(sent.finish().status, 200),
                        }
                    }
                });
            }
        });
        server.wait_until_idle();
        server.resident()
    };
    // Every thread's allocator has met the largest request by then, and the prefix cache is full.
    let Some(before) = some(200) else {
        println!("skipped: this system does not say what a process has in use");
        return;
    };
    let after = some(500).unwrap();
    println!("{before} bytes after 200 requests, {after} after 500 more");
    // 8 KiB a request: an eighth of the least that a cache of this model takes.
    assert!(after < before + 500 * 8192, "{before} {after}");
    assert!(server.metric("prefix_cache_bytes") <= 8 << 20);
}

#[test]
fn garbage_leaves_it_running() {
    let server = Server::start(TINY, &["--idle-seconds", "2"]);
    let mut noise = numbers(3, 2.0, 3);
    let random: Vec<u8> = (0..1 << 20).map(|_| (noise() * 1e6) as i64 as u8).collect();
    let endless = ["GET /", &"a".repeat(1_000_000), " HTTP/1.1\r\n\r\n"].concat();
    let path = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n";
    let length = |length: &str, body: &[u8]| {
        [
            path.as_bytes(),
            b"Content-Length: ",
            length.as_bytes(),
            b"\r\n\r\n",
            body,
        ]
        .concat()
    };
    for bytes in [
        b"".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        length("99999999999999999999", b""),
        length("10", b"{\"pr"),
        length("4", b"\xff\xfe\xfd\xfc"),
        length("1048576", &random),
        [path.as_bytes(), b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"].concat(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        random,
        endless.into_bytes(),
    ] {
        server.raw(&bytes);
    }
    server.wait_until("connections", 1);
    assert_eq!(server.metric("answers_open"), 0);
    assert_eq!(server.complete(&long()).text(), expected(&long()).0);
}

#[test]
fn a_client_that_keeps_still_is_left() {
    let server = Server::start(TINY, &["--idle-seconds", "1"]);
    let mut half = server.connect();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nHos")
        .unwrap();
    let mut bodyless = server.connect();
    bodyless
        .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        .unwrap();
    let mut idle = server.connect();
    let mut kept = server.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // Sixteen answers with twenty likely tokens each are more than the system keeps for a client.
    let large = json!({ "n": 16, "logprobs": 20, "stream": true });
    let unread = server.send("POST", "/v1/completions", &with(long(), large).to_string());
    let start = Instant::now();
    let short = with(long(), json!({ "max_tokens": 20 }));
    assert_eq!(server.complete(&short).text(), expected(&short).0);
    server.wait_until("connections", 1);
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    drop(unread);
    let mut said = String::new();
    bodyless.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    for stream in [&mut half, &mut idle, &mut kept] {
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        assert!(
            !said.contains("200 OK") || said.contains("\"ok\""),
            "{said}"
        );
    }
}

#[test]
fn a_thousand_idle_connections_hold_up_nobody() {
    let server = Server::start(TINY, &["--connections", "1200", "--idle-seconds", "300"]);
    let want = expected(&long()).0;
    let mut running = server.send(
        "POST",
        "/v1/completions",
        &with(long(), json!({ "stream": true })).to_string(),
    );
    running.first_event();
    let idle: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    assert_eq!(server.complete(&long()).text(), want);
    assert!(server.metric("connections") > 1000);
    assert!(running.rest().contains("[DONE]"));
    drop(idle);
    server.wait_until("connections", 1);
}

#[test]
fn one_connection_too_many_is_closed() {
    let server = Server::start(TINY, &["--connections", "3"]);
    let idle: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let mut said = String::new();
    let start = Instant::now();
    let _ = server.connect().read_to_string(&mut said);
    assert!(
        said.starts_with("HTTP/1.1 503") && start.elapsed().as_secs() < 10,
        "{said}"
    );
    drop(idle);
    // They are seen to have gone after a while.
    let done = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(50));
        server
            .raw(b"GET /health HTTP/1.0\r\n\r\n")
            .starts_with(b"HTTP/1.0 200")
    });
    assert!(done);
}

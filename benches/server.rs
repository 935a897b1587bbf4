//! `context-patch serve` with the 270M: sixteen clients, what they get and what it takes; requests that come at random, beside a
//! server that answers one after the other; and clients that go.
//!
//! ```text
//! python3 reference/fetch_models.py gemma-3-270m
//! cargo bench --bench server -- 60        # seconds of each load
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

#[path = "../tests/common/load.rs"]
mod load;
#[path = "../tests/common/server.rs"]
mod server;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use load::Load;
use serde_json::{Value, json};
use server::Server;

const CLIENTS: usize = 16;
const KILLS: usize = 9;
const PATH: &str = "/v1/completions";
const TOKENS: &str = "generation_tokens_total";

fn main() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gemma-3-270m");
    if !Path::new(path).exists() {
        println!(
            "skipped: no models/gemma-3-270m (python3 reference/fetch_models.py gemma-3-270m brings it)"
        );
        return;
    }
    let seconds = std::env::args().find_map(|argument| argument.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(60));
    let server = Server::start(path, &["--threads", "2"]);
    // Also what every page of the weights and every thread's allocator needs to have seen.
    let requests: Vec<String> = (0..8).map(request).collect();
    let ask = |body: &String| text(&server.send("POST", PATH, body).finish().events());
    ask(&requests[0]);
    let written = server.metric(TOKENS);
    let start = Instant::now();
    let alone: Vec<_> = requests.iter().map(ask).collect();
    let tokens = server.metric(TOKENS);
    let start_alone = (
        tokens - written,
        start.elapsed().as_secs_f64() / requests.len() as f64,
    );
    println!(
        "one client: {:.1} tokens/s, prompts included",
        (tokens - written) as f64 / start.elapsed().as_secs_f64()
    );

    let before = server.resident();
    let start = Instant::now();
    let (mut first, mut whole, resident) = under_load(&server, &requests, &alone, length);
    let elapsed = start.elapsed().as_secs_f64();
    let tokens = server.metric(TOKENS) - tokens;
    println!(
        "{CLIENTS} clients for {elapsed:.0} s: {} answers, each the same as alone; {:.1} tokens/s",
        whole.len(),
        tokens as f64 / elapsed
    );
    println!("  first token: {}", percentiles(&mut first));
    println!("  whole answer: {}", percentiles(&mut whole));
    let mib = |bytes: Option<usize>| {
        bytes.map_or("?".into(), |bytes| {
            format!("{:.0}", bytes as f64 / 1048576.0)
        })
    };
    let tenths: Vec<_> = resident.into_iter().map(mib).collect();
    println!(
        "  resident: {} MiB before, {} after each tenth of the time, {} at the end, the mapped weights included",
        mib(before),
        tenths.join(", "),
        mib(server.resident())
    );
    kills(&server);
    random_load(path, length);
    poisson(path, &requests, start_alone.1, length);
}

/// Request `i`: prompts of a few to some hundred tokens, and 16 to 44 tokens to write.
fn request(i: usize) -> String {
    let prompt = "The quick brown fox jumps over the lazy dog. ".repeat(1 + 5 * i);
    json!({
        "prompt": prompt + "The capital of France is",
        "max_tokens": 16 + 4 * i,
        "temperature": if i.is_multiple_of(2) { 0.0 } else { 0.8 },
        "top_k": 40,
        "seed": i,
        "stream": true,
    })
    .to_string()
}

/// The text of a stream.
fn text(events: &[Value]) -> String {
    let texts = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str());
    texts.collect()
}

/// The seconds to the first token and to the last of every answer, and the memory in use after each tenth of the time.
fn under_load(
    server: &Server,
    requests: &[String],
    alone: &[String],
    length: Duration,
) -> (Vec<f64>, Vec<f64>, Vec<Option<usize>>) {
    let start = Instant::now();
    let client = |client: usize| {
        let mut times = Vec::new();
        for i in (client..).step_by(3).map(|i| i % requests.len()) {
            if start.elapsed() >= length {
                break;
            }
            let sent = Instant::now();
            let mut open = server.send("POST", PATH, &requests[i]);
            open.wait();
            let first = sent.elapsed().as_secs_f64();
            assert_eq!(text(&open.finish().events()), alone[i]);
            times.push((first, sent.elapsed().as_secs_f64()));
        }
        times
    };
    thread::scope(|scope| {
        let client = &client;
        let clients = (0..CLIENTS).map(|i| scope.spawn(move || client(i)));
        let clients: Vec<_> = clients.collect();
        let resident = (0..10).map(|_| {
            thread::sleep(length / 10);
            server.resident()
        });
        let resident = resident.collect();
        let times = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        let (first, whole) = times.unzip();
        (first, whole, resident)
    })
}

fn percentiles(seconds: &mut [f64]) -> String {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    format!(
        "median {:.2} s, 95 % {:.2} s, 99 % {:.2} s, most {:.2} s",
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0)
    )
}

/// Joins, leaves, clients that go, shared beginnings: every answer as it is alone, and its receipt.
fn random_load(path: &str, length: Duration) {
    let server = Server::start(path, &["--threads", "2", "--dtype", "bf16"]);
    let load = Load::new(&server, &["gemma-3-270m"]);
    let outcome = load.run(&server, CLIENTS as u64, length);
    println!(
        "random load, bf16: {} answers, {} of them other than alone or with another receipt; {} clients went; {} tokens from the prefix cache",
        outcome.answers,
        outcome.different.len(),
        outcome.cancelled,
        outcome.cached
    );
}

/// Requests that come at random, at 0.8 and twice the rate that a server can answer one after the other: how long the first token
/// takes, together and one after the other.
fn poisson(path: &str, requests: &[String], alone: f64, length: Duration) {
    for load in [0.8, 2.0] {
        for (how, sequences) in [("together", "64"), ("one by one", "1")] {
            let limits = [
                "--threads",
                "2",
                "--sequences",
                sequences,
                "--queue",
                "1000",
            ];
            let server = Server::start(path, &limits);
            server.send("POST", PATH, &requests[0]).finish();
            let mut first = arrivals(&server, requests, alone / load, length);
            println!(
                "{load} of what one after the other can be answered, {} requests, {how}: first token {}",
                first.len(),
                percentiles(&mut first)
            );
        }
    }
}

/// Seconds to the first token of requests that come as a Poisson process, one every `mean` seconds.
fn arrivals(server: &Server, requests: &[String], mean: f64, length: Duration) -> Vec<f64> {
    let (mut state, mut at, mut when) = (1u64, 0.0, Vec::new());
    while at < length.as_secs_f64() {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        when.push(at);
        at -= mean * (((state >> 11) as f64 + 1.0) / (1u64 << 53) as f64).ln();
    }
    let start = Instant::now();
    let client = |i: usize, at: f64| {
        thread::sleep(Duration::from_secs_f64(at).saturating_sub(start.elapsed()));
        let sent = Instant::now();
        let mut open = server.send("POST", PATH, &requests[(i * 5) % requests.len()]);
        open.wait();
        let first = sent.elapsed().as_secs_f64();
        open.finish();
        first
    };
    thread::scope(|scope| {
        let client = &client;
        let clients = when.into_iter().enumerate();
        let clients: Vec<_> = clients
            .map(|(i, at)| scope.spawn(move || client(i, at)))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    })
}

/// How long a generation lives after its client, in the middle of its answer and of its prompt.
fn kills(server: &Server) {
    let long = json!({ "prompt": "Once upon a time", "max_tokens": 2000, "stream": true });
    let prompt =
        json!({ "prompt": "Once upon a time. ".repeat(800), "max_tokens": 2, "stream": true });
    for (what, body) in [("answer", long), ("prompt of 4000 tokens", prompt)] {
        let kill = |_| {
            let mut open = server.send("POST", PATH, &body.to_string());
            match what {
                "answer" => open.first_event(),
                _ => thread::sleep(Duration::from_millis(500)),
            }
            server.wait_until("sequences_running", 1);
            drop(open);
            server.wait_until_idle().as_secs_f64()
        };
        let mut times: Vec<f64> = (0..KILLS).map(kill).collect();
        times.sort_by(f64::total_cmp);
        println!(
            "client gone in its {what}: the work ends after {:.1} ms (median of {KILLS}), {:.1} ms at most",
            1e3 * times[KILLS / 2],
            1e3 * times[KILLS - 1]
        );
    }
}

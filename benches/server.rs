//! `context-patch serve` with the 270M under sixteen clients: what it writes, how long they wait, what it takes.
//!
//! ```text
//! python3 reference/fetch_models.py gemma-3-270m
//! cargo bench --bench server -- 60        # seconds
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

#[path = "../tests/common/server.rs"]
mod server;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

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
    println!(
        "one client: {:.1} tokens/s, prompts included",
        (tokens - written) as f64 / start.elapsed().as_secs_f64()
    );

    let before = server.resident();
    let start = Instant::now();
    let (mut first, mut whole, half) = under_load(&server, &requests, &alone, length);
    let elapsed = start.elapsed().as_secs_f64();
    let tokens = server.metric(TOKENS) - tokens;
    println!(
        "{CLIENTS} clients for {elapsed:.0} s: {} answers, each the same as alone; {:.1} tokens/s",
        whole.len(),
        tokens as f64 / elapsed
    );
    println!("  first token: {}", percentiles(&mut first));
    println!("  whole answer: {}", percentiles(&mut whole));
    let mib = |bytes: Option<usize>| bytes.map_or(f64::NAN, |bytes| bytes as f64 / 1048576.0);
    println!(
        "  resident: {:.1} MiB before, {:.1} at half time, {:.1} after, the mapped weights included",
        mib(before),
        mib(half),
        mib(server.resident())
    );
    kills(&server);
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

/// The seconds to the first token and to the last of every answer, and the memory in use at half time.
fn under_load(
    server: &Server,
    requests: &[String],
    alone: &[String],
    length: Duration,
) -> (Vec<f64>, Vec<f64>, Option<usize>) {
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
        thread::sleep(length / 2);
        let half = server.resident();
        let times = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        let (first, whole) = times.unzip();
        (first, whole, half)
    })
}

fn percentiles(seconds: &mut [f64]) -> String {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    format!(
        "median {:.2} s, 90 % {:.2} s, 99 % {:.2} s, most {:.2} s",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    )
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
            assert_eq!(server.metric("sequences_running"), 1);
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

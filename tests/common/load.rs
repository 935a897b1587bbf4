//! A random load on a server, of which every answer must be the one that it has alone, receipt and all.
#![allow(dead_code, reason = "the benchmark checks no receipts")]
#![allow(clippy::unwrap_used, reason = "tests and benchmarks fail by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::Server;

const PATH: &str = "/v1/completions";
const ENDS: [&str; 3] = ["Ann likes", "Bob likes", "One day"];
const BEGINNING: &str = "The quick brown fox jumps over the lazy dog. ";

/// Requests, and the choices that each gets alone.
pub struct Load {
    requests: Vec<Value>,
    alone: Vec<Value>,
}

/// What a load came to.
#[derive(Debug)]
pub struct Outcome {
    pub answers: usize,
    /// Requests whose client went in the middle of the answer.
    pub cancelled: usize,
    /// Tokens that came from the prefix cache.
    pub cached: u64,
    /// The answers that are not what they are alone.
    pub different: Vec<Value>,
}

impl Load {
    /// Twenty-four requests to `models` in turn, each asked alone: likeliest and drawn, with beginnings that some share, one answer
    /// or two.
    pub fn new(server: &Server, models: &[&str]) -> Self {
        let request = |i: usize| {
            let temperature = [0.0, 0.8, 1.5][i % 3];
            json!({
                "model": models[i % models.len()],
                "prompt": BEGINNING.repeat(1 + 2 * (i % 4)) + ENDS[i % 3],
                "max_tokens": 4 + 3 * (i % 9),
                "temperature": temperature,
                "top_p": if i.is_multiple_of(5) { 0.9 } else { 1.0 },
                "seed": i,
                "n": if i.is_multiple_of(6) { 2 } else { 1 },
            })
        };
        let requests: Vec<_> = (0..24).map(request).collect();
        let alone = requests.iter().map(|request| ask(server, request).0);
        let alone = alone.collect();
        Self { requests, alone }
    }

    /// The receipts of the answers alone.
    pub fn receipts(&self) -> impl Iterator<Item = &Value> {
        let choices = self
            .alone
            .iter()
            .flat_map(|alone| alone.as_array().unwrap());
        choices.map(|choice| &choice["receipt"])
    }

    /// Some clients that ask at random for some time, and of whose requests every fifth is left in the middle.
    pub fn run(&self, server: &Server, clients: u64, length: Duration) -> Outcome {
        let start = Instant::now();
        let (answers, cancelled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let client = |mut state: u64| {
            let (mut cached, mut different) = (0, Vec::new());
            while start.elapsed() < length {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let random = (state >> 33) as usize;
                let i = random % self.requests.len();
                if (random / self.requests.len()).is_multiple_of(5) {
                    leave(server, &self.requests[i]);
                    cancelled.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let (choices, from_cache) = ask(server, &self.requests[i]);
                cached += from_cache;
                if choices != self.alone[i] {
                    different.push(choices);
                }
                answers.fetch_add(1, Ordering::Relaxed);
            }
            (cached, different)
        };
        let clients: Vec<_> = thread::scope(|scope| {
            let client = &client;
            let clients = (0..clients).map(|seed| scope.spawn(move || client(seed)));
            let clients: Vec<_> = clients.collect();
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .collect()
        });
        Outcome {
            answers: answers.into_inner(),
            cancelled: cancelled.into_inner(),
            cached: clients.iter().map(|(cached, _)| cached).sum(),
            different: clients.into_iter().flat_map(|(_, other)| other).collect(),
        }
    }
}

/// The choices of an answer with their receipts, and how many tokens of its prompt came from the cache.
fn ask(server: &Server, request: &Value) -> (Value, u64) {
    let header = "X-Receipt: 1\r\n";
    let open = server.send_with("POST", PATH, header, &request.to_string());
    let mut answer = open.finish().json();
    let usage = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    let cached = usage.as_u64().unwrap();
    (answer["choices"].take(), cached)
}

/// A client that goes after the first piece of its answer.
fn leave(server: &Server, request: &Value) {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let mut open = server.send("POST", PATH, &request.to_string());
    open.wait();
}

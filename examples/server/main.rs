//! A small HTTP server around the library: Gemma 3 on the CPU for several clients at once.
//!
//! ```sh
//! cargo run --release --example server -- --model models/gemma-3-270m --threads 2
//! curl -N localhost:8080/generate -d '{"prompt": "The capital of France is", "max_tokens": 20}'
//! curl -N localhost:8080/generate -d '{"prompt": "Once upon", "temperature": 0.8, "top_p": 0.9, "seed": 7}'
//! curl localhost:8080/health
//! ```
//!
//! `POST /generate` takes a JSON object: `prompt`, and if wanted `max_tokens` (128), `temperature` (0), `top_k` (0),
//! `top_p` (1) and `seed` (0), which mean what they mean for `context-patch generate`. It answers with one JSON
//! object a line, each sent when its token is there, and one more at the end:
//!
//! ```text
//! {"id":9079,"text":" Paris"}
//! {"text":"","stop":"length"}
//! ```
//!
//! `text` is empty within a character that several tokens spell, and the last line has what is left of one.
//! `stop` is `end` (the model wrote an end token), `length`, or `cancelled` (the server was told to stop); an answer
//! that fails midway ends with `{"error":"…"}`. The same request has the same answer, byte for byte, under
//! any load: nothing in it depends on threads, time or other clients.
//!
//! What it refuses has a 4xx or 503 and the reason in `{"error":"…"}`:
//!
//! | status | why |
//! |---|---|
//! | 400 | not such an object, or prompt and answer exceed the model's positions or `--cache-mib` |
//! | 404, 405 | another path, another method |
//! | 413 | a body larger than `--body-kib` |
//! | 503 | `--generations` are running and `--waiting` wait, or it is shutting down |
//!
//! `GET /health` says how many are running and waiting, and how many tokens were written since the start.
//!
//! # What it takes
//!
//! `--threads` threads compute, and one more talks to the clients. Memory is the model (mapped, shared), and for each
//! of `--generations` a cache of at most `--cache-mib`. A generation whose client has gone stops before its next
//! layer. A client that reads slowly holds up nobody, as its answer
//! is kept for it; what is not bounded is the number of connections, which is the business of a proxy.
//!
//! # How it ends
//!
//! At Ctrl-C, SIGTERM or SIGHUP it refuses what comes, ends what is running after its token with the line `"stop":"cancelled"`,
//! gives clients five seconds to fetch what is theirs, and exits with 0. A second signal ends it at once, with 1.

mod engine;
mod http;
mod signals;

use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use clap::Parser;
use context_patch::Model;
use context_patch::tensor::{Dtype, Element};
use engine::{Engine, Limits};
use half::bf16;
use signals::Signals;
use tokio::net::TcpListener;

/// How long clients may take to fetch what is ready for them after a signal.
const GRACE: Duration = Duration::from_secs(5);

/// Serve a Gemma 3 model over HTTP
#[derive(Parser)]
struct Arguments {
    /// A Hugging Face directory, or a repository id in the local cache
    #[arg(long)]
    model: String,

    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// Threads that compute [default: one for each core]
    #[arg(long)]
    threads: Option<NonZeroUsize>,

    /// Generations that run at once
    #[arg(long, default_value = "4")]
    generations: NonZeroUsize,

    /// Requests that may wait for one of them to end
    #[arg(long, default_value_t = 64)]
    waiting: usize,

    /// The most that the keys and values of one generation take, in MiB
    #[arg(long, default_value_t = 64)]
    cache_mib: usize,

    /// The largest body of a request, in KiB
    #[arg(long, default_value_t = 256)]
    body_kib: usize,
}

/// What can end the program before it serves.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.dtype {
        Dtype::F64 => run::<f64>(&arguments),
        Dtype::F32 => run::<f32>(&arguments),
        Dtype::Bf16 => run::<bf16>(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run<E: Element>(arguments: &Arguments) -> Result<(), Failure> {
    let limits = Limits {
        threads: arguments.threads.map_or(0, NonZeroUsize::get),
        generations: arguments.generations.get(),
        waiting: arguments.waiting,
        cache: arguments.cache_mib.saturating_mul(1 << 20),
    };
    let model = Model::open(&arguments.model)?;
    let engine = Arc::new(Engine::<E>::new(model, &limits)?);
    let body = arguments.body_kib.saturating_mul(1 << 10);
    // One thread for all clients: it only waits, parses and copies.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(engine, arguments.listen, body))
}

/// Serves until a signal.
async fn serve<E: Element>(
    engine: Arc<Engine<E>>,
    listen: SocketAddr,
    body: usize,
) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let mut signals =
        Signals::new().map_err(|error| format!("cannot wait for signals: {error}"))?;
    // For a program that started this one on port 0. Nobody may be reading, which is no reason to end.
    let address = listener.local_addr()?;
    let _ = writeln!(std::io::stdout(), "listening on http://{address}");
    // A token is to leave at once, and not to wait for the next one to fill a packet.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("cannot set TCP_NODELAY: {error}");
        }
    });
    let router = http::router(Arc::clone(&engine), body);
    let stopped = async move {
        signals.next().await;
        engine.close();
        tokio::spawn(async {
            tokio::time::sleep(GRACE).await;
            std::process::exit(0);
        });
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(1);
        });
    };
    axum::serve(listener, router)
        .with_graceful_shutdown(stopped)
        .await?;
    Ok(())
}

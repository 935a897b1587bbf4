//! A server that speaks OpenAI's API: completions and chats over HTTP, written together by one [batch](crate::model::batch).
//!
//! | file | what is there |
//! |---|---|
//! | `request`, `parameters` | what clients may ask for, as pure functions of a body |
//! | `refusal` | what they are told where they may not |
//! | `app` | from a request to a job: tokens, the chat template, the queue's limits |
//! | `engine`, `writer`, `stop_text` | the thread that computes, and how an answer becomes text |
//! | `answer`, `reply`, `stream` | what the engine says, in OpenAI's shapes, whole or as events |
//! | `http`, `connections` | paths and keys; limits, timeouts and the end of connections |
//! | `patches`, `metrics`, `options`, `clock` | models with patches; what is counted; what the server may take; time and chance |
//!
//! An answer depends on its request alone: on the seed, and not on what else is in the batch, on threads or on time.

mod answer;
mod app;
mod clock;
mod connections;
mod engine;
mod error;
mod http;
mod metrics;
mod options;
mod parameters;
mod patches;
mod refusal;
mod reply;
mod request;
mod stop_text;
mod stream;
mod writer;

use std::marker::PhantomData;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

pub use error::{Error, Result};
pub use options::Options;
pub use refusal::Refusal;
pub use request::{ChatMessage, ChatRequest, CompletionRequest, Prompt, Settings};

use crate::checkpoint;
use crate::message::{IoError, hex};
use crate::model::Model;
use crate::tensor::Element;
use app::App;
use connections::Limits;
use engine::{Engine, Job};
use patches::Patches;

/// How often the flag that ends a server is read.
const TICK: Duration = Duration::from_millis(50);
/// How long clients may take to fetch the end of an answer that was broken off.
const GRACE: Duration = Duration::from_secs(2);
/// Threads that read prompts.
const READERS: usize = 2;

/// Listens on `address`, a host or its name and a port, of which 0 is a free one.
///
/// # Errors
///
/// [`IoError`].
pub fn listen(address: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(IoError::at("listen on", address))?;
    let made = listener.set_nonblocking(true);
    made.map_err(IoError::at("listen on", address))?;
    Ok(listener)
}

/// A model that is ready to be served in the compute type `E`.
pub struct Server<E: Element> {
    app: App,
    jobs: Receiver<Job>,
    element: PhantomData<fn() -> E>,
}

impl<E: Element> Server<E> {
    /// Reads what a model needs besides its weights, and the patches.
    ///
    /// # Errors
    ///
    /// Those of reading tokenizer, chat template and patches.
    pub fn new(model: Model, options: Options) -> Result<Self> {
        let model = Arc::new(model);
        let patches = Patches::new::<E>(Arc::clone(&model));
        for (name, file) in &options.patches {
            patches.load(name, file)?;
        }
        let (sender, jobs) = channel();
        let app = App {
            tokenizer: Arc::new(model.checkpoint().tokenizer()?),
            template: template(&model)?,
            fingerprint: fingerprint::<E>(&model).into(),
            room: room::<E>(&model, options.batch.cache_limit),
            created: clock::now(),
            places: Arc::new(Semaphore::new(options.places())),
            closing: AtomicBool::new(false),
            metrics: Arc::default(),
            dtype: E::DTYPE,
            receipt: Mutex::default(),
            jobs: sender,
            model,
            patches,
            options,
        };
        Ok(Self {
            app,
            jobs,
            element: PhantomData,
        })
    }

    /// Serves until `stop` is set and what was begun is done, or [`Options::drain`] has passed. It computes in the thread that
    /// calls it, on the rayon pool of that, and talks to clients in one more.
    ///
    /// # Errors
    ///
    /// Those of the system, which has no thread, and of a device.
    pub fn run(self, listener: TcpListener, stop: &AtomicBool) -> Result<()> {
        let Self { app, jobs, .. } = self;
        let (model, tokenizer) = (Arc::clone(&app.model), Arc::clone(&app.tokenizer));
        let metrics = Arc::clone(&app.metrics);
        let (sequences, batch) = (app.options.sequences, app.options.batch);
        let abort = AtomicBool::new(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS)
            .build()
            .map_err(IoError::at("start", "the server"))?;
        thread::scope(|scope| {
            let clients = || runtime.block_on(talk(app, listener, stop, &abort));
            let named = thread::Builder::new().name("clients".into());
            let clients = named.spawn_scoped(scope, clients);
            clients.map_err(IoError::at("start", "the server"))?;
            // Whatever ends the engine, its clients are not to wait for it.
            let _end = SetOnDrop(stop);
            let engine = Engine::<E>::new(&model, &tokenizer, sequences, batch, &metrics);
            Ok(engine.run(&jobs, &abort)?)
        })
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Talks to clients until `stop` is set and all are served, or their time is over.
async fn talk(app: App, listener: TcpListener, stop: &AtomicBool, abort: &AtomicBool) {
    let app = Arc::new(app);
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let limits = Limits {
        connections: app.options.connections,
        idle: app.options.idle,
    };
    let (told, telling) = watch::channel(false);
    let metrics = Arc::clone(&app.metrics);
    let serving = connections::serve(listener, http::router(&app), limits, metrics, telling);
    let serving = tokio::spawn(serving);
    while !stop.load(Ordering::Relaxed) {
        sleep(TICK).await;
    }
    app.closing.store(true, Ordering::Relaxed);
    let _ = told.send(true);
    let mut serving = serving;
    if timeout(app.options.drain, &mut serving).await.is_err() {
        abort.store(true, Ordering::Relaxed);
        let _ = timeout(GRACE, serving).await;
    }
}

/// The model's chat template, or why it has none.
fn template(model: &Model) -> Result<Result<checkpoint::ChatTemplate, String>> {
    match model.checkpoint().chat_template() {
        Ok(template) => Ok(Ok(template)),
        Err(error @ checkpoint::Error::NoChatTemplate { .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// What an answer depends on besides its request: the program's version, the compute type, the model's config and name.
fn fingerprint<E: Element>(model: &Model) -> String {
    let mut hash = Sha256::new();
    let checkpoint = model.checkpoint();
    for part in [
        env!("CARGO_PKG_VERSION"),
        &E::DTYPE.to_string(),
        checkpoint.name(),
        &format!("{:?} {:?}", checkpoint.config(), model.embedding_scale()),
    ] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    format!("fp_{}", &hex(&hash.finalize())[..12])
}

/// The most tokens of a sequence.
fn room<E: Element>(model: &Model, bytes: usize) -> usize {
    let positions = model.config().max_position_embeddings;
    let (mut fits, mut beyond) = (0, positions + 1);
    while fits + 1 < beyond {
        let middle = fits.midpoint(beyond);
        if model.cache_bytes::<E>(middle) <= bytes {
            fits = middle;
        } else {
            beyond = middle;
        }
    }
    fits
}

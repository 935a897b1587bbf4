//! Who computes when: a pool of threads, the places in it and before it, and a generation's way through.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use context_patch::checkpoint::{TextStream, Tokenizer};
use context_patch::model::generate::{Generation, Sampler, Step, Stop};
use context_patch::tensor::Element;
use context_patch::{Model, Result, Session, model};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::Failure;
use super::http::{Refusal, Request};

/// Tokens of a prompt that are taken in before someone else gets a turn.
const PIECE: usize = 128;

/// What the server may take.
pub(super) struct Limits {
    /// Threads that compute; 0 is one for each core.
    pub(super) threads: usize,
    /// Generations at once.
    pub(super) generations: usize,
    /// Requests that wait for one to end.
    pub(super) waiting: usize,
    /// Bytes of a generation's cache.
    pub(super) cache: usize,
}

/// The model and the threads that run it, in the compute type `E`.
///
/// A generation enters the pool anew for every token. It must not stay in there: a thread that waits for the others'
/// share of a product takes up other work meanwhile, which would be another's whole text.
pub(super) struct Engine<E> {
    model: &'static Model,
    tokenizer: &'static Tokenizer,
    pool: rayon::ThreadPool,
    cache: usize,
    /// One for each generation that may run.
    slots: Arc<Semaphore>,
    /// One for each request that may be here at all, running or waiting.
    places: Arc<Semaphore>,
    /// How many there are of both in all.
    of: (usize, usize),
    /// Tokens written since the start.
    tokens: AtomicU64,
    closing: AtomicBool,
    computes_in: PhantomData<fn() -> E>,
}

impl<E: Element> Engine<E> {
    pub(super) fn new(model: Model, limits: &Limits) -> Result<Self, Failure> {
        // Both live as long as the program, and generations that wander between threads borrow from them.
        let model: &'static Model = Box::leak(Box::new(model));
        let tokenizer = Box::leak(Box::new(model.checkpoint().tokenizer()?));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(limits.threads)
            // The message is out; the request whose work panicked notices that its result does not come.
            .panic_handler(|_| ())
            .build()?;
        let most = Semaphore::MAX_PERMITS;
        let slots = limits.generations.min(most);
        let places = slots.saturating_add(limits.waiting).min(most);
        Ok(Self {
            model,
            tokenizer,
            pool,
            cache: limits.cache,
            slots: Arc::new(Semaphore::new(slots)),
            places: Arc::new(Semaphore::new(places)),
            of: (slots, places),
            tokens: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            computes_in: PhantomData,
        })
    }

    /// Refuses what comes from now on, and ends what is running after its token.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.places.close();
        self.slots.close();
    }

    /// How many generations run, how many requests wait, and how many tokens were written.
    pub(super) fn health(&self) -> Value {
        let (slots, places) = self.of;
        let running = slots - self.slots.available_permits();
        let here = places - self.places.available_permits();
        json!({
            "running": running,
            "waiting": here.saturating_sub(running),
            "tokens": self.tokens.load(Ordering::Relaxed),
        })
    }

    /// Begins to answer a request, once it is its turn.
    pub(super) async fn answer(self: Arc<Self>, request: Request) -> Result<Answer, Refusal> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| self.unavailable())?;
        let cancel = Arc::new(AtomicBool::new(false));
        let session = Session::<E>::new(self.model)
            .with_cache_limit(self.cache)
            .with_cancel(Arc::clone(&cancel));
        let tokenizer = self.tokenizer;
        // The place goes along, so that it stays taken until the text is read even if its client has gone.
        let read = move || (place, tokenizer.encode(&request.prompt));
        let (place, prompt) = self.compute(read).await.ok_or_else(Refusal::internal)?;
        let prompt = prompt?;
        // The last token is written and not taken in.
        session.check_room(prompt.len().saturating_add(request.max_tokens - 1))?;
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.map_err(|_| self.unavailable())?;
        let (temperature, top_k, top_p) = (request.temperature, request.top_k, request.top_p);
        let ahead = (prompt.len() - 1) / PIECE * PIECE;
        let work = Work {
            engine: Arc::clone(&self),
            session,
            ahead: prompt[..ahead].to_vec(),
            generation: Generation::new(&prompt[ahead..], request.max_tokens),
            sampler: Sampler::new(temperature, top_k, top_p, request.seed),
            text: tokenizer.stream(),
            _permits: (slot, place),
        };
        let (sender, lines) = unbounded_channel();
        tokio::spawn(self.drive(work, sender));
        Ok(Answer { lines, cancel })
    }

    fn unavailable(&self) -> Refusal {
        Refusal::unavailable(match self.closing.load(Ordering::Relaxed) {
            true => "the server is shutting down",
            false => "as many requests are waiting as may; try again later",
        })
    }

    /// Runs `work` in the pool; `None` if it panicked.
    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, result) = oneshot::channel();
        // Where nobody waits for the result any more, it is dropped.
        self.pool.spawn(move || drop(sender.send(work())));
        result.await.ok()
    }

    /// Takes a generation from turn to turn until its end, or until its client has gone.
    ///
    /// What a client has not fetched yet waits in the channel, which is not bounded but by the answer's length: a
    /// slow client is not to hold a slot.
    async fn drive(self: Arc<Self>, mut work: Work<E>, lines: UnboundedSender<String>) {
        loop {
            let turn = move || {
                let turn = work.turn();
                (work, turn)
            };
            let Some((back, turn)) = self.compute(turn).await else {
                let _ = lines.send(failed("internal error"));
                return;
            };
            work = back;
            let (sent, goes_on) = match turn {
                Ok(Turn::Read) => (Ok(()), true),
                Ok(Turn::Wrote(line)) => (lines.send(line), true),
                Ok(Turn::Ended(line)) => (lines.send(line), false),
                Err(error) => (lines.send(failed(&error.to_string())), false),
            };
            if !goes_on || sent.is_err() {
                return;
            }
        }
    }
}

/// A line of an answer.
fn line(object: &Value) -> String {
    format!("{object}\n")
}

fn failed(reason: &str) -> String {
    line(&json!({ "error": reason }))
}

/// A generation that is running.
struct Work<E: Element> {
    engine: Arc<Engine<E>>,
    session: Session<'static, E>,
    /// Whole pieces of the prompt that are still to be taken in before the generation's own.
    ahead: Vec<u32>,
    generation: Generation,
    sampler: Sampler,
    text: TextStream<'static>,
    /// Given back with the work, wherever that ends.
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// What a turn gave.
enum Turn {
    /// A piece of the prompt was taken in.
    Read,
    /// The line of a token.
    Wrote(String),
    /// The last line.
    Ended(String),
}

impl<E: Element> Work<E> {
    /// A piece of the prompt, or a token.
    fn turn(&mut self) -> Result<Turn> {
        if self.engine.closing.load(Ordering::Relaxed) {
            return self.end(Stop::Cancelled);
        }
        if !self.ahead.is_empty() {
            let piece: Vec<u32> = self.ahead.drain(..PIECE).collect();
            return match self.session.forward(&piece, 0) {
                Ok(_) => Ok(Turn::Read),
                Err(model::Error::Cancelled) => self.end(Stop::Cancelled),
                Err(error) => Err(error.into()),
            };
        }
        match self.generation.step(&mut self.session, &mut self.sampler)? {
            Step::Stop(stop) => self.end(stop),
            Step::Token(id) => {
                self.engine.tokens.fetch_add(1, Ordering::Relaxed);
                let text = self.text.push(id)?;
                Ok(Turn::Wrote(line(&json!({ "id": id, "text": text }))))
            }
        }
    }

    fn end(&mut self, stop: Stop) -> Result<Turn> {
        let text = std::mem::replace(&mut self.text, self.engine.tokenizer.stream()).finish()?;
        let stop = match stop {
            Stop::End => "end",
            Stop::Length => "length",
            Stop::Cancelled => "cancelled",
        };
        Ok(Turn::Ended(line(&json!({ "text": text, "stop": stop }))))
    }
}

/// The lines of an answer as they come. Dropped, which is what happens when its client has gone, it stops the
/// generation.
pub(super) struct Answer {
    lines: UnboundedReceiver<String>,
    cancel: Arc<AtomicBool>,
}

impl Answer {
    /// The next line, or `None` after the last.
    pub(super) fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Option<String>> {
        self.lines.poll_recv(context)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

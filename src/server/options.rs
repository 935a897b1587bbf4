//! What a server may take, and whom it serves.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::batch::BatchOptions;

/// How a server runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the model.
    pub name: String,
    /// Patches to load at the start: each is a model of its own, `name+patch`.
    pub patches: Vec<(String, PathBuf)>,
    /// Answers that are written at once.
    pub sequences: usize,
    /// Answers that may wait besides.
    pub queue: usize,
    /// Tokens of an answer to a chat that does not say how many.
    pub max_tokens: usize,
    /// What the batch may take.
    pub batch: BatchOptions,
    /// Bytes of a request's body at most.
    pub body: usize,
    /// Connections at most; one more is closed.
    pub connections: usize,
    /// How long a connection may be without a request, a request without its end, and an answer without a reader.
    pub idle: Duration,
    /// How long answers may go on after the server was told to stop.
    pub drain: Duration,
    /// Keys, one of which a client must have, unless there are none.
    pub keys: Vec<String>,
    /// The origin whose pages may ask, or `*`.
    pub cors: Option<String>,
    /// Whether clients may load and unload patches.
    pub admin: bool,
}

impl Options {
    /// Answers that run or wait at most.
    pub(super) fn places(&self) -> usize {
        let most = tokio::sync::Semaphore::MAX_PERMITS;
        self.sequences.saturating_add(self.queue).min(most)
    }
}

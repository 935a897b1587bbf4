//! What the engine says of an answer as it is written.

use crate::receipt::Receipt;

/// A piece of the answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// A token of a prompt, where their log-probabilities are wanted; the first has none.
    Read {
        /// Which prompt.
        prompt: usize,
        token: TokenLog,
    },
    /// Text that will stay, and the tokens that it is of, where their log-probabilities are wanted.
    Wrote {
        /// Which of the answers.
        answer: usize,
        text: String,
        tokens: Vec<TokenLog>,
    },
    /// The end of one of the answers.
    Ended {
        answer: usize,
        finish: Finish,
        /// Tokens written.
        written: usize,
        /// Tokens of its prompt that were not computed again.
        cached: usize,
        /// Where one was asked for.
        receipt: Option<Box<Receipt>>,
    },
    /// The end of all of them, in the middle.
    Failed(Failure),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// The model wrote an end token, or a stop string.
    Stop,
    /// As many tokens as were asked for.
    Length,
}

impl Finish {
    /// As OpenAI names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Why an answer ends in the middle.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// The server ends.
    ShuttingDown,
    /// The model's numbers went wrong, or the like.
    Error(String),
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TokenLog {
    pub(super) id: u32,
    /// Its log-probability; the first token of a text has none.
    pub(super) log_probability: Option<f64>,
    /// The likeliest tokens in its place with theirs, likeliest first.
    pub(super) likeliest: Vec<(u32, f64)>,
}

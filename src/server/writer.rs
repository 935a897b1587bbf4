//! One answer as it is written: its draws, its text, its end.

use super::answer::{Finish, TokenLog};
use super::stop_text::StopText;
use crate::Result;
use crate::checkpoint::{TextStream, Tokenizer};
use crate::model::LogProbabilities;
use crate::model::generate::Sampler;
use crate::receipt::{Ending, Receipt};
use crate::tensor::Element;

/// What an answer is written by.
pub(super) struct Writer<'t> {
    tokenizer: &'t Tokenizer,
    sampler: Sampler,
    text: TextStream<'t>,
    stop: StopText,
    end_tokens: &'t [u32],
    max_tokens: usize,
    /// How many of the likeliest tokens are wanted, where log-probabilities are.
    logprobs: Option<usize>,
    /// What is taken down, where a receipt is wanted.
    receipt: Option<Receipt>,
    /// Tokens written.
    ids: Vec<u32>,
    /// Bytes of text so far, and of those how many are released.
    bytes: usize,
    released: usize,
    /// Tokens whose text is held back, and where it begins.
    held: Vec<(usize, TokenLog)>,
}

/// What a step adds to an answer.
pub(super) struct Written {
    pub(super) text: String,
    pub(super) tokens: Vec<TokenLog>,
    pub(super) next: Next,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The model takes this token in.
    Take(u32),
    End(End),
}

/// What an answer ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// An end token.
    Token,
    StopString,
    /// As many tokens as were asked for.
    Length,
}

impl End {
    /// What clients are told of it.
    pub(super) fn finish(self) -> Finish {
        match self {
            Self::Token | Self::StopString => Finish::Stop,
            Self::Length => Finish::Length,
        }
    }
}

impl<'t> Writer<'t> {
    /// The writer of an answer of at most `max_tokens` tokens.
    pub(super) fn new(
        tokenizer: &'t Tokenizer,
        end_tokens: &'t [u32],
        sampler: Sampler,
        stops: Vec<String>,
        max_tokens: usize,
        logprobs: Option<usize>,
    ) -> Self {
        Self {
            tokenizer,
            sampler,
            text: tokenizer.stream(),
            stop: StopText::new(stops),
            end_tokens,
            max_tokens,
            logprobs,
            receipt: None,
            ids: Vec::new(),
            bytes: 0,
            released: 0,
            held: Vec::new(),
        }
    }

    /// Takes down what the answer is drawn from.
    pub(super) fn with_receipt(mut self, receipt: Option<Receipt>) -> Self {
        self.receipt = receipt;
        self
    }

    /// The receipt of an answer that ended.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer.
    pub(super) fn receipt(&mut self, end: End) -> Result<Option<Receipt>> {
        let Some(receipt) = self.receipt.take() else {
            return Ok(None);
        };
        let ending = match end {
            End::Token => Ending::End,
            End::StopString => Ending::Text,
            End::Length => Ending::Length,
        };
        let receipt = receipt.finished(self.tokenizer, self.ids.clone(), ending);
        Ok(Some(receipt?))
    }

    /// How many tokens were written.
    pub(super) fn written(&self) -> usize {
        self.ids.len()
    }

    /// Draws the next token.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer.
    pub(super) fn write<E: Element>(&mut self, logits: &[E]) -> Result<Written> {
        if self.ids.len() == self.max_tokens {
            return self.end(String::new(), End::Length);
        }
        if let Some(receipt) = &mut self.receipt {
            receipt.step(logits);
        }
        let id = self.sampler.next(logits);
        if self.end_tokens.contains(&id) {
            return self.end(String::new(), End::Token);
        }
        self.ids.push(id);
        if let Some(likeliest) = self.logprobs {
            self.held.push((self.bytes, log(logits, id, likeliest)));
        }
        let piece = self.text.push(id)?;
        self.bytes += piece.len();
        let released = self.stop.push(&piece);
        self.released += released.text.len();
        if released.stopped {
            let tokens = self.tokens(self.released);
            return Ok(Written {
                text: released.text,
                tokens,
                next: Next::End(End::StopString),
            });
        }
        if self.ids.len() == self.max_tokens {
            return self.end(released.text, End::Length);
        }
        let whole = self.released == self.bytes;
        let tokens = self.tokens(if whole { usize::MAX } else { self.released });
        Ok(Written {
            text: released.text,
            tokens,
            next: Next::Take(id),
        })
    }

    /// What was held back, after `text`.
    fn end(&mut self, mut text: String, end: End) -> Result<Written> {
        let rest = std::mem::replace(&mut self.text, self.tokenizer.stream()).finish()?;
        let released = self.stop.push(&rest);
        text += &released.text;
        self.released += released.text.len();
        let (end, before) = if released.stopped {
            (End::StopString, self.released)
        } else {
            text += &self.stop.finish();
            (end, usize::MAX)
        };
        let tokens = self.tokens(before);
        Ok(Written {
            text,
            tokens,
            next: Next::End(end),
        })
    }

    /// The tokens held whose text begins before byte `end`.
    fn tokens(&mut self, end: usize) -> Vec<TokenLog> {
        let count = self.held.partition_point(|(start, _)| *start < end);
        self.held.drain(..count).map(|(_, token)| token).collect()
    }
}

/// How likely token `id` was, and the likeliest.
pub(super) fn log<E: Element>(logits: &[E], id: u32, likeliest: usize) -> TokenLog {
    let log = LogProbabilities::new(logits);
    let likeliest = log.likeliest(likeliest).into_iter();
    TokenLog {
        id,
        log_probability: Some(log.of(id)),
        likeliest: likeliest.map(|id| (id, log.of(id))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;

    /// Writes tokens that are certain; `None` is an end token. Gives the text and the tokens of each step, and the end.
    fn write(
        stops: &[&str],
        max_tokens: usize,
        words: &str,
    ) -> (Vec<(String, usize)>, Option<End>) {
        let model = Model::open("reference/tiny").unwrap();
        let tokenizer = model.checkpoint().tokenizer().unwrap();
        let ends = model.checkpoint().eos_token_ids();
        let mut ids = tokenizer.encode_more(words).unwrap();
        ids.push(ends[0]);
        let stops = stops.iter().map(|stop| (*stop).into()).collect();
        let sampler = Sampler::default();
        let mut writer = Writer::new(&tokenizer, ends, sampler, stops, max_tokens, Some(1));
        let mut steps = Vec::new();
        for id in ids {
            let mut logits = vec![0.0f32; model.config().vocab_size];
            logits[id as usize] = 9.0;
            let written = writer.write(&logits).unwrap();
            assert!(
                written
                    .tokens
                    .iter()
                    .all(|token| token.likeliest[0].0 == token.id)
            );
            steps.push((written.text, written.tokens.len()));
            match written.next {
                Next::Take(next) => assert_eq!(next, id),
                Next::End(end) => return (steps, Some(end)),
            }
        }
        (steps, None)
    }

    fn owned(steps: &[(&str, usize)]) -> Vec<(String, usize)> {
        steps.iter().map(|(text, n)| ((*text).into(), *n)).collect()
    }

    #[test]
    fn an_answer_ends_at_an_end_token_a_stop_string_or_its_length() {
        let (steps, end) = write(&[], 9, " figs. Ann likes");
        let all = [(" figs", 1), (".", 1), (" Ann", 1), (" likes", 1), ("", 0)];
        assert_eq!((steps, end), (owned(&all), Some(End::Token)));
        let (steps, end) = write(&[], 2, " figs. Ann likes");
        assert_eq!((steps, end), (owned(&all[..2]), Some(End::Length)));
        let (steps, end) = write(&[], 0, " figs");
        assert_eq!((steps, end), (owned(&[("", 0)]), Some(End::Length)));
    }

    #[test]
    fn text_and_tokens_wait_together_for_a_stop_string() {
        let (steps, end) = write(&["s. Ann l"], 9, " figs. Ann likes");
        let want = [(" fig", 1), ("", 0), ("", 0), ("", 0)];
        assert_eq!((steps, end), (owned(&want), Some(End::StopString)));
        // It only looked like one.
        let (steps, end) = write(&["s. Bob"], 9, " figs. Ann likes");
        let want = [(" fig", 1), ("", 0), ("s. Ann", 2), (" like", 1), ("s", 0)];
        assert_eq!((steps, end), (owned(&want), Some(End::Token)));
        // What is held when the length is reached is part of the answer.
        let (steps, end) = write(&["s. Ann"], 2, " figs. Ann likes");
        let want = [(" fig", 1), ("s.", 1)];
        assert_eq!((steps, end), (owned(&want), Some(End::Length)));
    }
}

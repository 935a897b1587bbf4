//! A text that a model writes: shown as it comes, or kept, and a receipt of it where one is asked for.

use std::path::Path;

use context_patch::Result;
use context_patch::checkpoint::Tokenizer;
use context_patch::model::Session;
use context_patch::model::generate::{Sampler, Sampling, Stop, generate_by};
use context_patch::receipt::Receipt;
use context_patch::tensor::Element;

use super::text::print_written;
use super::{OK, end_line, signals};

/// How a text is written.
pub(super) struct Writing<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) sampling: Sampling,
    pub(super) max_tokens: usize,
    /// Whether it is printed while it is written.
    pub(super) show: bool,
    /// What is taken down, and where it is kept.
    pub(super) receipt: Option<(Receipt, &'a Path)>,
}

/// What was written.
pub(super) struct Written {
    pub(super) ids: Vec<u32>,
    pub(super) text: String,
    pub(super) stop: Stop,
}

impl Writing<'_> {
    /// Writes on a session that takes in `tokens` next.
    pub(super) fn after<E: Element>(
        mut self,
        session: &mut Session<'_, E>,
        tokens: &[u32],
    ) -> Result<Written> {
        let mut stream = self.tokenizer.stream();
        let (mut ids, mut text) = (Vec::new(), String::new());
        let mut sampler = Sampler::new(self.sampling);
        let mut say = |piece: String| -> Result<()> {
            text.push_str(&piece);
            match self.show {
                true => print_written(&piece),
                false => Ok(()),
            }
        };
        let choose = |logits: &[E]| {
            if let Some((receipt, _)) = &mut self.receipt {
                receipt.step(logits);
            }
            sampler.next(logits)
        };
        let stop = generate_by(session, tokens, self.max_tokens, choose, |id| {
            ids.push(id);
            say(stream.push(id)?)
        })?;
        say(stream.finish()?)?;
        if let Some((receipt, file)) = self.receipt {
            let receipt = receipt.finished(self.tokenizer, ids.clone(), stop)?;
            receipt.write(file)?;
        }
        if self.show {
            end_line(&text)?;
        }
        Ok(Written { ids, text, stop })
    }
}

impl Written {
    /// The exit code.
    pub(super) fn code(&self) -> u8 {
        match self.stop {
            Stop::Cancelled => signals::code(),
            Stop::End | Stop::Length => OK,
        }
    }
}

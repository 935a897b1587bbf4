//! What is absorbed and what stays: a sequence divided into context and query.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::model::{Images, Model, Tokens};
use crate::tensor::Element;

/// The positions that the reduced pass gives its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Those of the contextual pass, with gaps where tokens are gone: the paper's setting.
    Absolute,
    /// 0, 1, 2, …, like any fresh prompt: the patch absorbs the shift too.
    Natural,
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Absolute => "absolute",
            Self::Natural => "natural",
        })
    }
}

impl FromStr for Positions {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "absolute" => Ok(Self::Absolute),
            "natural" => Ok(Self::Natural),
            _ => Err(format!(
                "'{s}' is no kind of positions: use absolute or natural"
            )),
        }
    }
}

/// Refuses tokens of images, which are at `spans`, among those that stay.
///
/// # Errors
///
/// [`Error::KeptImage`].
pub(crate) fn refuse_kept_images(kept: &[usize], spans: &[Range<usize>]) -> Result<()> {
    let of_image = |index: &&usize| spans.iter().any(|span| span.contains(index));
    match kept.iter().find(of_image) {
        Some(&index) => Err(Error::KeptImage { index }),
        None => Ok(()),
    }
}

/// A sequence divided into a context, of which some tokens stay, and the tokens at its end that the
/// patch is for. What does not stay is absorbed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Split {
    fields: Fields,
}

/// [`Split`] as it is stored, before anyone has looked whether it makes sense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fields {
    tokens: Vec<u32>,
    kept: Vec<usize>,
    span: usize,
    #[serde(default)]
    answer: usize,
    positions: Positions,
}

impl TryFrom<Fields> for Split {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self> {
        let split = Self::new(fields.tokens, fields.kept, fields.span, fields.positions)?;
        split.with_answer(fields.answer)
    }
}

impl From<Split> for Fields {
    fn from(split: Split) -> Self {
        split.fields
    }
}

impl Split {
    /// The last `span` of `tokens` are what the patch is for; of the context before them the tokens at
    /// `kept` (ascending indices) stay.
    ///
    /// # Errors
    ///
    /// [`Error::NoQuery`] for a span of nothing; [`Error::NoContext`] without a context;
    /// [`Error::KeptIndex`] for an index outside it or out of order; [`Error::NothingToAbsorb`] where all
    /// of it stays.
    pub fn new(
        tokens: Vec<u32>,
        kept: Vec<usize>,
        span: usize,
        positions: Positions,
    ) -> Result<Self> {
        if span == 0 {
            return Err(Error::NoQuery);
        }
        let context = tokens.len().saturating_sub(span);
        if context == 0 {
            return Err(Error::NoContext);
        }
        if let Some(i) =
            (0..kept.len()).find(|&i| kept[i] >= context || i > 0 && kept[i] <= kept[i - 1])
        {
            return Err(Error::KeptIndex {
                index: kept[i],
                context,
            });
        }
        if kept.len() == context {
            return Err(Error::NothingToAbsorb { context });
        }
        Ok(Self {
            fields: Fields {
                tokens,
                kept,
                span,
                answer: 0,
                positions,
            },
        })
    }

    /// This split, where the last `answer` tokens are what the model is to write.
    ///
    /// # Errors
    ///
    /// [`Error::NoQuery`] where that leaves no token to answer.
    pub fn with_answer(mut self, answer: usize) -> Result<Self> {
        if answer >= self.fields.span {
            return Err(Error::NoQuery);
        }
        self.fields.answer = answer;
        Ok(self)
    }

    /// The whole sequence of the contextual pass.
    pub fn tokens(&self) -> &[u32] {
        &self.fields.tokens
    }

    /// The sequence without the tokens that the patch is for.
    pub fn context(&self) -> &[u32] {
        &self.fields.tokens[..self.context_len()]
    }

    /// The tokens that the patch is for.
    pub fn queries(&self) -> &[u32] {
        &self.fields.tokens[self.context_len()..]
    }

    /// Where in the context the tokens stand that stay.
    pub fn kept(&self) -> &[usize] {
        &self.fields.kept
    }

    /// The kind of positions of the reduced pass.
    pub fn positions(&self) -> Positions {
        self.fields.positions
    }

    /// The tokens of the reduced pass: those that stay, then those that the patch is for.
    pub fn reduced_tokens(&self) -> Vec<u32> {
        let kept = self.fields.kept.iter().map(|&at| self.fields.tokens[at]);
        kept.chain(self.queries().iter().copied()).collect()
    }

    /// The positions of these tokens.
    pub fn reduced_positions(&self) -> Vec<usize> {
        let absolute = self
            .fields
            .kept
            .iter()
            .copied()
            .chain(self.context_len()..self.fields.tokens.len());
        match self.fields.positions {
            Positions::Absolute => absolute.collect(),
            Positions::Natural => (0..absolute.count()).collect(),
        }
    }

    /// The reduced pass without the answer: what to give the patched model for it to write the answer.
    pub fn reduced_prompt(&self) -> (Vec<u32>, Vec<usize>) {
        let (mut tokens, mut positions) = (self.reduced_tokens(), self.reduced_positions());
        let prompt = tokens.len() - self.fields.answer;
        tokens.truncate(prompt);
        positions.truncate(prompt);
        (tokens, positions)
    }

    /// The tokens at the end of the span that the model is to write.
    pub fn answer(&self) -> &[u32] {
        &self.fields.tokens[self.fields.tokens.len() - self.fields.answer..]
    }

    /// Refuses a split whose context does not have all of the images, or of which a part of one stays; and tokens that the
    /// model does not have.
    ///
    /// # Errors
    ///
    /// [`Error::KeptImage`], and [`model::Error`](crate::model::Error)'s `ImageCut`, `TokenId` and `PromptTooLong`.
    pub fn check_images<E: Element>(
        &self,
        model: &Model,
        images: Option<&Images<E>>,
    ) -> Result<()> {
        let spans = Tokens::new(self.context(), images).spans(0);
        model.check_with_images(self.context(), &spans, 0)?;
        model.check_with_images(self.tokens(), &spans, 0)?;
        refuse_kept_images(self.kept(), &spans)
    }

    fn context_len(&self) -> usize {
        self.fields.tokens.len() - self.fields.span
    }
}

//! A prompt and its queries as token ids, and what the model says to them.

use super::{Sample, answers, texts};
use crate::checkpoint::{ChatTemplate, Conversation, Message, Tokenizer};
use crate::model::Model;
use crate::patch::{Error, Result};
use crate::tensor::Element;

/// What stands for a query while a template is looked at.
const PLACE: &str = "\u{1}QUERY\u{1}";

/// Tokens of a query that the model makes up itself, at most.
pub const OWN_TOKENS: usize = 64;

/// Tokens of a text that must not change.
pub const ANCHOR_TOKENS: usize = 48;

/// The seeds of queries lie this far behind those of anchors.
const OWN_SEED: u64 = 1 << 32;

/// A prompt that is to be compiled.
pub struct Prompt<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template, where the prompt is a system message; otherwise queries follow it as they are.
    pub template: Option<&'a ChatTemplate>,
    /// The prompt.
    pub context: &'a str,
    /// The text at which an answer ends, besides the model's end token.
    pub stop: Option<&'a str>,
    /// Tokens of an answer at most.
    pub answer_tokens: usize,
}

/// A query, and the answer where one is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The query.
    pub query: String,
    /// The answer that the model is to give; without it, the one it gives with the prompt.
    pub answer: Option<String>,
}

impl Prompt<'_> {
    /// A query behind the prompt, and without it.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer and the template.
    pub fn query(&self, query: &str) -> Result<[Vec<u32>; 2]> {
        let Some(template) = self.template else {
            let with = format!("{}{query}", self.context);
            return Ok([self.tokenizer.encode(&with)?, self.tokenizer.encode(query)?]);
        };
        let render = |system: Option<&str>| -> Result<Vec<u32>> {
            let system = system.map(Message::system);
            let messages = system.into_iter().chain([Message::user(query)]);
            let text = template.render(&Conversation::new(messages))?;
            Ok(self.tokenizer.encode_as_written(&text)?)
        };
        Ok([render(Some(self.context))?, render(None)?])
    }

    /// The prompt as the model sees it, up to where a query begins.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer and the template.
    pub fn beginning(&self) -> Result<Vec<u32>> {
        let Some(template) = self.template else {
            return Ok(self.tokenizer.encode(self.context)?);
        };
        let messages = [Message::system(self.context), Message::user(PLACE)];
        let text = template.render(&Conversation::new(messages))?;
        let before = text.split(PLACE).next().unwrap_or_default();
        Ok(self.tokenizer.encode_as_written(before)?)
    }

    /// The token that every sequence begins with; none where the prompt is empty.
    ///
    /// # Errors
    ///
    /// Those of [`beginning`](Self::beginning).
    pub fn first(&self) -> Result<Vec<u32>> {
        let mut beginning = self.beginning()?;
        beginning.truncate(1);
        Ok(beginning)
    }

    /// Queries, and the answers to them; `on_token` is called after each token of an answer.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer, the template and [`Session::forward`](crate::Session::forward);
    /// [`Error::FewQueries`] where fewer than two different ones are left.
    pub fn samples<E: Element>(
        &self,
        model: &Model,
        asked: &[Asked],
        on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let pairs = asked.iter().map(|asked| self.query(&asked.query));
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        let prompted: Vec<_> = pairs.iter().map(|[prompted, _]| prompted.clone()).collect();
        let written = self.answers::<E>(model, &prompted, on_token)?;
        let each = pairs.iter().zip(written).zip(asked);
        let samples = each.map(|(([prompted, bare], written), asked)| {
            let answer = match &asked.answer {
                Some(answer) => self.tokenizer.encode_more(answer)?,
                None => written,
            };
            Ok(Sample::query(prompted, bare, &answer))
        });
        distinct(samples.collect::<Result<_>>()?)
    }

    /// The likeliest answers to some prompts.
    fn answers<E: Element>(
        &self,
        model: &Model,
        prompts: &[Vec<u32>],
        on_token: impl FnMut(),
    ) -> Result<Vec<Vec<u32>>> {
        let ended = |written: &[u32]| self.ended(written);
        let most = self.answer_tokens;
        Ok(answers::<E>(model, None, prompts, most, ended, on_token)?)
    }

    /// Whether an answer ends with what is written.
    pub fn ended(&self, written: &[u32]) -> bool {
        let text = || self.tokenizer.decode(written).unwrap_or_default();
        self.stop.is_some_and(|stop| text().contains(stop))
    }

    /// `count` queries that the model makes up itself at temperature 1, and what it says to them: it goes on after the prompt up to
    /// an empty line, or with a chat template asks in the user's place.
    ///
    /// # Errors
    ///
    /// Those of [`samples`](Self::samples).
    pub fn own_samples<E: Element>(
        &self,
        model: &Model,
        count: usize,
        seed: u64,
        mut on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let beginning = self.beginning()?;
        let seed = seed.wrapping_add(OWN_SEED);
        let chat = self.template.is_some();
        let decoded = |written: &[u32]| self.tokenizer.decode(written).unwrap_or_default();
        let ended = |written: &[u32]| !chat && decoded(written).trim_start().contains("\n\n");
        let texts = texts::<E>(
            model,
            &beginning,
            count,
            OWN_TOKENS,
            seed,
            ended,
            &mut on_token,
        )?;
        if !chat {
            let bare = self.first()?;
            let samples = texts
                .iter()
                .map(|text| Sample::query(&beginning, &bare, text));
            return distinct(samples.collect());
        }
        let ends = model.checkpoint().eos_token_ids();
        let asked = texts.iter().map(|text| {
            let text: Vec<u32> = text
                .iter()
                .copied()
                .filter(|id| !ends.contains(id))
                .collect();
            let query = decoded(&text).trim().to_owned();
            Asked {
                query,
                answer: None,
            }
        });
        let asked: Vec<_> = asked.filter(|asked| !asked.query.is_empty()).collect();
        self.samples::<E>(model, &asked, on_token)
    }

    /// `count` texts that the model writes at temperature 1 after the token that begins every sequence: what must not change.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`](crate::Session::forward).
    pub fn anchors<E: Element>(
        &self,
        model: &Model,
        count: usize,
        seed: u64,
        on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let texts = texts::<E>(
            model,
            &self.first()?,
            count,
            ANCHOR_TOKENS,
            seed,
            |_| false,
            on_token,
        )?;
        self.anchors_of(texts)
    }

    /// The same of a text that someone gives.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer.
    pub fn anchors_from(&self, text: &str) -> Result<Vec<Sample>> {
        let ids = self.tokenizer.encode_more(text)?;
        self.anchors_of(ids.chunks(ANCHOR_TOKENS).map(<[u32]>::to_vec).collect())
    }

    fn anchors_of(&self, texts: Vec<Vec<u32>>) -> Result<Vec<Sample>> {
        let first = self.first()?;
        let anchors = texts
            .into_iter()
            .map(|text| Sample::anchor([first.clone(), text].concat()));
        Ok(anchors.filter(|anchor| anchor.rows() > 0).collect())
    }
}

/// Samples without those that are there twice.
fn distinct(samples: Vec<Sample>) -> Result<Vec<Sample>> {
    let mut seen = Vec::new();
    for sample in samples {
        if sample.rows() > 0 && !seen.contains(&sample) {
            seen.push(sample);
        }
    }
    if seen
        .iter()
        .any(|sample: &Sample| sample.prompted == sample.bare)
    {
        return Err(Error::NothingToCompile);
    }
    match seen.len() {
        0 | 1 => Err(Error::FewQueries {
            queries: seen.len(),
        }),
        _ => Ok(seen),
    }
}

//! A prompt and its queries as token ids, and what the model says to them.

use super::records::records;
use super::sample::common;
use super::{FOLDS, Kept, Role, Sample, Until, answers, texts};
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
    /// Whether every query is compiled as the second of a conversation, too.
    pub second_turn: bool,
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
        self.rendered(template, &[Message::user(query)])
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

    /// Queries, and the answers to them; with [`second_turn`](Self::second_turn) each also behind another one and its answer.
    /// `on_token` is called after each token of an answer that is not kept.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer, the template and [`Session::forward`](crate::Session::forward);
    /// [`Error::FewQueries`] where fewer than two different ones are left.
    pub fn samples<E: Element>(
        &self,
        model: &Model,
        asked: &[Asked],
        kept: &mut Kept,
        mut on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let turns = asked.iter().map(|asked| {
            Ok(Turn {
                asked,
                before: 0,
                pair: self.query(&asked.query)?,
                answer: Vec::new(),
            })
        });
        let turns = turns.collect::<Result<_>>()?;
        let turns = self.answered::<E>(model, turns, kept, &mut on_token)?;
        let turns = two_at_least(turns, |turn| turn.sample(0))?;
        let samples = turns.iter().enumerate().map(|(i, turn)| turn.sample(i));
        let mut samples: Vec<_> = samples.collect();
        if self.second_turn {
            samples.extend(self.second_turns::<E>(model, &turns, kept, on_token)?);
        }
        Ok(samples)
    }

    /// Queries, each behind the last one before it that is left out with it: so nothing of a query is in what is compiled without
    /// it.
    fn second_turns<E: Element>(
        &self,
        model: &Model,
        turns: &[Turn<'_>],
        kept: &mut Kept,
        on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let before = |i: usize| match i.checked_sub(FOLDS) {
            Some(before) => before,
            None => (i..turns.len()).step_by(FOLDS).next_back().unwrap_or(i),
        };
        let about: Vec<_> = (0..turns.len()).filter(|&i| before(i) != i).collect();
        let second = about
            .iter()
            .map(|&i| self.behind(model, &turns[before(i)], turns[i].asked));
        let second = self.answered::<E>(model, second.collect::<Result<_>>()?, kept, on_token)?;
        let samples = about.iter().zip(&second).map(|(&i, turn)| turn.sample(i));
        Ok(samples.collect())
    }

    /// A query behind another one and its answer; not answered yet.
    fn behind<'q>(&self, model: &Model, first: &Turn<'_>, asked: &'q Asked) -> Result<Turn<'q>> {
        let pair = match self.template {
            None => {
                let query = self.tokenizer.encode_more(&asked.query)?;
                first.whole().map(|first| [first, query.clone()].concat())
            }
            Some(template) => {
                let said = self.said(model, &first.answer);
                let turns = [
                    Message::user(&first.asked.query),
                    Message::assistant(said),
                    Message::user(&asked.query),
                ];
                self.rendered(template, &turns)?
            }
        };
        let [_, first] = first.whole();
        Ok(Turn {
            asked,
            before: common(&[&first, &pair[1]]),
            pair,
            answer: Vec::new(),
        })
    }

    /// What the model has written, without the token that ends its turn.
    fn said(&self, model: &Model, written: &[u32]) -> String {
        let ends = model.checkpoint().eos_token_ids();
        let text: Vec<u32> = (written.iter().copied())
            .filter(|id| !ends.contains(id))
            .collect();
        let text = self.tokenizer.decode(&text).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Some turns behind the prompt as a system message, and without it.
    fn rendered(&self, template: &ChatTemplate, turns: &[Message]) -> Result<[Vec<u32>; 2]> {
        let render = |system: Option<Message>| -> Result<Vec<u32>> {
            let messages = system.into_iter().chain(turns.iter().cloned());
            let text = template.render(&Conversation::new(messages))?;
            Ok(self.tokenizer.encode_as_written(&text)?)
        };
        Ok([render(Some(Message::system(self.context)))?, render(None)?])
    }

    /// Turns with their answers: those that are given, and the likeliest of the model with the prompt.
    fn answered<'q, E: Element>(
        &self,
        model: &Model,
        mut turns: Vec<Turn<'q>>,
        kept: &mut Kept,
        on_token: impl FnMut(),
    ) -> Result<Vec<Turn<'q>>> {
        let open = |turn: &&mut Turn<'_>| turn.asked.answer.is_none();
        let prompts: Vec<_> = (turns.iter_mut().filter(open))
            .map(|turn| turn.pair[0].clone())
            .collect();
        let until = Until {
            most: self.answer_tokens,
            ended: &|written: &[u32]| self.ended(written),
        };
        let answers = answers::<E>(model, None, &prompts, &until, kept, on_token)?;
        for (turn, answer) in turns.iter_mut().filter(open).zip(answers) {
            turn.answer = answer;
        }
        for turn in &mut turns {
            if let Some(answer) = &turn.asked.answer {
                turn.answer = self.tokenizer.encode_more(answer)?;
            }
        }
        Ok(turns)
    }

    /// Whether an answer ends with what is written.
    pub fn ended(&self, written: &[u32]) -> bool {
        let text = || self.tokenizer.decode(written).unwrap_or_default();
        self.stop.is_some_and(|stop| text().contains(stop))
    }

    /// `count` queries that the model makes up itself at temperature 1, and what it says to them: it goes on after the prompt up to
    /// an empty line, which is cut into lines or what lines belong together, or with a chat template asks in the user's place.
    ///
    /// # Errors
    ///
    /// Those of [`samples`](Self::samples).
    pub fn own_samples<E: Element>(
        &self,
        model: &Model,
        count: usize,
        seed: u64,
        kept: &mut Kept,
        mut on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let beginning = self.beginning()?;
        let seed = seed.wrapping_add(OWN_SEED);
        let chat = self.template.is_some();
        let decoded = |written: &[u32]| self.tokenizer.decode(written).unwrap_or_default();
        let until = Until {
            most: OWN_TOKENS,
            ended: &|written| !chat && decoded(written).trim_start().contains("\n\n"),
        };
        let texts = texts::<E>(model, &beginning, count, seed, &until, kept, &mut on_token)?;
        if !chat {
            let bare = self.first()?;
            let samples = texts.iter().enumerate().flat_map(|(i, text)| {
                let pieces: Vec<_> = text.iter().map(|token| decoded(&[*token])).collect();
                let records = records(&pieces, self.context).into_iter();
                let each = records.map(|record| Sample::query(i, &beginning, &bare, &text[record]));
                each.collect::<Vec<_>>()
            });
            return two_at_least(samples.collect(), |sample| Sample {
                about: 0,
                ..sample.clone()
            });
        }
        let asked = texts.iter().map(|text| Asked {
            query: self.said(model, text),
            answer: None,
        });
        let asked: Vec<_> = asked.filter(|asked| !asked.query.is_empty()).collect();
        self.samples::<E>(model, &asked, kept, on_token)
    }

    /// [`own_samples`](Self::own_samples) beside queries that are given, `samples` of this prompt: those of them that are not asked there. There may
    /// be none.
    ///
    /// # Errors
    ///
    /// Those of [`own_samples`](Self::own_samples), but for [`Error::FewQueries`].
    pub fn more_samples<E: Element>(
        &self,
        model: &Model,
        samples: &[Sample],
        count: usize,
        seed: u64,
        kept: &mut Kept,
        on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let text = |tokens: &[u32]| {
            let text = self.tokenizer.decode(tokens).unwrap_or_default();
            text.trim_start().to_owned()
        };
        let first = self.first()?.len();
        let asked = samples.iter().map(|sample| {
            let end = sample.bare.len() - sample.answer;
            text(&sample.bare[first..end.max(first)])
        });
        let asked: Vec<_> = asked.filter(|asked| !asked.is_empty()).collect();
        let is_new = |own: &Sample| {
            let own = text(&own.bare[first..]);
            !asked.iter().any(|asked| own.starts_with(asked.as_str()))
        };
        let own = match self.own_samples::<E>(model, count, seed, kept, on_token) {
            Err(Error::FewQueries { .. }) => Vec::new(),
            own => own?,
        };
        let own = own.into_iter().filter(is_new).map(|own| Sample {
            role: Role::Own,
            ..own
        });
        Ok(own.collect())
    }

    /// Queries of other kinds, and the answers to them without the prompt: what must not change either. `on_token` is called after
    /// each token of an answer that is not kept.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer, the template and [`Session::forward`](crate::Session::forward).
    pub fn away<E: Element>(
        &self,
        model: &Model,
        asked: &[Asked],
        kept: &mut Kept,
        on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let turns = asked.iter().map(|asked| {
            let [_, bare] = self.query(&asked.query)?;
            Ok(Turn {
                asked,
                before: 0,
                pair: [bare.clone(), bare],
                answer: Vec::new(),
            })
        });
        let turns = self.answered::<E>(model, turns.collect::<Result<_>>()?, kept, on_token)?;
        let turns = distinct(turns, |turn| turn.sample(0));
        let samples = turns.iter().enumerate().map(|(i, turn)| Sample {
            role: Role::Away,
            ..turn.sample(i)
        });
        Ok(samples.collect())
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
        kept: &mut Kept,
        on_token: impl FnMut(),
    ) -> Result<Vec<Sample>> {
        let until = Until {
            most: ANCHOR_TOKENS,
            ended: &|_| false,
        };
        let texts = texts::<E>(model, &self.first()?, count, seed, &until, kept, on_token)?;
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
            .enumerate()
            .map(|(i, text)| Sample::anchor(i, [first.clone(), text].concat()));
        Ok(anchors.filter(|anchor| anchor.rows() > 0).collect())
    }
}

/// A query as a turn of a conversation.
struct Turn<'q> {
    asked: &'q Asked,
    /// Up to where the answer begins, with the prompt and without it.
    pair: [Vec<u32>; 2],
    /// How many tokens of the latter are an earlier turn.
    before: usize,
    answer: Vec<u32>,
}

impl Turn<'_> {
    /// With the answer.
    fn whole(&self) -> [Vec<u32>; 2] {
        self.pair
            .each_ref()
            .map(|with| [with, &self.answer[..]].concat())
    }

    fn sample(&self, about: usize) -> Sample {
        let [prompted, bare] = &self.pair;
        Sample::query(about, prompted, bare, &self.answer).after(self.before)
    }
}

/// The [`distinct`] ones of some queries, which the prompt must make a difference to, and of which two must be left.
fn two_at_least<T>(all: Vec<T>, sample: impl Fn(&T) -> Sample) -> Result<Vec<T>> {
    let is_the_same = |one: &T| {
        let sample = sample(one);
        sample.prompted == sample.bare
    };
    if all.iter().any(is_the_same) {
        return Err(Error::NothingToCompile);
    }
    let left = distinct(all, sample);
    match left.len() {
        queries @ (0 | 1) => Err(Error::FewQueries { queries }),
        _ => Ok(left),
    }
}

/// Those of `all` that make a sample, which no other one before them makes.
fn distinct<T>(all: Vec<T>, sample: impl Fn(&T) -> Sample) -> Vec<T> {
    let mut seen = Vec::new();
    let is_new = |one: &T| {
        let sample = sample(one);
        let is_new = sample.rows() > 0 && !seen.contains(&sample);
        if is_new {
            seen.push(sample);
        }
        is_new
    };
    let mut left = all;
    left.retain(is_new);
    left
}

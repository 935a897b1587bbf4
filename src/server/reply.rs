//! Answers in OpenAI's shapes, whole and in pieces.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::answer::{Event, Failure, Finish, TokenLog};
use super::refusal::Refusal;
use crate::checkpoint::Tokenizer;
use crate::receipt::Receipt;

/// Which of the two APIs a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Completions,
    Chat,
}

/// What every piece of an answer says.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) api: Api,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) fingerprint: Arc<str>,
}

/// A prompt that answers begin with.
#[derive(Clone, Debug)]
pub(super) struct Echo {
    pub(super) text: String,
    /// Its tokens, where their log-probabilities are wanted.
    pub(super) tokens: Vec<TokenLog>,
}

/// The answer to a request as it comes.
pub(super) struct Reply {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    /// Answers to each prompt.
    n: usize,
    /// What the answers to each prompt begin with.
    echoes: Option<Vec<Echo>>,
    logprobs: Option<usize>,
    include_usage: bool,
    answers: Vec<Progress>,
    left: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    written_tokens: usize,
}

/// What there is of one answer.
#[derive(Clone, Debug, Default)]
struct Progress {
    begun: bool,
    /// Characters of its tokens so far.
    offset: usize,
}

/// What an event adds to an answer.
pub(super) struct Piece {
    answer: usize,
    first: bool,
    text: String,
    logprobs: Value,
    finish: Option<Finish>,
    receipt: Option<Box<Receipt>>,
}

impl Reply {
    pub(super) fn new(
        head: Head,
        tokenizer: Arc<Tokenizer>,
        (prompts, n): (usize, usize),
        prompt_tokens: usize,
        logprobs: Option<usize>,
    ) -> Self {
        Self {
            head,
            tokenizer,
            n,
            echoes: None,
            logprobs,
            include_usage: false,
            answers: vec![Progress::default(); prompts * n],
            left: prompts * n,
            prompt_tokens,
            cached_tokens: 0,
            written_tokens: 0,
        }
    }

    /// Begins each answer with its prompt.
    pub(super) fn with_echoes(mut self, echoes: Vec<Echo>) -> Self {
        self.echoes = Some(echoes);
        self
    }

    /// Says in a stream what was used.
    pub(super) fn with_usage(mut self) -> Self {
        self.include_usage = true;
        self
    }

    /// Whether every answer has ended.
    pub(super) fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// Takes the next event; `None` where it adds nothing yet.
    ///
    /// # Errors
    ///
    /// Why there is no more.
    pub(super) fn take(&mut self, event: Event) -> Result<Option<Piece>, Refusal> {
        match event {
            Event::Read { prompt, token } => {
                let echo = self
                    .echoes
                    .as_mut()
                    .and_then(|echoes| echoes.get_mut(prompt));
                if let Some(echo) = echo {
                    echo.tokens.push(token);
                }
                Ok(None)
            }
            Event::Wrote {
                answer,
                text,
                tokens,
            } => self.piece(answer, text, tokens, None).map(Some),
            Event::Ended {
                answer,
                finish,
                written,
                cached,
                receipt,
            } => {
                self.left -= 1;
                self.written_tokens += written;
                if answer.is_multiple_of(self.n) {
                    self.cached_tokens += cached;
                }
                let piece = self.piece(answer, String::new(), Vec::new(), Some(finish))?;
                Ok(Some(Piece { receipt, ..piece }))
            }
            Event::Failed(Failure::ShuttingDown) => Err(Refusal::shutting_down()),
            Event::Failed(Failure::Error(message)) => Err(Refusal::internal(message)),
        }
    }

    fn piece(
        &mut self,
        answer: usize,
        mut text: String,
        mut tokens: Vec<TokenLog>,
        finish: Option<Finish>,
    ) -> Result<Piece, Refusal> {
        let first = !std::mem::replace(&mut self.answers[answer].begun, true);
        if let Some(echoes) = self.echoes.as_ref().filter(|_| first) {
            let echo = &echoes[answer / self.n];
            text.insert_str(0, &echo.text);
            tokens.splice(..0, echo.tokens.iter().cloned());
        }
        let logprobs = match self.logprobs {
            None => Value::Null,
            Some(_) if tokens.is_empty() && finish.is_some() && !first => Value::Null,
            Some(likeliest) => match self.head.api {
                Api::Chat => self.chat_logprobs(&tokens)?,
                Api::Completions => self.completion_logprobs(answer, &tokens, likeliest)?,
            },
        };
        Ok(Piece {
            answer,
            first,
            text,
            logprobs,
            finish,
            receipt: None,
        })
    }

    fn chat_logprobs(&self, tokens: &[TokenLog]) -> Result<Value, Refusal> {
        let entry = |id: u32, log: Option<f64>| -> Result<Map<String, Value>, Refusal> {
            let bytes = self.tokenizer.token_bytes(id)?;
            let mut entry = Map::new();
            entry.insert("token".into(), String::from_utf8_lossy(&bytes).into());
            entry.insert("logprob".into(), json!(log));
            entry.insert("bytes".into(), json!(bytes));
            Ok(entry)
        };
        let token = |token: &TokenLog| -> Result<Value, Refusal> {
            let likeliest = token.likeliest.iter();
            let likeliest = likeliest.map(|(id, log)| Ok(entry(*id, Some(*log))?.into()));
            let likeliest: Vec<Value> = likeliest.collect::<Result<_, Refusal>>()?;
            let mut this = entry(token.id, token.log_probability)?;
            this.insert("top_logprobs".into(), likeliest.into());
            Ok(this.into())
        };
        let content: Vec<Value> = tokens.iter().map(token).collect::<Result<_, _>>()?;
        Ok(json!({ "content": content, "refusal": null }))
    }

    fn completion_logprobs(
        &mut self,
        answer: usize,
        tokens: &[TokenLog],
        likeliest: usize,
    ) -> Result<Value, Refusal> {
        let (mut texts, mut logs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for token in tokens {
            let (text, characters) = self.token_text(token.id)?;
            // The token itself is among them in any case.
            let own = token.log_probability.map(|log| (token.id, log));
            let mut top = Map::new();
            for (id, log) in token.likeliest.iter().copied().chain(own) {
                top.insert(self.token_text(id)?.0, json!(log));
            }
            tops.push(if own.is_some() {
                top.into()
            } else {
                Value::Null
            });
            texts.push(text);
            logs.push(token.log_probability);
            let offset = &mut self.answers[answer].offset;
            offsets.push(*offset);
            *offset += characters;
        }
        Ok(json!({
            "tokens": texts,
            "token_logprobs": logs,
            "top_logprobs": (likeliest > 0).then_some(tops),
            "text_offset": offsets,
        }))
    }

    /// A token's text, or its bytes as OpenAI writes them where these are no text, and how many characters it takes.
    fn token_text(&self, id: u32) -> Result<(String, usize), Refusal> {
        let bytes = self.tokenizer.token_bytes(id)?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => {
                let special = self.tokenizer.is_special(id);
                let characters = if special { 0 } else { text.chars().count() };
                (text, characters)
            }
            Err(error) => {
                let bytes = error.as_bytes().iter();
                let bytes: String = bytes.map(|byte| format!("\\x{byte:02x}")).collect();
                (format!("bytes:{bytes}"), 0)
            }
        })
    }

    /// What was used.
    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.written_tokens,
            "total_tokens": self.prompt_tokens + self.written_tokens,
            "prompt_tokens_details": { "cached_tokens": self.cached_tokens },
        })
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let head = json!({
            "id": self.head.id,
            "object": object,
            "created": self.head.created,
            "model": self.head.model,
            "system_fingerprint": &*self.head.fingerprint,
            "choices": choices,
        });
        match head {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// A piece of a stream.
    fn chunk(&self, choices: Vec<Value>, usage: Value) -> Value {
        let mut chunk = self.object(
            match self.head.api {
                Api::Completions => "text_completion",
                Api::Chat => "chat.completion.chunk",
            },
            choices,
        );
        if self.include_usage {
            chunk.insert("usage".into(), usage);
        }
        chunk.into()
    }

    /// The pieces of a stream that an event's piece makes.
    pub(super) fn chunks(&self, mut piece: Piece) -> Vec<Value> {
        let index = piece.answer;
        let receipt = piece.receipt.take();
        let finish = piece.finish.map(Finish::name);
        let mut choices = match self.head.api {
            Api::Completions => vec![json!({
                "text": piece.text, "index": index, "logprobs": piece.logprobs, "finish_reason": finish,
            })],
            Api::Chat => {
                let choice = |delta: Value, logprobs: Value, finish: Option<&str>| json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
                let role = json!({ "role": "assistant", "content": "", "refusal": null });
                let role = piece.first.then(|| choice(role, Value::Null, None));
                let delta = match finish {
                    None => json!({ "content": piece.text }),
                    Some(_) => json!({}),
                };
                let delta = choice(delta, piece.logprobs, finish);
                role.into_iter().chain([delta]).collect()
            }
        };
        if let Some(choice) = choices.last_mut() {
            add_receipt(choice, receipt);
        }
        let chunks = choices.into_iter();
        chunks
            .map(|choice| self.chunk(vec![choice], Value::Null))
            .collect()
    }

    /// The last piece of a stream before its end, where it was asked for.
    pub(super) fn usage_chunk(&self) -> Option<Value> {
        self.include_usage
            .then(|| self.chunk(Vec::new(), self.usage()))
    }

    /// The whole answer that the pieces make.
    pub(super) fn whole(&self, pieces: Vec<Piece>) -> Value {
        let mut wholes: Vec<Whole> = Vec::new();
        wholes.resize_with(self.answers.len(), Whole::default);
        for piece in pieces {
            wholes[piece.answer].add(piece);
        }
        let choices = wholes.into_iter().enumerate();
        let choices = choices.map(|(index, whole)| whole.choice(self.head.api, index));
        let object = match self.head.api {
            Api::Completions => "text_completion",
            Api::Chat => "chat.completion",
        };
        let mut whole = self.object(object, choices.collect());
        whole.insert("usage".into(), self.usage());
        whole.into()
    }
}

/// An answer put together from its pieces.
#[derive(Default)]
struct Whole {
    text: String,
    logprobs: Value,
    finish: Option<Finish>,
    receipt: Option<Box<Receipt>>,
}

impl Whole {
    fn add(&mut self, piece: Piece) {
        self.text += &piece.text;
        self.finish = piece.finish;
        self.receipt = piece.receipt;
        match (&mut self.logprobs, piece.logprobs) {
            (Value::Object(all), Value::Object(more)) => {
                for (name, more) in more {
                    if let (Some(Value::Array(all)), Value::Array(more)) =
                        (all.get_mut(&name), more)
                    {
                        all.extend(more);
                    }
                }
            }
            (Value::Null, more) => self.logprobs = more,
            _ => {}
        }
    }

    fn choice(self, api: Api, index: usize) -> Value {
        let finish = self.finish.map(Finish::name);
        let mut choice = match api {
            Api::Completions => json!({
                "text": self.text, "index": index, "logprobs": self.logprobs, "finish_reason": finish,
            }),
            Api::Chat => json!({
                "index": index,
                "message": { "role": "assistant", "content": self.text, "refusal": null },
                "logprobs": self.logprobs,
                "finish_reason": finish,
            }),
        };
        add_receipt(&mut choice, self.receipt);
        choice
    }
}

/// Puts a receipt into a choice, which has none unless it was asked for.
fn add_receipt(choice: &mut Value, receipt: Option<Box<Receipt>>) {
    if let Some(receipt) = receipt {
        choice["receipt"] = serde_json::from_str(&receipt.json()).unwrap_or_default();
    }
}

//! From a request to a job for the engine.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::answer::{Event, TokenLog};
use super::clock;
use super::engine::Job;
use super::metrics::Metrics;
use super::options::Options;
use super::patches::{Loaded, Patches};
use super::refusal::Refusal;
use super::reply::{Api, Echo, Head, Reply};
use super::request::{ChatMessage, ChatRequest, CompletionRequest, Prompt, Settings};
use crate::checkpoint::{ChatTemplate, Conversation, Tokenizer};
use crate::model::Model;
use crate::model::generate::Sampling;
use crate::receipt::Receipt;
use crate::tensor::Dtype;

/// What all requests share.
pub(super) struct App {
    pub(super) options: Options,
    pub(super) metrics: Arc<Metrics>,
    pub(super) patches: Patches,
    /// When the model was loaded.
    pub(super) created: u64,
    pub(super) model: Arc<Model>,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// The chat template, or why there is none.
    pub(super) template: Result<ChatTemplate, String>,
    pub(super) fingerprint: Arc<str>,
    /// The most tokens of a sequence: as many as the model has positions, or the memory has room for.
    pub(super) room: usize,
    pub(super) dtype: Dtype,
    /// What all receipts have in common, once one was asked for.
    pub(super) receipt: Mutex<Option<Receipt>>,
    pub(super) jobs: Sender<Job>,
    /// One for each answer that runs or waits.
    pub(super) places: Arc<Semaphore>,
    pub(super) closing: AtomicBool,
}

/// A job that was handed to the engine, and what comes of it.
pub(super) struct Submitted {
    pub(super) reply: Reply,
    pub(super) events: UnboundedReceiver<Event>,
    /// What its draws are fixed by.
    pub(super) seed: u64,
}

/// A request as it is prepared.
struct Prepared {
    api: Api,
    model: String,
    patch: Option<Loaded>,
    /// Whether its answers come with receipts.
    receipt: bool,
    places: OwnedSemaphorePermit,
    prompts: Vec<Vec<u32>>,
    /// Texts that the answers begin with.
    echoes: Option<Vec<String>>,
    settings: Settings,
    arrived: Instant,
}

impl App {
    /// Begins to answer a request for completions.
    pub(super) async fn complete(
        self: &Arc<Self>,
        request: CompletionRequest,
        receipt: bool,
    ) -> Result<Submitted, Refusal> {
        let arrived = Instant::now();
        let (model, patch) = self.model(request.model.as_deref())?;
        let places = self.places(request.prompts.len() * request.settings.n)?;
        let app = Arc::clone(self);
        self.blocking(move || {
            let prompts = request.prompts.iter();
            let ids = prompts.clone().map(|prompt| match prompt {
                Prompt::Text(text) => Ok(app.tokenizer.encode(text)?),
                Prompt::Ids(ids) => Ok(ids.clone()),
            });
            let texts = prompts.map(|prompt| match prompt {
                Prompt::Text(text) => Ok(text.clone()),
                Prompt::Ids(ids) => Ok(app.tokenizer.decode(ids)?),
            });
            let echoes = request.echo.then(|| texts.collect::<Result<_, Refusal>>());
            app.submit(Prepared {
                api: Api::Completions,
                model,
                patch,
                receipt,
                places,
                prompts: ids.collect::<Result<_, Refusal>>()?,
                echoes: echoes.transpose()?,
                settings: request.settings,
                arrived,
            })
        })
        .await
    }

    /// Begins to answer a request for the next message of a conversation.
    pub(super) async fn chat(
        self: &Arc<Self>,
        request: ChatRequest,
        receipt: bool,
    ) -> Result<Submitted, Refusal> {
        let arrived = Instant::now();
        let (model, patch) = self.model(request.model.as_deref())?;
        let places = self.places(request.settings.n)?;
        let app = Arc::clone(self);
        self.blocking(move || {
            let prompt = app.conversation(&request.messages, &request.template_arguments)?;
            app.submit(Prepared {
                api: Api::Chat,
                model,
                patch,
                receipt,
                places,
                prompts: vec![app.tokenizer.encode_as_written(&prompt)?],
                echoes: None,
                settings: request.settings,
                arrived,
            })
        })
        .await
    }

    /// The name of a model that a request asks for, and its patch.
    fn model(&self, asked: Option<&str>) -> Result<(String, Option<Loaded>), Refusal> {
        let asked = asked.unwrap_or(&self.options.name);
        if asked == self.options.name {
            return Ok((asked.to_owned(), None));
        }
        let patch = asked
            .strip_prefix(&self.options.name)
            .and_then(|rest| rest.strip_prefix('+'));
        let patch = patch.and_then(|name| self.patches.get(name));
        let patch = patch.ok_or_else(|| Refusal::no_model(asked))?;
        Ok((asked.to_owned(), Some(patch)))
    }

    /// Places for this many answers.
    fn places(&self, answers: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let most = self.options.places();
        let count = u32::try_from(answers).ok().filter(|_| answers <= most);
        let Some(count) = count else {
            return Err(Refusal::bad(format!(
                "the request is for {answers} answers, and the server takes at most {most} at once"
            )));
        };
        if self.closing.load(Ordering::Relaxed) {
            return Err(Refusal::shutting_down());
        }
        let places = Arc::clone(&self.places).try_acquire_many_owned(count);
        places.map_err(|error| match error {
            TryAcquireError::Closed => Refusal::shutting_down(),
            TryAcquireError::NoPermits => Refusal::queue_full(),
        })
    }

    /// Runs what may take a while where it holds up nobody.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(Refusal::internal("internal error: the server's log has it")))
    }

    /// A conversation as the model's chat template writes it.
    fn conversation(
        &self,
        messages: &[ChatMessage],
        others: &Map<String, Value>,
    ) -> Result<String, Refusal> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            messages: &'a [ChatMessage],
            #[serde(flatten)]
            others: &'a Map<String, Value>,
        }
        let template = self.template.as_ref().map_err(|why| {
            Refusal::parameter(
                "messages",
                format!("{why}; or send text to /v1/completions"),
            )
        })?;
        let wrong =
            |error: crate::checkpoint::Error| Refusal::parameter("messages", error.to_string());
        let arguments = serde_json::to_vec(&Arguments { messages, others });
        let arguments = arguments.map_err(|error| Refusal::bad(error.to_string()))?;
        let conversation =
            Conversation::parse(Path::new("the request"), &arguments).map_err(wrong)?;
        template.render(&conversation).map_err(wrong)
    }

    /// Hands a request to the engine.
    fn submit(&self, prepared: Prepared) -> Result<Submitted, Refusal> {
        let Prepared {
            api,
            prompts,
            settings,
            ..
        } = prepared;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let max_tokens = self.max_tokens(api, longest, settings.max_tokens)?;
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let head = Head {
            api,
            id: match api {
                Api::Completions => format!("cmpl-{:016x}", clock::random()),
                Api::Chat => format!("chatcmpl-{:016x}", clock::random()),
            },
            created: clock::now(),
            model: prepared.model,
            fingerprint: Arc::clone(&self.fingerprint),
        };
        let shape = (prompts.len(), settings.n);
        let tokenizer = Arc::clone(&self.tokenizer);
        let mut reply = Reply::new(head, tokenizer, shape, prompt_tokens, settings.logprobs);
        let prompt_logprobs = prepared.echoes.is_some() && settings.logprobs.is_some();
        if let Some(texts) = prepared.echoes {
            let echo = |(text, ids): (String, &Vec<u32>)| Echo {
                text,
                tokens: prompt_logprobs
                    .then(|| unlikely(ids[0]))
                    .into_iter()
                    .collect(),
            };
            reply = reply.with_echoes(texts.into_iter().zip(&prompts).map(echo).collect());
        }
        if settings.include_usage {
            reply = reply.with_usage();
        }
        // One that can be sent back as a number of JSON.
        let seed = settings.seed.unwrap_or_else(|| clock::random() >> 11);
        let sampling = Sampling {
            seed,
            ..settings.sampling
        };
        let receipt = prepared.receipt.then(|| -> Result<_, Refusal> {
            let mut receipt = self.receipt(prepared.patch.as_ref())?;
            receipt.max_tokens = max_tokens;
            receipt.stop_texts.clone_from(&settings.stop);
            Ok(receipt)
        });
        let receipt = receipt.transpose()?;
        let (sender, events) = unbounded_channel();
        let job = Job {
            prompts,
            n: settings.n,
            max_tokens,
            sampling,
            stop: settings.stop,
            logprobs: settings.logprobs,
            prompt_logprobs,
            receipt,
            overlay: prepared.patch.map(|patch| patch.overlay),
            events: sender,
            arrived: prepared.arrived,
            _places: prepared.places,
        };
        self.jobs.send(job).map_err(|_| Refusal::shutting_down())?;
        Ok(Submitted {
            reply,
            events,
            seed,
        })
    }

    /// What the receipts of a model and a patch have in common.
    fn receipt(&self, patch: Option<&Loaded>) -> Result<Receipt, Refusal> {
        let mut known = self.receipt.lock().unwrap_or_else(PoisonError::into_inner);
        let receipt = match &*known {
            Some(receipt) => receipt.clone(),
            // All weights are read, the first time.
            None => {
                let (nothing, sampling) = ((Vec::new(), Vec::new()), Sampling::default());
                let new = || Receipt::new(&self.model, self.dtype, nothing, sampling, 0);
                known.insert(alone(new)?).clone()
            }
        };
        Ok(match patch {
            Some(patch) => receipt.under(patch.used.clone()),
            None => receipt,
        })
    }

    /// How many tokens an answer may have after a prompt of `prompt` tokens. The last one is written and not taken in.
    fn max_tokens(&self, api: Api, prompt: usize, asked: Option<usize>) -> Result<usize, Refusal> {
        let left = (self.room + 1).saturating_sub(prompt);
        let most = asked.unwrap_or(left.min(self.options.max_tokens));
        if prompt <= self.room && most <= left {
            return Ok(most);
        }
        let param = match api {
            Api::Completions => "prompt",
            Api::Chat => "messages",
        };
        let (room, most) = (self.room, most.max(1));
        Err(Refusal::too_long(
            param,
            format!(
                "{room} tokens is the most that prompt and answer may have; the prompt has {prompt}, and {most} were asked \
                 for: shorten the prompt or ask for less"
            ),
        ))
    }
}

/// Does on one thread what would take those of others from them.
pub(super) fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
        Ok(pool) => pool.install(work),
        Err(_) => work(),
    }
}

/// The first token of a prompt, of which no logits say how likely it is.
fn unlikely(id: u32) -> TokenLog {
    TokenLog {
        id,
        log_probability: None,
        likeliest: Vec::new(),
    }
}

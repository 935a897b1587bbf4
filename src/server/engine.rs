//! The thread that computes: requests wait in line for the batch, go through it together, and hear of every token.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use rayon::prelude::*;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use super::answer::{Event, Failure};
use super::metrics::Metrics;
use super::writer::{self, Next, Writer};
use crate::checkpoint::Tokenizer;
use crate::model::batch::{Batch, BatchOptions, Entry, Said, SequenceId};
use crate::model::generate::{Sampler, Sampling};
use crate::model::{Error, Model};
use crate::receipt::Receipt;
use crate::tensor::Element;

/// A request that was checked: prompts, and how each is answered.
pub(super) struct Job {
    /// The token ids of the prompts.
    pub(super) prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub(super) n: usize,
    /// Tokens of an answer at most.
    pub(super) max_tokens: usize,
    /// How the answers are drawn; those to a prompt use a stream of the seed each.
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    pub(super) logprobs: Option<usize>,
    /// Whether the log-probabilities of the prompts are wanted too.
    pub(super) prompt_logprobs: bool,
    /// An [`Overlay`](crate::model::Overlay) of the compute type.
    pub(super) overlay: Option<Arc<dyn Any + Send + Sync>>,
    /// What the receipts of its answers have in common, where they are wanted.
    pub(super) receipt: Option<Receipt>,
    /// Who is told. What nobody has fetched waits there, which is bounded by the length of the answer: a slow client is not to
    /// hold up others.
    pub(super) events: UnboundedSender<Event>,
    pub(super) arrived: Instant,
    /// Given back when all of the job is done, or dropped.
    pub(super) _places: OwnedSemaphorePermit,
}

impl Job {
    /// Tells the client; whether there still is one.
    fn tell(&self, event: Event) -> bool {
        self.events.send(event).is_ok()
    }

    fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }
}

/// Some of a job's answers to one of its prompts, for which the prompt is taken in once.
#[derive(Clone)]
struct Answers {
    job: Arc<Job>,
    prompt: usize,
    /// Which of the prompt's.
    which: Range<usize>,
}

/// A sequence in the batch.
enum Running<'t> {
    /// It takes in the prompt.
    Reading(Answers),
    Writing(Box<Answer<'t>>),
}

impl Running<'_> {
    fn job(&self) -> &Job {
        match self {
            Self::Reading(answers) => &answers.job,
            Self::Writing(answer) => &answer.job,
        }
    }
}

/// An answer that is being written.
struct Answer<'t> {
    job: Arc<Job>,
    /// Which of all the job's.
    index: usize,
    writer: Writer<'t>,
    /// Tokens of its prompt that were not computed again.
    cached: usize,
}

impl Answer<'_> {
    /// Writes a token and says so. Gives the token that the model is to take in, or `None` at the end.
    fn write<E: Element>(&mut self, logits: &[E]) -> Option<u32> {
        let answer = self.index;
        let written = match self.writer.write(logits) {
            Ok(written) => written,
            Err(error) => {
                let failure = Failure::Error(error.to_string());
                self.job.tell(Event::Failed(failure));
                return None;
            }
        };
        let (text, tokens) = (written.text, written.tokens);
        if !text.is_empty() || !tokens.is_empty() {
            self.job.tell(Event::Wrote {
                answer,
                text,
                tokens,
            });
        }
        match written.next {
            Next::Take(token) => Some(token),
            Next::End(end) => {
                self.job.tell(match self.writer.receipt(end) {
                    Ok(receipt) => Event::Ended {
                        answer,
                        finish: end.finish(),
                        written: self.writer.written(),
                        cached: self.cached,
                        receipt: receipt.map(Box::new),
                    },
                    Err(error) => Event::Failed(Failure::Error(error.to_string())),
                });
                None
            }
        }
    }
}

/// What an answer is written by next.
struct Turn<'m, 's, E> {
    id: SequenceId,
    answer: Box<Answer<'m>>,
    logits: &'s [E],
}

/// What computes.
pub(super) struct Engine<'m, E: Element> {
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    batch: Batch<'m, E>,
    /// How many may run at once.
    sequences: usize,
    waiting: VecDeque<Answers>,
    running: BTreeMap<SequenceId, Running<'m>>,
    metrics: &'m Metrics,
}

impl<'m, E: Element> Engine<'m, E> {
    pub(super) fn new(
        model: &'m Model,
        tokenizer: &'m Tokenizer,
        sequences: usize,
        options: BatchOptions,
        metrics: &'m Metrics,
    ) -> Self {
        Self {
            model,
            tokenizer,
            batch: Batch::new(model, options),
            sequences,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            metrics,
        }
    }

    /// Works until nobody can send jobs any more and all are done, or until `abort` is set.
    ///
    /// # Errors
    ///
    /// That of a device, after which nothing can go on.
    pub(super) fn run(mut self, jobs: &Receiver<Job>, abort: &AtomicBool) -> Result<(), Error> {
        loop {
            self.observe();
            if self.running.is_empty() && self.waiting.is_empty() {
                match jobs.recv() {
                    Ok(job) => self.enqueue(job),
                    Err(_) => return Ok(()),
                }
            }
            jobs.try_iter().for_each(|job| self.enqueue(job));
            if abort.load(Ordering::Relaxed) {
                self.fail_all(&Failure::ShuttingDown);
                continue;
            }
            self.drop_abandoned();
            self.admit();
            if let Err(error) = self.step() {
                self.fail_all(&Failure::Error(error.to_string()));
                return Err(error);
            }
        }
    }

    fn enqueue(&mut self, job: Job) {
        let job = Arc::new(job);
        let prompts = (0..job.prompts.len()).map(|prompt| Answers {
            job: Arc::clone(&job),
            prompt,
            which: 0..job.n,
        });
        self.waiting.extend(prompts);
    }

    /// Ends what nobody waits for any more.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|answers| !answers.job.is_abandoned());
        let gone = self
            .running
            .iter()
            .filter(|(_, running)| running.job().is_abandoned());
        let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
        for id in gone {
            self.running.remove(&id);
            self.batch.leave(id);
            self.metrics.cancelled.add(1);
        }
    }

    fn fail_all(&mut self, failure: &Failure) {
        let running = std::mem::take(&mut self.running);
        for (id, running) in running {
            running.job().tell(Event::Failed(failure.clone()));
            self.batch.leave(id);
        }
        for answers in self.waiting.drain(..) {
            answers.job.tell(Event::Failed(failure.clone()));
        }
    }

    /// Lets those in who wait, first come first served, as long as there is room.
    fn admit(&mut self) {
        while self.running.len() < self.sequences {
            let Some(answers) = self.waiting.pop_front() else {
                return;
            };
            let job = &answers.job;
            let overlay = job
                .overlay
                .clone()
                .and_then(|overlay| overlay.downcast().ok());
            let entry = Entry {
                overlay,
                every_logits: job.prompt_logprobs && answers.which.start == 0,
                ..Entry::new(
                    job.prompts[answers.prompt].clone(),
                    job.max_tokens.saturating_sub(1),
                )
            };
            match self.batch.join(entry) {
                Ok(id) => {
                    self.running.insert(id, Running::Reading(answers));
                }
                Err(Error::BatchFull { .. }) => return self.waiting.push_front(answers),
                Err(error) => {
                    job.tell(Event::Failed(Failure::Error(error.to_string())));
                }
            }
        }
    }

    fn observe(&self) {
        let memory = self.batch.memory();
        self.metrics.running.set(self.running.len());
        self.metrics.waiting.set(self.waiting.len());
        self.metrics.cache_bytes.set(memory.reserved);
        self.metrics.prefix_bytes.set(memory.prefixes);
    }

    /// A step of the batch, and what its sequences write.
    fn step(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let step = self.batch.step()?;
        for (id, error) in &step.failed {
            if let Some(running) = self.running.remove(id) {
                let failure = Failure::Error(error.to_string());
                running.job().tell(Event::Failed(failure));
            }
        }
        let said: Vec<Said<'_, E>> = step.said().collect();
        let mut turns = Vec::new();
        for said in said.chunk_by(|a, b| a.id == b.id) {
            self.hear(said, &mut turns);
        }
        // Drawing from a large vocabulary takes milliseconds.
        let written = turns
            .par_iter_mut()
            .map(|turn| turn.answer.write(turn.logits));
        let written: Vec<_> = written.collect();
        for (turn, token) in turns.into_iter().zip(written) {
            self.go_on(turn.id, turn.answer, token);
        }
        self.metrics.steps.observe(started.elapsed());
        Ok(())
    }

    /// What the model said to a sequence, at the end of which it may write.
    fn hear<'s>(&mut self, said: &[Said<'s, E>], turns: &mut Vec<Turn<'m, 's, E>>) {
        let [.., last] = said else { return };
        match self.running.remove(&last.id) {
            Some(Running::Writing(answer)) => turns.push(Turn {
                id: last.id,
                answer,
                logits: last.logits,
            }),
            Some(Running::Reading(answers)) => {
                tell_prompt(&answers, said);
                if last.position + 1 == answers.job.prompts[answers.prompt].len() {
                    self.begin(answers, last, turns);
                } else {
                    self.running.insert(last.id, Running::Reading(answers));
                }
            }
            None => {}
        }
    }

    /// Begins to write answers to a prompt, whose last logits are `said`. The first has the sequence, the others forks of it.
    fn begin<'s>(
        &mut self,
        answers: Answers,
        said: &Said<'s, E>,
        turns: &mut Vec<Turn<'m, 's, E>>,
    ) {
        let Answers { job, prompt, which } = answers;
        let cached = self.batch.cached_tokens(said.id);
        self.metrics.first_token.observe(job.arrived.elapsed());
        self.metrics.prompt_tokens.add(job.prompts[prompt].len());
        self.metrics.cached_tokens.add(cached);
        for n in which.clone() {
            let id = if n == which.start {
                Some(said.id)
            } else if self.batch.len() < self.sequences {
                self.batch.fork(said.id).ok()
            } else {
                None
            };
            let Some(id) = id else {
                // Those that find no room take the prompt in once more when there is.
                let which = n..which.end;
                return self.waiting.push_front(Answers { job, prompt, which });
            };
            let answer = Box::new(Answer {
                writer: self.writer(&job, prompt, n),
                index: prompt * job.n + n,
                job: Arc::clone(&job),
                cached,
            });
            turns.push(Turn {
                id,
                answer,
                logits: said.logits,
            });
        }
    }

    /// The writer of the answer `n` to a prompt.
    fn writer(&self, job: &Job, prompt: usize, n: usize) -> Writer<'m> {
        let sampling = Sampling {
            stream: n as u64,
            ..job.sampling.clone()
        };
        let receipt = job.receipt.clone().map(|mut receipt| {
            receipt.prompt.clone_from(&job.prompts[prompt]);
            receipt.positions = (0..receipt.prompt.len()).collect();
            receipt.sampling.clone_from(&sampling);
            receipt
        });
        Writer::new(
            self.tokenizer,
            self.model.checkpoint().eos_token_ids(),
            Sampler::new(sampling),
            job.stop.clone(),
            job.max_tokens,
            job.logprobs,
        )
        .with_receipt(receipt)
    }

    /// Goes on with a token that was written, or ends the sequence.
    fn go_on(&mut self, id: SequenceId, answer: Box<Answer<'m>>, token: Option<u32>) {
        self.metrics.tokens.add(usize::from(token.is_some()));
        let pushed = token.map(|token| self.batch.push(id, token));
        match pushed {
            Some(Ok(())) => {
                self.running.insert(id, Running::Writing(answer));
                return;
            }
            Some(Err(error)) => {
                let failure = Failure::Error(error.to_string());
                answer.job.tell(Event::Failed(failure));
            }
            None => self.metrics.answers.add(1),
        }
        self.batch.leave(id);
    }
}

/// Says how likely the tokens of a prompt were, where that is wanted.
fn tell_prompt<E: Element>(answers: &Answers, said: &[Said<'_, E>]) {
    let (job, prompt) = (&answers.job, answers.prompt);
    if !job.prompt_logprobs {
        return;
    }
    for said in said {
        if let Some(id) = job.prompts[prompt].get(said.position + 1) {
            let token = writer::log(said.logits, *id, job.logprobs.unwrap_or(0));
            job.tell(Event::Read { prompt, token });
        }
    }
}

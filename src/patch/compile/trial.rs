//! How near a model without the prompt comes to the model with it, on samples.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::lesson::{Lesson, answers_of, taken};
use super::passes::Batch;
use crate::kernels::{Level, softmax};
use crate::model::generate::greedy;
use crate::model::{ForwardRun, Model, Overlay, Result, consecutive};
use crate::tensor::{Element, Matrix};

/// Rows that go through the layers together at most, where a sequence alone does not have more.
const ROWS: usize = 512;

/// Tokens whose logits are held against each other at once: enough that the head, which is most of a small model, is seldom read.
const LOGITS: usize = 64;

/// An answer as the model without the prompt would write it, token by token after the same beginning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// For each token of the answer, whether the same token is the likeliest.
    pub same: Vec<bool>,
    /// Σ KL(with the prompt ‖ without) over its tokens, in nats.
    pub kl: f64,
    /// −Σ log₂ p of its tokens, with the prompt and without.
    pub bits: [f64; 2],
}

impl Trial {
    /// Whether the whole answer is the same.
    pub fn exact(&self) -> bool {
        self.same.iter().all(|same| *same)
    }

    /// Every lesson's answer, tried without the prompt and under `overlay`, where there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`](crate::Session::forward).
    pub fn all<E: Element>(
        model: &Model,
        overlay: Option<&Overlay<E>>,
        lessons: &[&Lesson<E>],
    ) -> Result<Vec<Self>> {
        let states = states(model, overlay, lessons)?;
        Ok(Self::on(model, lessons, vec![states])?.remove(0))
    }

    /// Every lesson's answer in each of some models without the prompt: `states` has the last block's output that each answer follows
    /// on there.
    pub(super) fn on<E: Element>(
        model: &Model,
        lessons: &[&Lesson<E>],
        states: Vec<Vec<Matrix<E>>>,
    ) -> Result<Vec<Vec<Self>>> {
        let stack = |states| Matrix::stack(model.config().hidden_size, states);
        let want = stack(lessons.iter().map(|lesson| lesson.wanted()).collect());
        let states: Vec<_> = states.into_iter().map(stack).collect();
        let answers = lessons.iter().flat_map(|lesson| lesson.answer());
        let answers: Vec<u32> = answers.copied().collect();
        let mut tokens = vec![Vec::new(); states.len()];
        let mut run = ForwardRun::new(model, None, None);
        for first in (0..answers.len()).step_by(LOGITS) {
            let rows = first..answers.len().min(first + LOGITS);
            let want = model.logits(&mut run, &want.slice_rows(rows.clone()))?;
            for (states, tokens) in states.iter().zip(&mut tokens) {
                let got = model.logits(&mut run, &states.slice_rows(rows.clone()))?;
                let each = rows
                    .clone()
                    .into_par_iter()
                    .map(|i| divergence(want.row(i - first), got.row(i - first), answers[i]));
                tokens.par_extend(each);
            }
        }
        let trials = tokens.iter().map(|tokens| {
            let each = consecutive(lessons.iter().map(|lesson| lesson.answer().len()));
            each.map(|rows| Self::sum(&tokens[rows])).collect()
        });
        Ok(trials.collect())
    }

    /// The tokens of an answer.
    fn sum(tokens: &[(bool, f64, [f64; 2])]) -> Self {
        let mut trial = Self::default();
        for (same, kl, bits) in tokens {
            trial.same.push(*same);
            trial.kl += kl;
            trial.bits[0] += bits[0];
            trial.bits[1] += bits[1];
        }
        trial
    }
}

/// Of each lesson the last block's output that its answer follows on, without the prompt and under `overlay`, where there is one.
pub(super) fn states<E: Element>(
    model: &Model,
    overlay: Option<&Overlay<E>>,
    lessons: &[&Lesson<E>],
) -> Result<Vec<Matrix<E>>> {
    let mut states = Vec::with_capacity(lessons.len());
    let mut left = lessons;
    while !left.is_empty() {
        let mut rows = 0;
        let more = left.iter().take_while(|lesson| {
            rows += lesson.sample.taken().len();
            rows <= ROWS
        });
        let (now, later) = left.split_at(more.count().max(1));
        let mut batch = Batch::bare(model, now).with_overlay(overlay);
        states.extend(answers_of(now, &batch.forward(taken(now), None)?));
        left = later;
    }
    Ok(states)
}

/// Whether both have the same likeliest token, KL(want ‖ got) in nats, and −log₂ of what each gives `token`.
fn divergence<E: Element>(want: &[E], got: &[E], token: u32) -> (bool, f64, [f64; 2]) {
    let wide = |logits: &[E]| logits.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    let (want_logits, got_logits) = (wide(want), wide(got));
    let normalised = |logits: &[f64]| {
        let mut p = logits.to_vec();
        softmax(Level::best(), &mut p);
        let top = greedy(logits) as usize;
        // log Σ e^x, from the likeliest, whose share is exact.
        let total = logits[top] - libm::log(p[top]);
        (p, total)
    };
    let ((p, of_want), (_, of_got)) = (normalised(&want_logits), normalised(&got_logits));
    let mut kl = [0.0; 16];
    for (i, p) in p.iter().enumerate() {
        if *p > 0.0 {
            kl[i % 16] += p * ((want_logits[i] - of_want) - (got_logits[i] - of_got));
        }
    }
    let token = token as usize;
    let bits = |logits: &[f64], total: f64| (total - logits[token]) * std::f64::consts::LOG2_E;
    (
        greedy(want) == greedy(got),
        kl.iter().sum::<f64>().max(0.0),
        [bits(&want_logits, of_want), bits(&got_logits, of_got)],
    )
}

/// Trials taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many there are.
    pub samples: usize,
    /// The share of whole answers that are the same.
    pub exact: f64,
    /// The share of first tokens that are.
    pub first: f64,
    /// The share of all tokens that are, each after the same beginning.
    pub tokens: f64,
    /// KL a token, in nats.
    pub kl: f64,
    /// Bits a token, with the prompt and without.
    pub bits: [f64; 2],
}

impl Summary {
    /// Of some trials.
    pub fn new<'t>(trials: impl IntoIterator<Item = &'t Trial>) -> Self {
        let trials: Vec<_> = trials
            .into_iter()
            .filter(|trial| !trial.same.is_empty())
            .collect();
        let samples = trials.len();
        let tokens: usize = trials.iter().map(|trial| trial.same.len()).sum();
        let share = |count: usize, all: usize| count as f64 / all.max(1) as f64;
        let a_token = |f: &dyn Fn(&Trial) -> f64| {
            trials.iter().map(|t| f(t)).sum::<f64>() / tokens.max(1) as f64
        };
        let same = trials
            .iter()
            .flat_map(|trial| &trial.same)
            .filter(|same| **same);
        Self {
            samples,
            exact: share(trials.iter().filter(|trial| trial.exact()).count(), samples),
            first: share(trials.iter().filter(|trial| trial.same[0]).count(), samples),
            tokens: share(same.count(), tokens),
            kl: a_token(&|trial| trial.kl),
            bits: [
                a_token(&|trial| trial.bits[0]),
                a_token(&|trial| trial.bits[1]),
            ],
        }
    }
}

//! A prompt compiled for questions that nobody has asked yet: one plain LoRA, fitted by least squares on samples.
//!
//! [`span`](super::span) is exact for tokens that are known. The same change of W_down, fitted over sequences like those to come,
//! serves tokens that are not. Layer by layer, on the states that the layers before it really give:
//!
//! ```text
//! t  = T − v                                       T: the layer's output with the prompt; the last layer: t = c T − v
//! δ  = γ R · m ⊙ (t − o) ⊘ (m² + η median(m²))     γ of one damped Gauss–Newton step through the norm, R = rms(W h), o = m ⊙ W h / R
//! ω  = w · (median(R) / R)²                        w = 1, and less for a text that must not change
//! ΔW = (Σ ω δ hᵀ)(Σ ω h hᵀ + λI)⁻¹                 in f64, with ΔW h = 0 for the token that begins every sequence
//! ```
//!
//! cut to a rank behind m. The last layer has γ = 1. Without a norm behind the branch δ = γ (t − W h), and with experts each has its
//! share of δ (Lemma 11).
//! `docs/compile.md` says how far this carries.

mod cholesky;
mod eigen;
mod estimate;
mod fit;
mod kept;
mod lesson;
mod passes;
mod prompt;
mod records;
mod ridge;
mod sample;
mod states;
mod step;
mod survey;
mod trial;
mod writing;

pub use estimate::{Estimate, FOLDS};
pub use kept::Kept;
pub use lesson::Lesson;
pub use prompt::{ANCHOR_TOKENS, Asked, OWN_TOKENS, Prompt};
pub use sample::{Role, Sample};
pub use states::States;
pub use survey::{Answered, Point, Survey};
pub use trial::{Summary, Trial};
pub use writing::{Until, answers, texts};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Error, Patch, Result};
use crate::message::hex;
use crate::model::Model;
use crate::tensor::Element;

/// How a prompt is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The first layer that is changed.
    pub first: usize,
    /// λ in units of ‖S‖²_F / tr S, S = Σ ω h hᵀ.
    pub lambda: f64,
    /// γ, how much of the way to its target each layer goes; the last goes all of it. What is left is for the layers after it, whose
    /// inputs tell more, and other texts move less.
    #[serde(default = "all_the_way")]
    pub gain: f64,
    /// The rank of each ΔW; 0 is all.
    pub rank: usize,
    /// w of a text that must not change, and of a query of another kind.
    pub anchor_weight: f64,
    /// How δ is carried through a norm behind the branch.
    #[serde(default)]
    pub through: Through,
}

/// How the step of a branch is carried through the norm behind it. All but [`Damped`](Self::Damped) is there to be compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Through {
    /// One Gauss–Newton step with η = 0.01.
    #[default]
    Damped,
    /// The same without damping: t − o divided by m / R.
    Diagonal,
    /// Not at all: δ = t − W h and ω = w, as for blocks that have no such norm.
    Nothing,
}

const fn all_the_way() -> f64 {
    1.0
}

impl Recipe {
    /// Refuses what cannot be done with a model.
    ///
    /// # Errors
    ///
    /// [`Error::Recipe`].
    pub fn check(&self, model: &Model) -> Result<()> {
        let (layers, hidden) = (model.layers().len(), model.config().hidden_size);
        let refuse = |reason: String| Err(Error::Recipe { reason });
        if self.first >= layers {
            let last = layers - 1;
            return refuse(format!(
                "its first layer is {}, and the model's last is {last}",
                self.first
            ));
        }
        if self.rank > hidden {
            return refuse(format!(
                "its rank is {}, and there are {hidden} at most",
                self.rank
            ));
        }
        for (name, x) in [("λ", self.lambda), ("anchors' weight", self.anchor_weight)] {
            if !x.is_finite() || x <= 0.0 {
                return refuse(format!("its {name} is {x}, and must be above 0"));
            }
        }
        let gain = self.gain;
        if !(gain > 0.0 && gain <= 1.0) {
            return refuse(format!(
                "its gain is {gain}, and must be above 0 and at most 1"
            ));
        }
        Ok(())
    }

    /// The usual recipe for a model: [`choices`](Self::choices)' first.
    pub fn new(model: &Model) -> Self {
        let [usual, _] = Self::choices(model);
        usual
    }

    /// The usual recipe for a model, by whether a norm behind the branch holds what a change does to what it did before, and
    /// another one, which serves some prompts better: see [`Estimate::best`].
    pub fn choices(model: &Model) -> [Self; 2] {
        let layers = model.layers().len();
        let post_norm = model
            .layers()
            .iter()
            .all(|block| block.outer.post_norm().is_some());
        let (usual, other) = match post_norm {
            true => ((layers * 2 / 7, 1e-3, 0.9), (layers * 2 / 9, 3e-4, 0.8)),
            false => ((layers / 3, 1e-2, 0.7), (layers / 3, 3e-3, 0.85)),
        };
        [usual, other].map(|(first, lambda, gain)| Self {
            first,
            lambda,
            gain,
            rank: 32,
            anchor_weight: 0.1,
            through: Through::default(),
        })
    }
}

/// The patch that is fitted to `lessons`; `on_layer` is called after each layer that is changed.
///
/// # Errors
///
/// [`Error::Precondition`] where a number is not finite, and those of
/// [`Session::forward`](crate::Session::forward).
pub fn compile<E: Element>(
    model: &Model,
    lessons: &[&Lesson<E>],
    recipe: &Recipe,
    on_layer: impl FnMut(),
) -> Result<Patch> {
    let start = fit::Start::new(model, lessons.to_vec(), recipe)?;
    let (patch, _) = start.fit(&vec![true; lessons.len()], recipe.rank, on_layer)?;
    Ok(patch)
}

/// What a compiled patch says of itself: with the model and its weights, everything it takes to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compiled {
    /// The prompt's tokens, as the model sees it before a query.
    pub context: Vec<u32>,
    /// Whether prompt and queries were in the model's chat template.
    #[serde(default)]
    pub chat: bool,
    /// How it was compiled.
    pub recipe: Recipe,
    /// Fixes what the model drew.
    pub seed: u64,
    /// Queries, in first turns, and texts that must not change.
    pub samples: [usize; 2],
    /// Queries that the model made up beside them.
    #[serde(default)]
    pub own: usize,
    /// Queries of other kinds.
    #[serde(default)]
    pub away: usize,
    /// SHA-256 of all tokens of all samples: see [`samples_hash`].
    pub samples_hash: String,
    /// What it will be worth, where that was tried.
    pub estimate: Option<Estimate>,
}

impl Compiled {
    /// How much of what it was compiled from, for a person.
    pub fn made_from(&self) -> String {
        let [queries, texts] = self.samples;
        let counts = [
            (queries, "query", "queries"),
            (self.own, "query of its own", "queries of its own"),
            (texts, "other text", "other texts"),
            (self.away, "query of other kinds", "queries of other kinds"),
        ];
        let counted = counts.iter().filter(|(count, ..)| *count > 0);
        let counted = counted.map(|(count, one, many)| match count {
            1 => format!("1 {one}"),
            _ => format!("{count} {many}"),
        });
        let counted: Vec<_> = counted.collect();
        match &counted[..] {
            [] => String::new(),
            [only] => only.clone(),
            [before @ .., last] => format!("{} and {last}", before.join(", ")),
        }
    }
}

/// SHA-256, in hexadecimal, of some samples: of each the number of tokens with the prompt and without, of the answer's and of the last
/// turn's, and its [`Role`]'s from 0 on, then the tokens; all as u32, little-endian.
pub fn samples_hash<'s>(samples: impl IntoIterator<Item = &'s Sample>) -> String {
    let mut hash = Sha256::new();
    for sample in samples {
        let (with, without) = (sample.prompted.len(), sample.bare.len());
        let counts = [with, without, sample.answer, sample.turn];
        let counts = counts.map(|count| count as u32);
        let head = counts.into_iter().chain([sample.role as u32]);
        for number in head.chain(sample.prompted.iter().chain(&sample.bare).copied()) {
            hash.update(number.to_le_bytes());
        }
    }
    hex(&hash.finalize())
}

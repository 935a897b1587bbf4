//! Known bugs: a model that is wrong in one named way.
//!
//! Each is one that an engine had ([docs/bugs.md](https://docs.rs/crate/context-patch/latest/source/docs/bugs.md) says
//! which). A recording of such a model shows whether a comparison would have found the bug.

use std::fmt;
use std::str::FromStr;

use super::error::{Error, Result};
use super::rope::rotation;
use super::{Embedding, Model, Norm};
use crate::checkpoint::form::{NormKind, RopePairing};
use crate::checkpoint::{Config, Rope, RopeScaling};
use crate::kernels::activation::Activation;
use crate::tensor::Dtype;

/// Soft-capping in Gemma 2: of attention scores, and of the final logits.
const SCORES_CAP: f64 = 50.0;
const LOGITS_CAP: f64 = 30.0;

/// A known bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KnownBug {
    /// Rows of the embedding are not multiplied by √hidden.
    EmbeddingUnscaled,
    /// √hidden is rounded to bf16 where the compute type is f32, or to f32 where it is bf16.
    EmbeddingScaleType,
    /// The token that begins the sequence is left out.
    MissingBos,
    /// Norms scale by w and not by 1 + w.
    NormWeight,
    /// Norms round n(u) before they scale it.
    NormRounded,
    /// q and k are normalised after RoPE.
    NormAfterRope,
    /// RoPE rotates element 2i of q and k with 2i + 1, not i with i + head_dim/2.
    RopeInterleaved,
    /// Full layers use the θ of sliding ones.
    RopeLocalTheta,
    /// Positions are not divided by the factor of `rope_scaling`.
    RopeNoFactor,
    /// Scores are scaled by head_dim^−½, not by query_pre_attn_scalar^−½.
    ScaleHeadDim,
    /// Sliding layers see one token less.
    WindowMinus1,
    /// Sliding layers see one token more.
    WindowPlus1,
    /// Scores and logits are soft-capped, as in Gemma 2.
    SoftCapping,
    /// SiLU in the place of GeLU.
    Silu,
    /// GeLU with erf in the place of its tanh form.
    GeluErf,
    /// GeLU from a table in f16.
    GeluF16,
}

impl KnownBug {
    /// All of them, in the order in which a pass meets them.
    pub const ALL: [Self; 16] = [
        Self::EmbeddingUnscaled,
        Self::EmbeddingScaleType,
        Self::MissingBos,
        Self::NormWeight,
        Self::NormRounded,
        Self::NormAfterRope,
        Self::RopeInterleaved,
        Self::RopeLocalTheta,
        Self::RopeNoFactor,
        Self::ScaleHeadDim,
        Self::WindowMinus1,
        Self::WindowPlus1,
        Self::SoftCapping,
        Self::Silu,
        Self::GeluErf,
        Self::GeluF16,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EmbeddingUnscaled => "embedding-unscaled",
            Self::EmbeddingScaleType => "embedding-scale-type",
            Self::MissingBos => "missing-bos",
            Self::NormWeight => "norm-weight",
            Self::NormRounded => "norm-rounded",
            Self::NormAfterRope => "norm-after-rope",
            Self::RopeInterleaved => "rope-interleaved",
            Self::RopeLocalTheta => "rope-local-theta",
            Self::RopeNoFactor => "rope-no-factor",
            Self::ScaleHeadDim => "scale-head-dim",
            Self::WindowMinus1 => "window-minus-1",
            Self::WindowPlus1 => "window-plus-1",
            Self::SoftCapping => "soft-capping",
            Self::Silu => "silu",
            Self::GeluErf => "gelu-erf",
            Self::GeluF16 => "gelu-f16",
        }
    }

    /// What is wrong, in a few words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::EmbeddingUnscaled => "the embedding is not multiplied by √hidden",
            Self::EmbeddingScaleType => {
                "√hidden, which scales the embedding, is rounded to another type"
            }
            Self::MissingBos => "the token that begins the sequence is missing",
            Self::NormWeight => "norms scale by w, not by 1 + w",
            Self::NormRounded => "norms round before they scale",
            Self::NormAfterRope => "q and k are normalised after RoPE, not before",
            Self::RopeInterleaved => "RoPE turns neighbours, not halves",
            Self::RopeLocalTheta => "full layers turn with the θ of sliding ones",
            Self::RopeNoFactor => "RoPE leaves out the factor of rope_scaling",
            Self::ScaleHeadDim => "scores are scaled by head_dim, not by query_pre_attn_scalar",
            Self::WindowMinus1 => "sliding layers see one token too few",
            Self::WindowPlus1 => "sliding layers see one token too many",
            Self::SoftCapping => "scores and logits are soft-capped, as in Gemma 2",
            Self::Silu => "SiLU in the place of GeLU",
            Self::GeluErf => "GeLU by erf in the place of its tanh form",
            Self::GeluF16 => "GeLU from a table in f16",
        }
    }

    /// Why the bug would not show in a pass of `tokens` tokens in compute type `dtype`, or `None` where it can.
    pub fn without_effect(self, config: &Config, dtype: Dtype, tokens: usize) -> Option<String> {
        let windows = config.blocks.iter().map(|block| block.attention.window);
        let smallest = windows.clone().flatten().min();
        let sliding = smallest.is_some();
        let window = smallest.unwrap_or(usize::MAX);
        let full = windows.clone().any(|window| window.is_none());
        let [local, global] = [true, false].map(|slides| rope_of(config, slides));
        let longer = |than: usize| {
            (tokens <= than).then(|| format!("give it more than {than} tokens, it has {tokens}"))
        };
        let but = |there: bool, why: &str| (!there).then(|| why.to_owned());
        match self {
            Self::EmbeddingUnscaled => but(config.hidden_size > 1, "√hidden is 1"),
            Self::EmbeddingScaleType => {
                let scale = |embedding: Embedding| embedding.factor(config.hidden_size, dtype);
                let same = scale(Embedding::default()) == scale(Embedding::OtherType);
                but(!same, "√hidden is a number of both types")
            }
            Self::NormRounded => but(dtype == Dtype::Bf16, "it takes --dtype bf16"),
            Self::RopeLocalTheta => but(full, "the model has no full layers")
                .or_else(|| {
                    but(
                        local.map(|rope| rope.theta) != global.map(|rope| rope.theta),
                        "both kinds of layers have one θ",
                    )
                })
                .or_else(|| longer(1)),
            Self::RopeNoFactor => but(full, "the model has no full layers")
                .or_else(|| {
                    but(
                        global.is_some_and(is_scaled),
                        "the model's config has no factor",
                    )
                })
                .or_else(|| longer(1)),
            Self::ScaleHeadDim => but(
                config.scaling(0) != head_dim_scaling(config),
                "query_pre_attn_scalar is head_dim in this model",
            ),
            Self::WindowMinus1 => but(sliding, "the model has no sliding layers")
                .or_else(|| but(window > 1, "the window is 1 token"))
                .or_else(|| longer(window - 1)),
            Self::WindowPlus1 => {
                but(sliding, "the model has no sliding layers").or_else(|| longer(window))
            }
            Self::RopeInterleaved => {
                but(config.head_dim > 2, "a head has one pair").or_else(|| longer(1))
            }
            Self::MissingBos | Self::NormAfterRope => longer(1),
            Self::GeluF16 => but(dtype != Dtype::Bf16, "it takes --dtype f32 or f64"),
            Self::NormWeight | Self::SoftCapping | Self::Silu | Self::GeluErf => None,
        }
    }

    /// Refuses the bug where it would not show.
    ///
    /// # Errors
    ///
    /// [`Error::NoEffect`].
    pub fn check(self, config: &Config, dtype: Dtype, tokens: usize) -> Result<()> {
        match self.without_effect(config, dtype, tokens) {
            None => Ok(()),
            Some(why) => Err(Error::NoEffect {
                bug: self.name(),
                why,
            }),
        }
    }

    /// The tokens that the wrong model takes in for `tokens`.
    pub fn tokens(self, tokens: &[u32]) -> &[u32] {
        match (self, tokens) {
            (Self::MissingBos, [_, rest @ ..]) => rest,
            _ => tokens,
        }
    }
}

impl Model {
    /// Puts a bug into the model; [`KnownBug::tokens`] has to be called besides.
    #[must_use]
    pub fn with_bug(mut self, bug: KnownBug) -> Self {
        match bug {
            KnownBug::EmbeddingUnscaled => self.embedding = Embedding::Unscaled,
            KnownBug::EmbeddingScaleType => self.embedding = Embedding::OtherType,
            KnownBug::NormWeight => self.change_norms(|unit_offset, rounded_first| {
                *unit_offset = !*unit_offset;
                *rounded_first = false;
            }),
            KnownBug::NormRounded => self.change_norms(|_, rounded_first| *rounded_first = true),
            KnownBug::SoftCapping => self.decoder.form.softcap = Some(LOGITS_CAP),
            _ => {}
        }
        let config = self.checkpoint.config();
        let local = rope_of(config, true);
        let scaling = head_dim_scaling(config);
        for block in &mut self.layers {
            let attention = &mut block.attention;
            let form = &mut attention.form;
            match bug {
                KnownBug::NormAfterRope => form.norm_after_rope = true,
                KnownBug::ScaleHeadDim => form.scaling = scaling,
                KnownBug::WindowMinus1 => {
                    form.window = form.window.map(|window| window.max(2) - 1);
                }
                KnownBug::WindowPlus1 => form.window = form.window.map(|window| window + 1),
                KnownBug::SoftCapping => form.softcap = Some(SCORES_CAP),
                KnownBug::Silu => block.inner.activation = Activation::Silu,
                KnownBug::GeluErf => block.inner.activation = Activation::Gelu,
                KnownBug::GeluF16 => block.inner.activation = Activation::GeluByF16,
                _ => {}
            }
            let Some(rope) = &mut form.rope else { continue };
            match (bug, local) {
                (KnownBug::RopeInterleaved, _) => rope.pairing = RopePairing::Interleaved,
                (KnownBug::RopeLocalTheta, Some(local)) => rope.rope.theta = local.theta,
                (KnownBug::RopeNoFactor, _) => rope.rope = Rope::linear(rope.rope.theta, 1.0),
                _ => continue,
            }
            attention.rotation = Some(rotation(rope));
        }
        self
    }

    /// Changes whether RMSNorms scale by 1 + w, and whether they round first.
    fn change_norms(&mut self, change: impl Fn(&mut bool, &mut bool)) {
        let blocks = self.layers.iter_mut().flat_map(|block| {
            let attention = &mut block.attention;
            let single = [
                &mut attention.norm,
                &mut attention.post_norm,
                &mut block.inner.norm,
                &mut block.outer.post_norm,
            ];
            let qk_norms = attention.qk_norms.iter_mut().flatten();
            single.into_iter().flatten().chain(qk_norms)
        });
        let all: Vec<&mut Norm> = blocks.chain([&mut self.decoder.norm]).collect();
        for norm in all {
            if let NormKind::Rms {
                unit_offset,
                rounded_first,
            } = &mut norm.form.kind
            {
                change(unit_offset, rounded_first);
            }
        }
    }
}

/// The rotation of the layers with a window, or without one.
fn rope_of(config: &Config, slides: bool) -> Option<Rope> {
    let mut blocks = config.blocks.iter().map(|block| &block.attention);
    let attention = blocks.find(|attention| attention.window.is_some() == slides)?;
    attention.rope.map(|form| form.rope)
}

fn is_scaled(rope: Rope) -> bool {
    rope.scaling != (RopeScaling::Linear { factor: 1.0 })
}

/// head_dim^−½.
fn head_dim_scaling(config: &Config) -> f64 {
    (config.head_dim as f64).sqrt().recip()
}

impl fmt::Display for KnownBug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KnownBug {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.into_iter().find(|bug| bug.name() == s);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no bug '{s}': use one of {names}")
        })
    }
}

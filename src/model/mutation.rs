//! Known bugs: a model that is wrong in one named way.
//!
//! Each is one that an engine had ([docs/bugs.md](https://docs.rs/crate/context-patch/latest/source/docs/bugs.md) says
//! which). A recording of such a model shows whether a comparison would have found the bug.

use std::fmt;
use std::str::FromStr;

use super::error::{Error, Result};
use super::{Embedding, Model, RopePairing, Scaling};
use crate::checkpoint::{Config, LayerKind};
use crate::kernels::Rotation;
use crate::kernels::activation::Activation;
use crate::tensor::Dtype;

/// Soft-capping in Gemma 2: of attention scores, and of the final logits.
const SCORES_CAP: f64 = 50.0;
const LOGITS_CAP: f64 = 30.0;

/// A known bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
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

impl Mutation {
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
        let window = config.sliding_window;
        let sliding = config.layer_types.contains(&LayerKind::Sliding);
        let full = config.layer_types.contains(&LayerKind::Full);
        let (local, global) = (config.rope_sliding, config.rope_full);
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
                        local.theta != global.theta,
                        "both kinds of layers have one θ",
                    )
                })
                .or_else(|| longer(1)),
            Self::RopeNoFactor => but(full, "the model has no full layers")
                .or_else(|| but(global.factor != 1.0, "the model's config has no factor"))
                .or_else(|| longer(1)),
            Self::ScaleHeadDim => but(
                config.query_pre_attn_scalar != config.head_dim as f64,
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
    /// Puts a bug into the model; [`Mutation::tokens`] has to be called besides.
    #[must_use]
    pub fn mutated(mut self, mutation: Mutation) -> Self {
        match mutation {
            Mutation::EmbeddingUnscaled => self.embedding = Embedding::Unscaled,
            Mutation::EmbeddingScaleType => self.embedding = Embedding::OtherType,
            Mutation::NormWeight => self.scale_norms(Scaling::Plain),
            Mutation::NormRounded => self.scale_norms(Scaling::Rounded),
            Mutation::SoftCapping => self.final_softcap = Some(LOGITS_CAP),
            _ => {}
        }
        let config = self.checkpoint.config();
        for (block, kind) in self.layers.iter_mut().zip(&config.layer_types) {
            let attention = &mut block.attention;
            let rope = config.rope(*kind);
            let rotation = |theta, factor| Rotation::new(config.head_dim, theta, factor);
            match mutation {
                Mutation::NormAfterRope => attention.norm_after_rope = true,
                Mutation::RopeInterleaved => attention.pairing = RopePairing::Interleaved,
                Mutation::RopeLocalTheta => {
                    attention.rotation = rotation(config.rope_sliding.theta, rope.factor);
                }
                Mutation::RopeNoFactor => attention.rotation = rotation(rope.theta, 1.0),
                Mutation::ScaleHeadDim => {
                    attention.scaling = (config.head_dim as f64).sqrt().recip()
                }
                Mutation::WindowMinus1 => {
                    attention.window = attention.window.map(|window| window.max(2) - 1);
                }
                Mutation::WindowPlus1 => {
                    attention.window = attention.window.map(|window| window + 1);
                }
                Mutation::SoftCapping => attention.softcap = Some(SCORES_CAP),
                Mutation::Silu => block.inner.activation = Activation::Silu,
                Mutation::GeluErf => block.inner.activation = Activation::Gelu,
                Mutation::GeluF16 => block.inner.activation = Activation::GeluByF16,
                _ => {}
            }
        }
        self
    }

    fn scale_norms(&mut self, scaling: Scaling) {
        self.norm.scaling = scaling;
        for block in &mut self.layers {
            let attention = &mut block.attention;
            for norm in [
                &mut attention.input_layernorm,
                &mut attention.q_norm,
                &mut attention.k_norm,
                &mut attention.post_attention_layernorm,
                &mut block.inner.pre_feedforward_layernorm,
                &mut block.outer.post_feedforward_layernorm,
            ] {
                norm.scaling = scaling;
            }
        }
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.into_iter().find(|mutation| mutation.name() == s);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no bug '{s}': use one of {names}")
        })
    }
}

//! Where a known bug would not show.

use super::KnownBug;
use crate::checkpoint::form::{
    AttentionForm, MapsForm, NormKind, ProjectionsForm, RopeForm, RopePairing, Sum,
};
use crate::checkpoint::{Config, Rope, RopeScaling, VisionConfig};
use crate::kernels::activation::Activation;
use crate::model::error::{Error, Result};
use crate::model::{Embedding, Inputs, Model};
use crate::tensor::Dtype;

impl KnownBug {
    /// Why the bug would not show in a pass of a model in compute type `dtype`, or `None` where it can.
    pub fn without_effect<'i>(
        self,
        model: &Model,
        dtype: Dtype,
        inputs: impl Into<Inputs<'i>>,
    ) -> Option<String> {
        let inputs = inputs.into();
        let vision = model.checkpoint().vision_config().ok();
        let pass = Pass {
            config: model.config(),
            vision: vision.filter(|_| !inputs.pixel_values.is_empty()),
            dtype,
            inputs,
        };
        let outcome = match self {
            Self::PixelsBgr | Self::PixelsClip | Self::ImagesScaled | Self::ImagesCausal => {
                pass.images(self)
            }
            Self::EmbeddingUnscaled
            | Self::EmbeddingScaleType
            | Self::MissingBos
            | Self::PositionsPlus1
            | Self::PositionsPlus2
            | Self::HeadTied => pass.around_blocks(self),
            Self::NormWeight
            | Self::NormRounded
            | Self::NormRoundedOnce
            | Self::NormEps
            | Self::BranchNormShared
            | Self::NormAfterRope => pass.norms(self),
            Self::QkPermuted | Self::QkvBiasMissing | Self::KeyBiasMissing | Self::QkvOrder => {
                pass.projections(self)
            }
            Self::RopeInterleaved
            | Self::RopeHalves
            | Self::RopeWholeHead
            | Self::RopeDefaultTheta
            | Self::RopeLocalTheta
            | Self::RopeNoFactor => pass.rope(self),
            Self::ScaleHeadDim
            | Self::ScaleHidden
            | Self::WindowMinus1
            | Self::WindowPlus1
            | Self::WindowMissing
            | Self::WindowEverywhere
            | Self::SoftCapping
            | Self::SoftCappingMissing => pass.scores(self),
            Self::Silu
            | Self::GeluErf
            | Self::GeluTanh
            | Self::GeluF16
            | Self::GatesUnnormalised => pass.branch(self),
        };
        outcome.err()
    }

    /// Refuses the bug where it would not show.
    ///
    /// # Errors
    ///
    /// [`Error::NoEffect`].
    pub fn check<'i>(
        self,
        model: &Model,
        dtype: Dtype,
        inputs: impl Into<Inputs<'i>>,
    ) -> Result<()> {
        match self.without_effect(model, dtype, inputs) {
            None => Ok(()),
            Some(why) => Err(Error::NoEffect {
                bug: self.name(),
                why,
            }),
        }
    }
}

/// A pass that a bug may show in.
struct Pass<'a> {
    config: &'a Config,
    /// The vision part, where there are images.
    vision: Option<VisionConfig>,
    dtype: Dtype,
    inputs: Inputs<'a>,
}

/// Nothing, or why a bug would not show.
type Shows = std::result::Result<(), String>;

/// `why`, unless `there`.
fn needs(there: bool, why: &str) -> Shows {
    there.then_some(()).ok_or_else(|| why.to_owned())
}

impl Pass<'_> {
    fn images(&self, bug: KnownBug) -> Shows {
        let vision = self.vision.as_ref();
        let vision = vision.ok_or_else(|| "it takes a picture".to_owned())?;
        match bug {
            KnownBug::PixelsBgr => {
                let differs = |pixels: &&[f32]| {
                    let channel = pixels.len() / 3;
                    pixels[..channel] != pixels[2 * channel..]
                };
                needs(
                    self.inputs.pixel_values.iter().any(differs),
                    "the pictures have as much blue as red",
                )
            }
            KnownBug::ImagesScaled => self.around_blocks(KnownBug::EmbeddingUnscaled),
            KnownBug::ImagesCausal => {
                needs(vision.mm_tokens_per_image > 1, "a picture is one token")
            }
            _ => Ok(()),
        }
    }

    fn around_blocks(&self, bug: KnownBug) -> Shows {
        let (config, decoder) = (self.config, &self.config.decoder);
        match bug {
            KnownBug::MissingBos => {
                let bos = config.bos_token_id.is_some();
                needs(bos, "the model has no token that begins a sequence")?;
                let image = self.vision.as_ref().map(|vision| &vision.image_token_index);
                let begins = image.is_some() && self.inputs.ids.first() == image;
                needs(!begins, "a picture begins the sequence")?;
                self.longer_than(1)
            }
            KnownBug::PositionsPlus1 | KnownBug::PositionsPlus2 => {
                needs(
                    decoder.positions.is_some(),
                    "the model has no learned positions",
                )?;
                let off = if bug == KnownBug::PositionsPlus1 {
                    1
                } else {
                    2
                };
                let most = config.max_position_embeddings.saturating_sub(off);
                let tokens = self.inputs.ids.len();
                let why = format!("give it at most {most} tokens, it has {tokens}");
                needs(tokens <= most, &why)
            }
            KnownBug::HeadTied => needs(
                !config.tie_word_embeddings,
                "the model has no head of its own",
            ),
            _ => {
                needs(decoder.embed_scaled, "the model's embedding is not scaled")?;
                let factor =
                    |embedding: Embedding| embedding.factor(config.hidden_size, self.dtype);
                if bug == KnownBug::EmbeddingUnscaled {
                    return needs(config.hidden_size > 1, "√hidden is 1");
                }
                let same = factor(Embedding::default()) == factor(Embedding::OtherType);
                needs(!same, "√hidden is a number of both types")
            }
        }
    }

    fn norms(&self, bug: KnownBug) -> Shows {
        let rounded_first = match self.config.decoder.norm.kind {
            NormKind::Rms { rounded_first, .. } => Some(rounded_first),
            NormKind::Layer { .. } => None,
        };
        let only_rms = || needs(rounded_first.is_some(), "the model has no RMSNorm");
        let only_bf16 = || needs(self.dtype == Dtype::Bf16, "it takes --dtype bf16");
        match bug {
            KnownBug::NormRounded => {
                only_rms()?;
                needs(rounded_first != Some(true), "the model's norms do so")?;
                only_bf16()
            }
            KnownBug::NormRoundedOnce => {
                only_rms()?;
                needs(rounded_first == Some(true), "the model's norms do so")?;
                only_bf16()
            }
            KnownBug::NormEps => needs(self.dtype != Dtype::Bf16, "it takes --dtype f32 or f64"),
            KnownBug::BranchNormShared => {
                let mut blocks = self.config.blocks.iter();
                let two = blocks.any(|b| b.sum == Sum::Parallel && b.inner.norm.is_some());
                needs(two, "the model has no block with a norm for each branch")
            }
            KnownBug::NormAfterRope => {
                let both = |form: &AttentionForm| form.qk_norms.is_some() && form.rope.is_some();
                needs(self.any(both), "the model does not normalise q and k")?;
                self.longer_than(1)
            }
            _ => only_rms(),
        }
    }

    fn projections(&self, bug: KnownBug) -> Shows {
        let separate = |form: &AttentionForm| match &form.projections {
            ProjectionsForm::Separate(maps) => Some(maps.clone()),
            ProjectionsForm::Fused(..) => None,
        };
        match bug {
            KnownBug::QkPermuted => {
                needs(
                    self.any(|form| separate(form).is_some()),
                    "the model has no q_proj",
                )?;
                self.turns_pairs(RopePairing::Halves)
            }
            KnownBug::QkvOrder => needs(
                self.any(|form| separate(form).is_none() && form.kv_heads > 1),
                "the model has no fused map of several key heads",
            ),
            _ => {
                let biased = |form: &AttentionForm| match &form.projections {
                    ProjectionsForm::Separate([_, key, _]) => key.bias,
                    ProjectionsForm::Fused(map, _) => map.bias,
                };
                let of_vision = self
                    .vision
                    .iter()
                    .any(|vision| biased(&vision.block.attention));
                needs(
                    self.any(biased) || of_vision,
                    "the model has no such biases",
                )
            }
        }
    }

    fn rope(&self, bug: KnownBug) -> Shows {
        self.longer_than(1)?;
        let turned = |condition: &dyn Fn(&RopeForm, &AttentionForm) -> bool| {
            self.any(|form| form.rope.is_some_and(|rope| condition(&rope, form)))
        };
        needs(turned(&|_, _| true), "the model has no RoPE")?;
        match bug {
            KnownBug::RopeInterleaved => self.turns_pairs(RopePairing::Halves),
            KnownBug::RopeHalves => self.turns_pairs(RopePairing::Interleaved),
            KnownBug::RopeWholeHead => needs(
                turned(&|rope, form| rope.dims < form.head_dim && form.head_dim.is_multiple_of(2)),
                "the model turns whole heads",
            ),
            KnownBug::RopeDefaultTheta => {
                let other = turned(&|rope, _| rope.rope.theta != DEFAULT_THETA);
                needs(other, "the model's θ is 10000")?;
                let local = rope_of(self.config, true).zip(rope_of(self.config, false));
                let same = local.is_some_and(|(local, _)| local.theta == DEFAULT_THETA);
                needs(!same, "it is rope-local-theta in this model")
            }
            KnownBug::RopeNoFactor => needs(
                turned(&|rope, _| is_scaled(rope.rope)),
                "the model's config has no factor",
            ),
            _ => {
                self.has_full_layers()?;
                let [local, full] = [true, false].map(|slides| rope_of(self.config, slides));
                let same =
                    local.is_none_or(|local| full.is_some_and(|full| full.theta == local.theta));
                needs(!same, "both kinds of layers have one θ")
            }
        }
    }

    fn scores(&self, bug: KnownBug) -> Shows {
        let config = self.config;
        let window = self.windows().min();
        let sliding = || window.ok_or_else(|| "the model has no sliding layers".to_owned());
        let capped = config.decoder.softcap.is_some() || self.any(|form| form.softcap.is_some());
        match bug {
            KnownBug::ScaleHeadDim => {
                let differs = config.scaling(0) != head_dim_scaling(config);
                needs(differs, "scores are scaled by head_dim in this model")?;
                self.sees_others()
            }
            KnownBug::ScaleHidden => {
                let differs = hidden_scaling(config) != head_dim_scaling(config);
                needs(differs, "hidden_size / heads is head_dim in this model")?;
                let differs = config.scaling(0) != hidden_scaling(config);
                needs(
                    differs,
                    "scores are scaled by hidden_size / heads in this model",
                )?;
                self.sees_others()
            }
            KnownBug::WindowMinus1 => {
                let window = sliding()?;
                needs(window > 1, "the window is 1 token")?;
                self.longer_than(window - 1)
            }
            KnownBug::WindowPlus1 => self.longer_than(sliding()?),
            // One more would be the same as all.
            KnownBug::WindowMissing => self.longer_than(sliding()? + 1),
            KnownBug::WindowEverywhere => {
                let window = sliding()?;
                self.has_full_layers()?;
                self.longer_than(window)
            }
            KnownBug::SoftCapping => needs(!capped, "the model caps scores and logits"),
            _ => needs(capped, "the model caps neither scores nor logits"),
        }
    }

    fn branch(&self, bug: KnownBug) -> Shows {
        let uses = |wanted: &[Activation]| {
            let mut blocks = self.config.blocks.iter();
            blocks.any(|block| wanted.contains(&block.inner.activation))
        };
        let tanh_forms = [Activation::GeluTanh, Activation::GeluNew];
        match bug {
            KnownBug::Silu => {
                let gelus = [Activation::GeluTanh, Activation::GeluNew, Activation::Gelu];
                needs(uses(&gelus), "the model has no GeLU")
            }
            KnownBug::GeluErf => needs(uses(&tanh_forms), "the model has no GeLU in its tanh form"),
            KnownBug::GeluTanh => needs(uses(&[Activation::Gelu]), "the model has no GeLU by erf"),
            KnownBug::GeluF16 => {
                needs(uses(&tanh_forms), "the model has no GeLU in its tanh form")?;
                needs(self.dtype != Dtype::Bf16, "it takes --dtype f32 or f64")
            }
            _ => {
                let mut blocks = self.config.blocks.iter();
                let normalised = blocks.any(|block| match &block.inner.maps {
                    MapsForm::Experts(form) => form.renormalised && form.top_k < form.experts.len(),
                    _ => false,
                });
                needs(normalised, "the model does not choose among experts")
            }
        }
    }

    /// Whether any layer's attention is so.
    fn any(&self, condition: impl Fn(&AttentionForm) -> bool) -> bool {
        let mut blocks = self.config.blocks.iter();
        blocks.any(|block| condition(&block.attention))
    }

    fn windows(&self) -> impl Iterator<Item = usize> {
        let blocks = self.config.blocks.iter();
        blocks.filter_map(|block| block.attention.window)
    }

    fn has_full_layers(&self) -> Shows {
        needs(
            self.any(|form| form.window.is_none()),
            "the model has no full layers",
        )
    }

    fn turns_pairs(&self, pairing: RopePairing) -> Shows {
        let turns = |form: &AttentionForm| form.rope.is_some_and(|rope| rope.pairing == pairing);
        let other = match pairing {
            RopePairing::Halves => "the model's RoPE turns no halves",
            RopePairing::Interleaved => "the model's RoPE turns no neighbours",
        };
        needs(self.any(turns), other)?;
        let several = |form: &AttentionForm| form.rope.is_some_and(|rope| rope.dims > 2);
        needs(self.any(several), "a head has one pair")
    }

    /// Whether any token sees another.
    fn sees_others(&self) -> Shows {
        needs(
            self.any(|form| form.window != Some(1)),
            "a token sees itself alone",
        )?;
        self.longer_than(1)
    }

    fn longer_than(&self, than: usize) -> Shows {
        let tokens = self.inputs.ids.len();
        let why = format!("give it more than {than} tokens, it has {tokens}");
        needs(tokens > than, &why)
    }
}

/// θ where a config does not say it.
pub(super) const DEFAULT_THETA: f64 = 10_000.0;

/// The rotation of the layers with a window, or without one.
pub(super) fn rope_of(config: &Config, slides: bool) -> Option<Rope> {
    let mut blocks = config.blocks.iter().map(|block| &block.attention);
    let attention = blocks.find(|attention| attention.window.is_some() == slides)?;
    attention.rope.map(|form| form.rope)
}

fn is_scaled(rope: Rope) -> bool {
    rope.scaling != (RopeScaling::Linear { factor: 1.0 })
}

/// head_dim^−½.
pub(super) fn head_dim_scaling(config: &Config) -> f64 {
    (config.head_dim as f64).sqrt().recip()
}

/// (hidden_size / heads)^−½.
pub(super) fn hidden_scaling(config: &Config) -> f64 {
    let derived = (config.hidden_size / config.num_attention_heads).max(1);
    (derived as f64).sqrt().recip()
}

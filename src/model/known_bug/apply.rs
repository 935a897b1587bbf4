//! A known bug put into a model.

use std::borrow::Cow;
use std::ops::Range;

use super::KnownBug;
use super::effect::{DEFAULT_THETA, head_dim_scaling, hidden_scaling, rope_of};
use crate::checkpoint::form::{FusedOrder, NormKind, RopeForm, RopePairing};
use crate::checkpoint::{Config, ImageProcessorConfig, Rope};
use crate::kernels::activation::Activation;
use crate::model::Projections;
use crate::model::rope::rotation;
use crate::model::{Attention, Block, Embedding, Linear, Maps, Model, Norm, Vision};
use crate::tensor::{Dtype, Tensor};

/// Soft-capping in Gemma 2: of attention scores, and of the final logits.
const SCORES_CAP: f64 = 50.0;
const LOGITS_CAP: f64 = 30.0;

/// What OpenAI's CLIP takes pictures to have on average, red, green and blue.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

impl Model {
    /// Puts a bug into the model; [`KnownBug::tokens`] has to be called besides.
    #[must_use]
    pub fn with_bug(mut self, bug: KnownBug) -> Self {
        match bug {
            KnownBug::EmbeddingUnscaled => self.embedding = Embedding::Unscaled,
            KnownBug::EmbeddingScaleType => self.embedding = Embedding::OtherType,
            KnownBug::PositionsPlus1 => self.move_positions(1),
            KnownBug::PositionsPlus2 => self.move_positions(2),
            KnownBug::SoftCapping => self.decoder.form.softcap = Some(LOGITS_CAP),
            KnownBug::SoftCappingMissing => self.decoder.form.softcap = None,
            KnownBug::HeadTied => self.decoder.head.weight = self.decoder.embed.clone(),
            _ => {}
        }
        let config = self.checkpoint.config();
        change_norm(&mut self.decoder.norm, bug);
        for block in &mut self.layers {
            change_attention(&mut block.attention, bug, config);
            change_block(block, bug);
        }
        self.bug = Some(bug);
        self
    }

    /// Which of some ranges of images' tokens see each other.
    pub(crate) fn seen_together<'s>(&self, spans: &'s [Range<usize>]) -> &'s [Range<usize>] {
        if self.bug == Some(KnownBug::ImagesCausal) {
            &[]
        } else {
            spans
        }
    }

    /// What is multiplied with what images put in the place of embeddings.
    pub(crate) fn features_factor(&self, dtype: Dtype) -> f64 {
        if self.bug == Some(KnownBug::ImagesScaled) {
            self.embedding(dtype).1
        } else {
            1.0
        }
    }

    fn move_positions(&mut self, by: usize) {
        if let Some(positions) = &mut self.decoder.form.positions {
            positions.offset += by;
        }
    }
}

impl Vision<'_> {
    /// The vision part of a model with a bug: what its blocks have in common with those of text is wrong there, too.
    pub(in crate::model) fn with_bug(mut self, bug: Option<KnownBug>) -> Self {
        let Some(bug) = bug else {
            return self;
        };
        for norm in [&mut self.post_norm, &mut self.soft_norm] {
            change_norm(norm, bug);
        }
        for block in &mut self.blocks {
            change_biases(&mut block.attention, bug);
            change_block(block, bug);
        }
        self
    }
}

impl KnownBug {
    /// The pixels that the wrong model takes in for those of an image, `[3, height, width]`, which `config` made.
    pub fn pixels<'p>(self, config: &ImageProcessorConfig, pixels: &'p [f32]) -> Cow<'p, [f32]> {
        let channel = pixels.len() / 3;
        match self {
            Self::PixelsBgr => pixels.rchunks(channel).flatten().copied().collect(),
            Self::PixelsClip => {
                let channels = pixels.chunks(channel).enumerate();
                let normalised = channels.flat_map(|(i, levels)| {
                    let (mean, std) = (config.image_mean[i], config.image_std[i]);
                    let level = move |x: f32| f64::from(x) * std + mean;
                    let x = move |&x: &f32| ((level(x) - CLIP_MEAN[i]) / CLIP_STD[i]) as f32;
                    levels.iter().map(x)
                });
                normalised.collect()
            }
            _ => pixels.into(),
        }
    }
}

fn block_norms(block: &mut Block) -> impl Iterator<Item = &mut Norm> {
    let attention = &mut block.attention;
    let single = [
        &mut attention.norm,
        &mut attention.post_norm,
        &mut block.inner.norm,
        &mut block.outer.post_norm,
    ];
    let qk_norms = attention.qk_norms.iter_mut().flatten();
    single.into_iter().flatten().chain(qk_norms)
}

/// Changes what a norm of any kind adds to its variance, and how an RMSNorm scales and rounds.
fn change_norm(norm: &mut Norm, bug: KnownBug) {
    let eps = &mut norm.form.eps;
    if bug == KnownBug::NormEps {
        *eps = if *eps > 3e-6 { 1e-6 } else { 1e-5 };
    }
    if let NormKind::Rms {
        unit_offset,
        rounded_first,
    } = &mut norm.form.kind
    {
        match bug {
            KnownBug::NormWeight => *unit_offset = !*unit_offset,
            KnownBug::NormRounded => *rounded_first = true,
            KnownBug::NormRoundedOnce => *rounded_first = false,
            _ => {}
        }
    }
}

fn change_attention(attention: &mut Attention, bug: KnownBug, config: &Config) {
    let form = &mut attention.form;
    let window = config.blocks.iter().find_map(|b| b.attention.window);
    match bug {
        KnownBug::NormAfterRope => form.norm_after_rope = true,
        KnownBug::ScaleHeadDim => form.scaling = head_dim_scaling(config),
        KnownBug::ScaleHidden => form.scaling = hidden_scaling(config),
        KnownBug::WindowMinus1 => form.window = form.window.map(|window| window.max(2) - 1),
        KnownBug::WindowPlus1 => form.window = form.window.map(|window| window + 1),
        KnownBug::WindowMissing => form.window = None,
        KnownBug::WindowEverywhere => form.window = form.window.or(window),
        KnownBug::SoftCapping => form.softcap = Some(SCORES_CAP),
        KnownBug::SoftCappingMissing => form.softcap = None,
        _ => {}
    }
    let (heads, kv_heads, head_dim) = (form.heads, form.kv_heads, form.head_dim);
    if let Some(rope) = &mut form.rope {
        change_rope(rope, bug, head_dim, rope_of(config, true));
        attention.rotation = Some(rotation(rope));
    }
    change_biases(attention, bug);
    match (bug, &mut attention.projections) {
        (KnownBug::QkPermuted, Projections::Separate([q, k, _])) => {
            for (map, heads) in [(q, heads), (k, kv_heads)] {
                permute(map, heads, head_dim);
            }
        }
        (KnownBug::QkvOrder, Projections::Fused(_, order)) => {
            *order = match order {
                FusedOrder::Concatenated => FusedOrder::Grouped,
                FusedOrder::Grouped => FusedOrder::Concatenated,
            };
        }
        _ => {}
    }
}

fn change_biases(attention: &mut Attention, bug: KnownBug) {
    let keys = attention.fused_columns()[1].clone();
    match (bug, &mut attention.projections) {
        (KnownBug::QkvBiasMissing, Projections::Separate(maps)) => {
            maps.iter_mut().for_each(|map| map.bias = None);
        }
        (KnownBug::QkvBiasMissing, Projections::Fused(map, _)) => map.bias = None,
        (KnownBug::KeyBiasMissing, Projections::Separate([_, k, _])) => k.bias = None,
        (KnownBug::KeyBiasMissing, Projections::Fused(map, _)) => {
            change_numbers(map.bias.iter_mut(), |bias| {
                keys.iter().for_each(|keys| bias[keys.clone()].fill(0.0));
            });
        }
        _ => {}
    }
}

fn change_rope(form: &mut RopeForm, bug: KnownBug, head_dim: usize, local: Option<Rope>) {
    match (bug, local) {
        (KnownBug::RopeInterleaved, _) => form.pairing = RopePairing::Interleaved,
        (KnownBug::RopeHalves, _) => form.pairing = RopePairing::Halves,
        (KnownBug::RopeWholeHead, _) => form.dims = head_dim,
        (KnownBug::RopeDefaultTheta, _) => form.rope.theta = DEFAULT_THETA,
        (KnownBug::RopeLocalTheta, Some(local)) => form.rope.theta = local.theta,
        (KnownBug::RopeNoFactor, _) => form.rope = Rope::linear(form.rope.theta, 1.0),
        _ => {}
    }
}

/// Changes what is around attention and behind it.
fn change_block(block: &mut Block, bug: KnownBug) {
    block_norms(block).for_each(|norm| change_norm(norm, bug));
    let inner = &mut block.inner;
    match bug {
        KnownBug::Silu => inner.activation = Activation::Silu,
        KnownBug::GeluErf => inner.activation = Activation::Gelu,
        KnownBug::GeluTanh => inner.activation = Activation::GeluTanh,
        KnownBug::GeluF16 => inner.activation = Activation::GeluByF16,
        _ => {}
    }
    match (bug, &mut inner.norm, &block.attention.norm, &mut inner.maps) {
        (KnownBug::BranchNormShared, Some(own), Some(attentions), _) => {
            own.weight = attentions.weight.clone();
            own.bias.clone_from(&attentions.bias);
        }
        (KnownBug::GatesUnnormalised, _, _, Maps::Experts(experts)) => experts.renormalised = false,
        _ => {}
    }
}

/// Puts the two rows of every RoPE pair side by side, as llama.cpp's conversion does.
fn permute(map: &mut Linear, heads: usize, head_dim: usize) {
    let width = map.weight.cols();
    let half = head_dim / 2;
    let from = |row: usize| row / head_dim * head_dim + row % 2 * half + row % head_dim / 2;
    let permuted = |rows: &mut [f64], width: usize| {
        let stored = rows.to_vec();
        for (row, out) in rows
            .chunks_exact_mut(width)
            .enumerate()
            .take(heads * head_dim)
        {
            out.copy_from_slice(&stored[from(row) * width..][..width]);
        }
    };
    change_numbers([&mut map.weight].into_iter(), |rows| permuted(rows, width));
    change_numbers(map.bias.iter_mut(), |bias| permuted(bias, 1));
}

/// Changes the numbers of tensors, which keep their type, or are F32 where that is quantised.
fn change_numbers<'t>(tensors: impl Iterator<Item = &'t mut Tensor>, change: impl Fn(&mut [f64])) {
    for tensor in tensors {
        let mut numbers = tensor.to_vec::<f64>();
        change(&mut numbers);
        let storage = tensor.storage().for_new_numbers();
        if let Some(changed) = Tensor::from_f64(storage, tensor.shape().into(), &numbers) {
            *tensor = changed;
        }
    }
}

//! A known bug put into a model.

use super::KnownBug;
use super::effect::{DEFAULT_THETA, head_dim_scaling, hidden_scaling, rope_of};
use crate::checkpoint::form::{FusedOrder, NormKind, RopeForm, RopePairing};
use crate::checkpoint::{Config, Rope};
use crate::kernels::activation::Activation;
use crate::model::Projections;
use crate::model::rope::rotation;
use crate::model::{Attention, Block, Embedding, Linear, Maps, Model, Norm};
use crate::tensor::Tensor;

/// Soft-capping in Gemma 2: of attention scores, and of the final logits.
const SCORES_CAP: f64 = 50.0;
const LOGITS_CAP: f64 = 30.0;

impl Model {
    /// Puts a bug into the model; [`KnownBug::tokens`] has to be called besides.
    #[must_use]
    pub fn with_bug(mut self, bug: KnownBug) -> Self {
        match bug {
            KnownBug::EmbeddingUnscaled => self.embedding = Embedding::Unscaled,
            KnownBug::EmbeddingScaleType => self.embedding = Embedding::OtherType,
            KnownBug::PositionsPlus1 => self.move_positions(1),
            KnownBug::PositionsPlus2 => self.move_positions(2),
            KnownBug::NormWeight => {
                self.change_rms_norms(|unit_offset, _| *unit_offset = !*unit_offset);
            }
            KnownBug::NormRounded => {
                self.change_rms_norms(|_, rounded_first| *rounded_first = true)
            }
            KnownBug::NormRoundedOnce => {
                self.change_rms_norms(|_, rounded_first| *rounded_first = false);
            }
            KnownBug::NormEps => {
                for norm in self.norms() {
                    norm.form.eps = if norm.form.eps > 3e-6 { 1e-6 } else { 1e-5 };
                }
            }
            KnownBug::SoftCapping => self.decoder.form.softcap = Some(LOGITS_CAP),
            KnownBug::SoftCappingMissing => self.decoder.form.softcap = None,
            KnownBug::HeadTied => self.decoder.head.weight = self.decoder.embed.clone(),
            _ => {}
        }
        let config = self.checkpoint.config();
        for block in &mut self.layers {
            change_attention(&mut block.attention, bug, config);
            change_branch(block, bug);
        }
        self
    }

    fn move_positions(&mut self, by: usize) {
        if let Some(positions) = &mut self.decoder.form.positions {
            positions.offset += by;
        }
    }

    fn norms(&mut self) -> Vec<&mut Norm> {
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
        blocks.chain([&mut self.decoder.norm]).collect()
    }

    /// Changes whether RMSNorms scale by 1 + w, and whether they round first.
    fn change_rms_norms(&mut self, change: impl Fn(&mut bool, &mut bool)) {
        for norm in self.norms() {
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
    let keys = attention.fused_columns()[1].clone();
    match (bug, &mut attention.projections) {
        (KnownBug::QkPermuted, Projections::Separate([q, k, _])) => {
            for (map, heads) in [(q, heads), (k, kv_heads)] {
                permute(map, heads, head_dim);
            }
        }
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
        (KnownBug::QkvOrder, Projections::Fused(_, order)) => {
            *order = match order {
                FusedOrder::Concatenated => FusedOrder::Grouped,
                FusedOrder::Grouped => FusedOrder::Concatenated,
            };
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

fn change_branch(block: &mut Block, bug: KnownBug) {
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

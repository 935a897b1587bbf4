//! The vision part of Gemma 3: SigLIP's tower from `SiglipVisionConfig` in `vision_config`, and the projector behind it from
//! the outer level.

use std::ops::RangeInclusive;

use serde_json::Map;

use super::super::config::{COUNT, EPS, LENGTH, POSITIONS};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, InnerForm, LinearForm, MapsForm, NormForm, NormKind, NormWidth,
    OuterForm, ProjectionsForm, Sum,
};
use super::super::vision::VisionConfig;
use super::common::activation;
use super::refuse_elsewhere;

/// Pixels of a side.
const SIDE: RangeInclusive<usize> = 1..=1 << 14;

/// The vision part of a `Gemma3Config`.
pub(in crate::checkpoint) fn read(top: &Fields<'_>) -> Result<VisionConfig> {
    let empty = Map::new();
    let inner = top.object("vision_config")?.unwrap_or(&empty);
    let fields = &top.inner("vision_config.", inner);
    refuse_others(fields)?;
    let hidden_size = fields.size("hidden_size", 768, LENGTH)?;
    let heads = fields.size("num_attention_heads", 12, COUNT)?;
    if !hidden_size.is_multiple_of(heads) {
        let expected = format!("a divisor of hidden_size, {hidden_size}");
        return Err(fields.value("num_attention_heads", heads, expected));
    }
    let width = fields.size("intermediate_size", 3072, LENGTH)?;
    let image_size = fields.size("image_size", 224, SIDE)?;
    let patch_size = fields.size("patch_size", 16, SIDE)?;
    if patch_size > image_size {
        let expected = format!("at most image_size, {image_size}");
        return Err(fields.value("patch_size", patch_size, expected));
    }
    let eps = fields.real("layer_norm_eps", 1e-6, EPS)?;
    let norm = |name: &str, kind| NormForm {
        name: name.into(),
        kind,
        eps,
    };
    let layer_norm = |name| norm(name, NormKind::Layer { bias: true });
    let map = |name: &str| LinearForm::new(name).biased(true);
    let head_dim = hidden_size / heads;
    let block = BlockForm {
        attention: AttentionForm {
            module: "self_attn",
            norm: Some(layer_norm("layer_norm1")),
            projections: ProjectionsForm::Separate(
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(map),
            ),
            qk_norms: None,
            qk_norm_width: NormWidth::Head,
            norm_after_rope: false,
            rope: None,
            heads,
            kv_heads: heads,
            head_dim,
            window: None,
            scaling: 1.0 / (head_dim as f64).sqrt(),
            rounded_scores: true,
            softcap: None,
            out: map("self_attn.out_proj"),
            post_norm: None,
        },
        inner: InnerForm {
            norm: Some(layer_norm("layer_norm2")),
            module: "mlp",
            maps: MapsForm::Plain(map("mlp.fc1")),
            activation: activation(fields, "hidden_act", "gelu_pytorch_tanh")?,
            width,
        },
        outer: OuterForm {
            down: vec![map("mlp.fc2")],
            post_norm: None,
        },
        sum: Sum::Sequential,
    };
    let config = VisionConfig {
        hidden_size,
        num_hidden_layers: fields.size("num_hidden_layers", 12, COUNT)?,
        image_size,
        patch_size,
        mm_tokens_per_image: top.size("mm_tokens_per_image", 256, POSITIONS)?,
        image_token_index: token(top, ["image_token_id", "image_token_index"], 262_144)?,
        boi_token_index: token(top, ["boi_token_id", "boi_token_index"], 255_999)?,
        eoi_token_index: token(top, ["eoi_token_id", "eoi_token_index"], 256_000)?,
        block,
        post_norm: layer_norm("model.vision_tower.post_layernorm"),
        soft_norm: norm(
            "model.multi_modal_projector.mm_soft_emb_norm",
            NormKind::GEMMA,
        ),
    };
    let (tokens, side) = (config.mm_tokens_per_image, config.patches_per_side());
    let pooled = side.checked_div(config.pool()).unwrap_or_default();
    if pooled * pooled != tokens {
        let expected =
            format!("the square of a number into which the {side} patches of a side divide");
        return Err(top.value("mm_tokens_per_image", tokens, expected));
    }
    Ok(config)
}

/// Refuses what is no tower of this kind.
fn refuse_others(fields: &Fields<'_>) -> Result<()> {
    const TYPE: &str = "model_type";
    if let Some(other) = fields.string(TYPE)?
        && other != "siglip_vision_model"
    {
        return Err(fields.unsupported(TYPE, other, "siglip_vision_model"));
    }
    let channels = fields.size("num_channels", 3, COUNT)?;
    if channels != 3 {
        return Err(fields.unsupported("num_channels", channels, "3, red, green and blue"));
    }
    refuse_elsewhere(fields)
}

/// A token's id under the first of its names that is there.
fn token(top: &Fields<'_>, names: [&str; 2], default: u32) -> Result<u32> {
    let name = if top.has(names[0]) {
        names[0]
    } else {
        names[1]
    };
    let id = top.size(name, default as usize, 0..=u32::MAX as usize)?;
    Ok(id as u32)
}

//! Falcon, in its three forms: one key head and one norm for both branches (7B), grouped key heads and a norm for each
//! branch (40B), and one branch after the other (RW).

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, FusedOrder, InnerForm, LinearForm, MapsForm, NormKind,
    NormWidth, OuterForm, ProjectionsForm, Sum,
};
use super::common::{activation, bos_token_id, eos_token_ids, heads, norm};
use super::rope::{self, RopeDefaults};

pub(super) fn falcon(fields: &Fields<'_>) -> Result<Config> {
    if fields.flag("alibi", false)? {
        return Err(fields.unsupported("alibi", true, "rotary positions (false)"));
    }
    let hidden_name = if fields.has("n_embed") {
        "n_embed"
    } else {
        "hidden_size"
    };
    let hidden_size = fields.size(hidden_name, 4544, LENGTH)?;
    let vocab_size = fields.size("vocab_size", 65_024, VOCAB)?;
    let layers = fields.size("num_hidden_layers", 32, COUNT)?;
    let new = fields.flag("new_decoder_architecture", false)?;
    let multi_query = fields.flag("multi_query", true)?;
    let parallel = fields.flag("parallel_attn", true)?;
    let said = fields.size("num_attention_heads", 71, COUNT)?;
    let (heads, said_keys) = heads(
        fields,
        ["num_attention_heads", "num_kv_heads"],
        [71, said],
        Some(hidden_size),
    )?;
    let kv_heads = match (new, multi_query) {
        (true, _) => said_keys,
        (false, true) => 1,
        (false, false) => heads,
    };
    let head_dim = hidden_size / heads;
    let width = match fields.get("ffn_hidden_size") {
        Some(_) => fields.size("ffn_hidden_size", 0, LENGTH)?,
        None => 4 * hidden_size,
    };
    let positions = fields.size("max_position_embeddings", 2048, POSITIONS)?;
    let eps = fields.real("layer_norm_epsilon", 1e-5, EPS)?;
    let layer_norm = |name| norm(name, NormKind::Layer { bias: true }, eps);
    let bias = fields.flag("bias", false)?;
    let map = |name: &str| LinearForm {
        rounded_first: true,
        ..LinearForm::new(name).biased(bias)
    };
    // One norm for both branches, or one for each: 0 stands for what is left out.
    let norms = match (fields.get("num_ln_in_parallel_attn"), new) {
        (Some(_), _) => fields.size("num_ln_in_parallel_attn", 0, 1..=2)?,
        (None, new) => 1 + usize::from(new),
    };
    let (first, second) = match (new || parallel, norms) {
        (false, _) => ("input_layernorm", Some("post_attention_layernorm")),
        (true, 2) if new => ("ln_attn", Some("ln_mlp")),
        _ => ("input_layernorm", None),
    };
    let rope_defaults = RopeDefaults {
        theta: 1e4,
        partial: None,
    };
    let block = BlockForm {
        attention: AttentionForm {
            module: "self_attention",
            norm: Some(layer_norm(first)),
            projections: ProjectionsForm::Fused(
                map("self_attention.query_key_value"),
                FusedOrder::Grouped,
            ),
            qk_norms: None,
            qk_norm_width: NormWidth::Head,
            norm_after_rope: false,
            rope: Some(rope::read(fields, &rope_defaults, head_dim, positions)?),
            heads,
            kv_heads,
            head_dim,
            window: None,
            scaling: 1.0 / (head_dim as f64).sqrt(),
            rounded_scores: true,
            softcap: None,
            out: map("self_attention.dense"),
            post_norm: None,
        },
        inner: InnerForm {
            norm: second.map(layer_norm),
            module: "mlp",
            maps: MapsForm::Plain(map("mlp.dense_h_to_4h")),
            activation: activation(fields, "activation", "gelu")?,
            width,
        },
        outer: OuterForm {
            down: vec![map("mlp.dense_4h_to_h")],
            post_norm: None,
        },
        sum: if new || parallel {
            Sum::Parallel
        } else {
            Sum::Sequential
        },
    };
    Ok(Config {
        model_type: "falcon".into(),
        vocab_size,
        hidden_size,
        intermediate_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings: positions,
        tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
        bos_token_id: bos_token_id(fields, Some(11))?,
        eos_token_ids: eos_token_ids(fields, &[11], vocab_size)?,
        multimodal: false,
        decoder: DecoderForm {
            layers: "transformer.h",
            embed: "transformer.word_embeddings",
            embed_scaled: false,
            positions: None,
            norm: layer_norm("transformer.ln_f"),
            head: LinearForm::new("lm_head"),
            softcap: None,
            gguf: "falcon",
        },
        blocks: vec![block; layers],
    })
}

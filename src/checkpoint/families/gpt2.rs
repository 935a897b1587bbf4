//! GPT-2: learned positions, LayerNorm, one map for queries, keys and values, weights stored `[in, out]`.

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, FusedOrder, InnerForm, LearnedPositions, LinearForm,
    MapsForm, NormKind, NormWidth, OuterForm, ProjectionsForm, Sum,
};
use super::common::{activation, bos_token_id, eos_token_ids, heads, norm};

pub(super) fn gpt2(fields: &Fields<'_>) -> Result<Config> {
    if fields.flag("add_cross_attention", false)? {
        return Err(fields.unsupported("add_cross_attention", true, "a decoder alone (false)"));
    }
    let hidden_size = fields.size("n_embd", 768, LENGTH)?;
    let vocab_size = fields.size("vocab_size", 50_257, VOCAB)?;
    let layers = fields.size("n_layer", 12, COUNT)?;
    let said = fields.size("n_head", 12, COUNT)?;
    let (heads, _) = heads(fields, ["n_head", "n_head"], [12, said], Some(hidden_size))?;
    let head_dim = hidden_size / heads;
    let width = match fields.get("n_inner") {
        Some(_) => fields.size("n_inner", 0, LENGTH)?,
        None => 4 * hidden_size,
    };
    let positions = fields.size("n_positions", 1024, POSITIONS)?;
    let eps = fields.real("layer_norm_epsilon", 1e-5, EPS)?;
    let layer_norm = |name| norm(name, NormKind::Layer { bias: true }, eps);
    let conv_1d = |name: &str| LinearForm {
        transposed: true,
        ..LinearForm::new(name).biased(true)
    };
    let scaling = if fields.flag("scale_attn_weights", true)? {
        1.0 / (head_dim as f64).sqrt()
    } else {
        1.0
    };
    let block = BlockForm {
        attention: AttentionForm {
            module: "attn",
            norm: Some(layer_norm("ln_1")),
            projections: ProjectionsForm::Fused(conv_1d("attn.c_attn"), FusedOrder::Concatenated),
            qk_norms: None,
            qk_norm_width: NormWidth::Head,
            norm_after_rope: false,
            rope: None,
            heads,
            kv_heads: heads,
            head_dim,
            window: None,
            scaling,
            rounded_scores: true,
            softcap: None,
            out: conv_1d("attn.c_proj"),
            post_norm: None,
        },
        inner: InnerForm {
            norm: Some(layer_norm("ln_2")),
            module: "mlp",
            maps: MapsForm::Plain(conv_1d("mlp.c_fc")),
            activation: activation(fields, "activation_function", "gelu_new")?,
            width,
        },
        outer: OuterForm {
            down: vec![conv_1d("mlp.c_proj")],
            post_norm: None,
        },
        sum: Sum::Sequential,
    };
    let by_layer = fields.flag("scale_attn_by_inverse_layer_idx", false)?;
    let config = Config {
        model_type: "gpt2".into(),
        vocab_size,
        hidden_size,
        intermediate_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: positions,
        tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
        bos_token_id: bos_token_id(fields, Some(50_256))?,
        eos_token_ids: eos_token_ids(fields, &[50_256], vocab_size)?,
        multimodal: false,
        decoder: DecoderForm {
            layers: "transformer.h",
            embed: "transformer.wte",
            embed_scaled: false,
            positions: Some(LearnedPositions {
                table: "transformer.wpe",
                sum: "transformer.drop",
                offset: 0,
            }),
            norm: layer_norm("transformer.ln_f"),
            head: LinearForm::new("lm_head"),
            softcap: None,
            gguf: "gpt2",
        },
        blocks: vec![block; layers],
    };
    Ok(config.with_layers(|layer, block| {
        if by_layer {
            block.attention.scaling /= (layer + 1) as f64;
        }
    }))
}

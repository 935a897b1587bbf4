//! Phi 1 and 2: GPT-J's block with biases everywhere, rotated in halves.

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, InnerForm, LinearForm, MapsForm, NormKind, NormWidth,
    OuterForm, ProjectionsForm, Sum,
};
use super::common::{activation, bos_token_id, eos_token_ids, head_dim, heads, norm};
use super::rope::{self, RopeDefaults};

pub(super) fn phi(fields: &Fields<'_>) -> Result<Config> {
    let hidden_size = fields.size("hidden_size", 2048, LENGTH)?;
    let vocab_size = fields.size("vocab_size", 51_200, VOCAB)?;
    let layers = fields.size("num_hidden_layers", 24, COUNT)?;
    let said = fields.size("num_attention_heads", 32, COUNT)?;
    let (heads, kv_heads) = heads(
        fields,
        ["num_attention_heads", "num_key_value_heads"],
        [32, said],
        Some(hidden_size),
    )?;
    let head_dim = head_dim(fields, hidden_size, heads)?;
    let width = fields.size("intermediate_size", 8192, LENGTH)?;
    let positions = fields.size("max_position_embeddings", 2048, POSITIONS)?;
    let eps = fields.real("layer_norm_eps", 1e-5, EPS)?;
    let layer_norm = |name| norm(name, NormKind::Layer { bias: true }, eps);
    let biased = |name: &str| LinearForm::new(name).biased(true);
    let qk_norms = fields.flag("qk_layernorm", false)?;
    let rope_defaults = RopeDefaults {
        theta: 1e4,
        partial: Some(0.5),
    };
    let block = BlockForm {
        attention: AttentionForm {
            module: "self_attn",
            norm: Some(layer_norm("input_layernorm")),
            projections: ProjectionsForm::Separate(
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(biased),
            ),
            qk_norms: qk_norms
                .then(|| ["self_attn.q_layernorm", "self_attn.k_layernorm"].map(layer_norm)),
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
            out: biased("self_attn.dense"),
            post_norm: None,
        },
        inner: InnerForm {
            norm: None,
            module: "mlp",
            maps: MapsForm::Plain(biased("mlp.fc1")),
            activation: activation(fields, "hidden_act", "gelu_new")?,
            width,
        },
        outer: OuterForm {
            down: vec![biased("mlp.fc2")],
            post_norm: None,
        },
        sum: Sum::Parallel,
    };
    Ok(Config {
        model_type: "phi".into(),
        vocab_size,
        hidden_size,
        intermediate_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings: positions,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        bos_token_id: bos_token_id(fields, Some(1))?,
        eos_token_ids: eos_token_ids(fields, &[2], vocab_size)?,
        multimodal: false,
        decoder: DecoderForm {
            layers: "model.layers",
            embed: "model.embed_tokens",
            embed_scaled: false,
            positions: None,
            norm: layer_norm("model.final_layernorm"),
            head: biased("lm_head"),
            softcap: None,
            gguf: "phi2",
        },
        blocks: vec![block; layers],
    })
}

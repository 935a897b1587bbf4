//! GPT-J: both branches see one norm, and a part of each head rotates in neighbours.

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, InnerForm, LinearForm, MapsForm, NormKind, NormWidth,
    OuterForm, ProjectionsForm, Rope, RopeForm, RopePairing, Sum,
};
use super::common::{activation, bos_token_id, eos_token_ids, heads, norm};

pub(super) fn gptj(fields: &Fields<'_>) -> Result<Config> {
    let hidden_size = fields.size("n_embd", 4096, LENGTH)?;
    let vocab_size = fields.size("vocab_size", 50_400, VOCAB)?;
    let layers = fields.size("n_layer", 28, COUNT)?;
    let said = fields.size("n_head", 16, COUNT)?;
    let (heads, _) = heads(fields, ["n_head", "n_head"], [16, said], Some(hidden_size))?;
    let head_dim = hidden_size / heads;
    let dims = match fields.is_null("rotary_dim") {
        true => head_dim,
        false => fields.size("rotary_dim", 64.min(head_dim), 2..=head_dim)?,
    };
    if !dims.is_multiple_of(2) {
        return Err(fields.value("rotary_dim", dims, "even"));
    }
    let width = match fields.get("n_inner") {
        Some(_) => fields.size("n_inner", 0, LENGTH)?,
        None => 4 * hidden_size,
    };
    let eps = fields.real("layer_norm_epsilon", 1e-5, EPS)?;
    let layer_norm = |name| norm(name, NormKind::Layer { bias: true }, eps);
    let biased = |name: &str| LinearForm::new(name).biased(true);
    let block = BlockForm {
        attention: AttentionForm {
            module: "attn",
            norm: Some(layer_norm("ln_1")),
            projections: ProjectionsForm::Separate(
                ["attn.q_proj", "attn.k_proj", "attn.v_proj"].map(LinearForm::new),
            ),
            qk_norms: None,
            qk_norm_width: NormWidth::Head,
            norm_after_rope: false,
            rope: Some(RopeForm {
                rope: Rope::linear(1e4, 1.0),
                dims,
                pairing: RopePairing::Interleaved,
                rounded_once: false,
            }),
            heads,
            kv_heads: heads,
            head_dim,
            window: None,
            scaling: 1.0 / (head_dim as f64).sqrt(),
            rounded_scores: false,
            softcap: None,
            out: LinearForm::new("attn.out_proj"),
            post_norm: None,
        },
        inner: InnerForm {
            norm: None,
            module: "mlp",
            maps: MapsForm::Plain(biased("mlp.fc_in")),
            activation: activation(fields, "activation_function", "gelu_new")?,
            width,
        },
        outer: OuterForm {
            down: vec![biased("mlp.fc_out")],
            post_norm: None,
        },
        sum: Sum::Parallel,
    };
    Ok(Config {
        model_type: "gptj".into(),
        vocab_size,
        hidden_size,
        intermediate_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: fields.size("n_positions", 2048, POSITIONS)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        bos_token_id: bos_token_id(fields, Some(50_256))?,
        eos_token_ids: eos_token_ids(fields, &[50_256], vocab_size)?,
        multimodal: false,
        decoder: DecoderForm {
            layers: "transformer.h",
            embed: "transformer.wte",
            embed_scaled: false,
            positions: None,
            norm: layer_norm("transformer.ln_f"),
            head: biased("lm_head"),
            softcap: None,
            gguf: "gptj",
        },
        blocks: vec![block; layers],
    })
}

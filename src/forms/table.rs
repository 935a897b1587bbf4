//! The block forms: what a config.json of each family says, beside small sizes.

use std::path::Path;

use crate::checkpoint::form::BlockForm;
use crate::checkpoint::{Config, Result};

/// What a block is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// The family, and where it has more than one kind of block or way to patch it, which.
    pub name: &'static str,
    /// The sizes.
    pub sizes: Sizes,
    pub(super) control: Control,
    pub(super) block: BlockForm,
    fields: &'static str,
}

/// What the outer function is controlled by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// What Theorem 5 takes first: the scale of a post-norm, a bias, or the weights.
    First,
    /// Its weights, though it has a bias.
    Weights,
}

/// The sizes of a block, and of what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Query heads.
    pub heads: usize,
    /// Key heads, where a family has fewer of them; a divisor of `heads`.
    pub kv_heads: usize,
    /// The length of a head; even, and a multiple of 4 where half of it rotates. The residual stream has heads · `head_dim` numbers.
    pub head_dim: usize,
    /// Length of h.
    pub intermediate: usize,
    /// How many experts there are, where there are some.
    pub experts: usize,
    /// How many of them a token chooses.
    pub top_k: usize,
    /// Tokens of C.
    pub context: usize,
    /// Tokens of C∖Y, the first of C.
    pub kept: usize,
}

impl Default for Sizes {
    /// Small ones, in about the proportions of real models.
    fn default() -> Self {
        Self {
            heads: 6,
            kv_heads: 2,
            head_dim: 4,
            intermediate: 70,
            experts: 4,
            top_k: 2,
            context: 6,
            kept: 1,
        }
    }
}

/// Name, fields of config.json beside the sizes, and control of each form.
const FORMS: [(&str, &str, Control); 19] = [
    ("Gemma 1", r#""model_type": "gemma""#, Control::First),
    ("Gemma 2", r#""model_type": "gemma2""#, Control::First),
    ("Gemma 3", r#""model_type": "gemma3_text""#, Control::First),
    ("Llama", r#""model_type": "llama""#, Control::First),
    ("Mistral", MISTRAL, Control::First),
    ("Mixtral", r#""model_type": "mixtral""#, Control::First),
    ("Qwen 2", r#""model_type": "qwen2""#, Control::First),
    ("Qwen 3", r#""model_type": "qwen3""#, Control::First),
    ("OLMo 2", r#""model_type": "olmo2""#, Control::First),
    ("Phi 3", r#""model_type": "phi3""#, Control::First),
    ("Falcon 7B", FALCON_7B, Control::First),
    ("Falcon 40B", FALCON_40B, Control::First),
    ("Falcon RW", FALCON_RW, Control::First),
    ("Phi 2, by bias", PHI_2, Control::First),
    ("Phi 2, by weight", PHI_2, Control::Weights),
    ("GPT-J, by bias", GPT_J, Control::First),
    ("GPT-J, by weight", GPT_J, Control::Weights),
    ("GPT-2, by bias", GPT_2, Control::First),
    ("GPT-2, by weight", GPT_2, Control::Weights),
];

const MISTRAL: &str = r#""model_type": "mistral", "sliding_window": 5"#;
const FALCON_7B: &str = r#""model_type": "falcon""#;
const FALCON_40B: &str = r#""model_type": "falcon", "new_decoder_architecture": true"#;
const FALCON_RW: &str =
    r#""model_type": "falcon", "multi_query": false, "parallel_attn": false, "bias": true"#;
const PHI_2: &str = r#""model_type": "phi""#;
const GPT_J: &str = r#""model_type": "gptj", "rotary_dim": 2"#;
const GPT_2: &str = r#""model_type": "gpt2""#;

impl Form {
    /// The block forms, one or more of each family.
    ///
    /// # Errors
    ///
    /// None, as long as the families take these configs.
    pub fn all() -> Result<Vec<Self>> {
        let forms = FORMS.iter();
        let forms = forms
            .map(|&(name, fields, control)| Self::new(name, fields, control, Sizes::default()));
        forms.collect()
    }

    /// This form with other sizes.
    ///
    /// # Errors
    ///
    /// Those of [`Config::parse`] for sizes that the family does not take.
    pub fn resized(&self, sizes: Sizes) -> Result<Self> {
        Self::new(self.name, self.fields, self.control, sizes)
    }

    /// Every family finds its own names of the sizes among those of all.
    fn new(
        name: &'static str,
        fields: &'static str,
        control: Control,
        sizes: Sizes,
    ) -> Result<Self> {
        let Sizes {
            heads,
            kv_heads,
            head_dim,
            intermediate,
            experts,
            top_k,
            ..
        } = sizes;
        let hidden = heads * head_dim;
        let json = format!(
            r#"{{{fields}, "num_hidden_layers": 1, "n_layer": 1, "hidden_size": {hidden}, "n_embd": {hidden},
            "num_attention_heads": {heads}, "n_head": {heads}, "num_key_value_heads": {kv_heads}, "num_kv_heads": {kv_heads},
            "head_dim": {head_dim}, "query_pre_attn_scalar": {head_dim},
            "intermediate_size": {intermediate}, "n_inner": {intermediate}, "ffn_hidden_size": {intermediate},
            "num_local_experts": {experts}, "num_experts_per_tok": {top_k}}}"#
        );
        let mut config = Config::parse(Path::new(name), json.as_bytes())?;
        Ok(Self {
            name,
            sizes,
            control,
            block: config.blocks.remove(0),
            fields,
        })
    }
}

//! The sizes of a model, read under the names by which its family's config calls them.

use super::super::config::{COUNT, Config, EPS, LENGTH, POSITIONS, VOCAB};
use super::super::error::Result;
use super::super::fields::{Fields, whole};
use super::super::form::{
    AttentionForm, BlockForm, DecoderForm, LinearForm, NormForm, NormKind, NormWidth,
    ProjectionsForm,
};

/// What a family's config calls its sizes, and what they are where it does not say.
pub(super) struct Shape {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: (&'static str, usize),
    pub(super) layers: (&'static str, usize),
    pub(super) heads: (&'static str, usize),
    /// As many as there are query heads where the config says null, or nothing and there is no number here; without a name
    /// always.
    pub(super) kv_heads: Option<(&'static str, Option<usize>)>,
    pub(super) head_dim: HeadDim,
    /// The length of h; four times `hidden_size` where there is no number.
    pub(super) width: (&'static str, Option<usize>),
    pub(super) positions: (&'static str, usize),
    pub(super) eps: (&'static str, f64),
    pub(super) bos: Option<u32>,
    /// The tokens that end a text and whether the head is the embedding; `None` where the family reads them itself.
    pub(super) eos: Option<&'static [u32]>,
    pub(super) tied: Option<bool>,
}

/// How long a head is.
pub(super) enum HeadDim {
    /// hidden_size / heads, which must be whole.
    Whole,
    /// What `head_dim` says, else hidden_size / heads; whether the heads must divide hidden_size all the same.
    Said { whole: bool },
    /// What `head_dim` says, else this; whether the heads must divide hidden_size all the same.
    Default(usize, bool),
}

/// The sizes of a model.
pub(super) struct Sizes {
    pub(super) vocab_size: usize,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) width: usize,
    pub(super) positions: usize,
    pub(super) eps: f64,
    pub(super) bos: Option<u32>,
    pub(super) eos: Vec<u32>,
    pub(super) tied: bool,
}

impl Shape {
    /// Reads the sizes.
    pub(super) fn read(&self, fields: &Fields<'_>) -> Result<Sizes> {
        let vocab_size = fields.size("vocab_size", self.vocab_size, VOCAB)?;
        let hidden = fields.size(self.hidden_size.0, self.hidden_size.1, LENGTH)?;
        let layers = fields.size(self.layers.0, self.layers.1, COUNT)?;
        let (heads, kv_heads) = self.heads(fields, hidden)?;
        let width = match (fields.get(self.width.0), self.width.1) {
            (None, None) => 4 * hidden,
            (_, default) => fields.size(self.width.0, default.unwrap_or(0), LENGTH)?,
        };
        Ok(Sizes {
            vocab_size,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim: self.head_dim(fields, hidden, heads)?,
            width,
            positions: fields.size(self.positions.0, self.positions.1, POSITIONS)?,
            eps: fields.real(self.eps.0, self.eps.1, EPS)?,
            bos: bos_token_id(fields, self.bos)?,
            eos: match self.eos {
                Some(default) => eos_token_ids(fields, default, vocab_size)?,
                None => Vec::new(),
            },
            tied: match self.tied {
                Some(default) => fields.flag("tie_word_embeddings", default)?,
                None => false,
            },
        })
    }

    /// Query heads and key heads.
    fn heads(&self, fields: &Fields<'_>, hidden: usize) -> Result<(usize, usize)> {
        let (name, default) = self.heads;
        let heads = fields.size(name, default, COUNT)?;
        let whole = match self.head_dim {
            HeadDim::Whole => true,
            HeadDim::Said { whole } | HeadDim::Default(_, whole) => whole,
        };
        if whole && !hidden.is_multiple_of(heads) {
            let expected = format!("a divisor of hidden_size, {hidden}");
            return Err(fields.value(name, heads, expected));
        }
        let Some((keys_name, default)) = self.kv_heads else {
            return Ok((heads, heads));
        };
        let keys = match (fields.is_null(keys_name), fields.has(keys_name)) {
            (true, _) => heads,
            (false, true) => fields.size(keys_name, heads, COUNT)?,
            (false, false) => default.unwrap_or(heads),
        };
        if !heads.is_multiple_of(keys) {
            let expected = format!("a divisor of {name}, {heads}");
            return Err(fields.value(keys_name, keys, expected));
        }
        Ok((heads, keys))
    }

    fn head_dim(&self, fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
        const NAME: &str = "head_dim";
        let said = || fields.size(NAME, 0, 1..=1 << 14);
        match self.head_dim {
            HeadDim::Default(default, _) => fields.size(NAME, default, 2..=1 << 14),
            HeadDim::Said { .. } if fields.get(NAME).is_some() => said(),
            _ if heads > hidden => Err(fields.value(self.heads.0, heads, "at most hidden_size")),
            _ => Ok(hidden / heads),
        }
    }
}

impl Sizes {
    /// head_dim^−½.
    pub(super) fn scaling(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Attention without norms, rotation, window or caps, which a family adds where it has them.
    pub(super) fn attention(
        &self,
        module: &'static str,
        projections: ProjectionsForm,
        out: LinearForm,
    ) -> AttentionForm {
        AttentionForm {
            module,
            norm: None,
            projections,
            qk_norms: None,
            qk_norm_width: NormWidth::Head,
            norm_after_rope: false,
            rope: None,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window: None,
            scaling: self.scaling(),
            rounded_scores: true,
            softcap: None,
            out,
            post_norm: None,
        }
    }

    /// A LayerNorm with a bias.
    pub(super) fn layer_norm(&self, name: &str) -> NormForm {
        self.norm(name, NormKind::Layer { bias: true })
    }

    /// A norm with the model's ε.
    pub(super) fn norm(&self, name: &str, kind: NormKind) -> NormForm {
        NormForm {
            name: name.into(),
            kind,
            eps: self.eps,
        }
    }

    /// A config of these sizes, with layers that are all alike.
    pub(super) fn config(self, model_type: &str, decoder: DecoderForm, block: BlockForm) -> Config {
        Config {
            model_type: model_type.into(),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden,
            intermediate_size: self.width,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            head_dim: self.head_dim,
            max_position_embeddings: self.positions,
            tie_word_embeddings: self.tied,
            bos_token_id: self.bos,
            eos_token_ids: self.eos,
            multimodal: false,
            decoder,
            blocks: vec![block; self.layers],
        }
    }
}

impl Config {
    /// The same with `change` made to each layer.
    pub(super) fn with_layers(mut self, change: impl Fn(usize, &mut BlockForm)) -> Self {
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            change(layer, block);
        }
        self
    }
}

/// The token before every text, or `default` where the config does not say it.
pub(super) fn bos_token_id(fields: &Fields<'_>, default: Option<u32>) -> Result<Option<u32>> {
    if fields.is_null("bos_token_id") {
        return Ok(None);
    }
    let said = fields.typed("bos_token_id", "a token id", |v| whole(v))?;
    Ok(match said {
        Some(id) => id.as_u64().and_then(|id| u32::try_from(id).ok()),
        None => default,
    })
}

/// The tokens that end a text, those beyond the vocabulary left out; `default` where the config does not say it.
fn eos_token_ids(fields: &Fields<'_>, default: &[u32], vocab_size: usize) -> Result<Vec<u32>> {
    let mut ids = match fields.token_ids("eos_token_id")? {
        Some(ids) => ids,
        None if fields.has("eos_token_id") => Vec::new(),
        None => default.to_vec(),
    };
    ids.retain(|id| (*id as usize) < vocab_size);
    Ok(ids)
}

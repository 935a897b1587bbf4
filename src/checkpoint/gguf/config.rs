//! config.json as the metadata of a GGUF file has it.
//!
//! Numbers that the file has in f32 are taken as the shortest decimal that means them, as they were before they were rounded:
//! ε is 1e-6, and not 9.999999974752427e-7.

use serde_json::{Map, Value, json};

use super::super::error::{Error, Result};
use super::Gguf;

/// What changes a model and is in no field of its family's config: keys after the architecture's name, and the number that
/// changes nothing.
const NEUTRAL: [(&str, f64); 8] = [
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("embedding_scale", 0.0),
    ("logit_scale", 0.0),
    ("residual_scale", 0.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_attn_factor", 1.0),
];

impl Gguf {
    /// The config that Hugging Face's checkpoint of this model would have.
    ///
    /// # Errors
    ///
    /// [`Error::FieldType`], [`Error::FieldValue`] and [`Error::UnsupportedOption`].
    pub(super) fn config(&self) -> Result<Map<String, Value>> {
        self.refuse_options()?;
        let mut config = Map::new();
        let mut set = |name: &str, value: Value| config.insert(name.into(), value);
        set("model_type", self.architecture.model_type.into());
        for (field, key) in self.architecture.fields {
            match self.same_for_all_layers(key)?.or(self.default(key)?) {
                Some(value) => set(field, value),
                None => return Err(self.metadata.wrong(&self.architecture.key(key), "a number")),
            };
        }
        set("vocab_size", self.vocabulary()?.into());
        set("tie_word_embeddings", (!self.has("output.weight")).into());
        // SentencePiece's own, where it is such a tokenizer and they are left out.
        let sentence_piece = self.metadata.string("tokenizer.ggml.model")? == Some("llama");
        for (field, key, default) in [("bos_token_id", "bos", 1), ("eos_token_id", "eos", 2)] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            let id = self.metadata.unsigned(&key)?;
            set(field, id.or(sentence_piece.then_some(default)).into());
        }
        set("torch_dtype", "float32".into());
        match self.architecture.name {
            "llama" => self.llama(&mut config)?,
            "qwen2" | "qwen3" => config.extend(object(json!({"use_sliding_window": false}))),
            "gemma" => config.extend(object(json!({"hidden_act": "gelu_pytorch_tanh"}))),
            "gemma2" => self.gemma2(&mut config)?,
            "gemma3" => self.gemma3(&mut config)?,
            "falcon" => self.falcon(&mut config),
            _ => {}
        }
        self.rope(&mut config)?;
        Ok(config)
    }

    /// Refuses what is not computed here.
    fn refuse_options(&self) -> Result<()> {
        let unsupported = |key: String, found: String, supported| Error::UnsupportedOption {
            path: self.metadata.path().into(),
            field: key,
            found,
            supported,
        };
        for (name, neutral) in NEUTRAL {
            let key = self.architecture.key(name);
            if let Some(number) = self
                .metadata
                .number(&key)?
                .filter(|number| *number != neutral)
            {
                return Err(unsupported(key, number.to_string(), "models without it"));
            }
        }
        let key = self.architecture.key("attention.causal");
        if self.metadata.flag(&key)? == Some(false) {
            return Err(unsupported(key, "false".into(), "causal attention (true)"));
        }
        let [keys, values] = ["attention.key_length", "attention.value_length"]
            .map(|name| self.architecture.key(name));
        match (
            self.metadata.unsigned(&keys)?,
            self.metadata.unsigned(&values)?,
        ) {
            (Some(key), Some(value)) if key != value => Err(unsupported(
                values,
                value.to_string(),
                "values as long as keys",
            )),
            _ => Ok(()),
        }
    }

    /// A number of the architecture, which may be given for each layer, but must be the same for all.
    pub(super) fn same_for_all_layers(&self, name: &str) -> Result<Option<Value>> {
        let key = self.architecture.key(name);
        if !self.metadata.is_array(&key) {
            let number = self.metadata.number(&key)?;
            return Ok(number.map(written));
        }
        let numbers = self.metadata.unsigneds(&key)?.unwrap_or_default();
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|number| number == first) => {
                Ok(Some((*first).into()))
            }
            _ => Err(self.metadata.wrong(&key, "the same for every layer")),
        }
    }

    /// What llama.cpp takes where a field is left out, or `None` where it must be there.
    fn default(&self, name: &str) -> Result<Option<Value>> {
        let heads = || self.same_for_all_layers("attention.head_count");
        Ok(match name {
            "attention.head_count_kv" => heads()?,
            "attention.key_length" | "rope.dimension_count" => {
                let hidden = self.same_for_all_layers("embedding_length")?;
                match [hidden, heads()?].map(|size| size.and_then(|size| size.as_u64())) {
                    [_, Some(0)] => {
                        let key = self.architecture.key("attention.head_count");
                        return Err(self.metadata.wrong(&key, "at least 1"));
                    }
                    [Some(hidden), Some(heads)] => Some((hidden / heads).into()),
                    _ => None,
                }
            }
            "rope.freq_base" => Some(10_000.into()),
            _ => None,
        })
    }

    /// A number of the architecture.
    fn number(&self, name: &str) -> Result<Option<Value>> {
        let number = self.metadata.number(&self.architecture.key(name))?;
        Ok(number.map(written))
    }

    /// The rows of the embedding.
    fn vocabulary(&self) -> Result<usize> {
        const NAME: &str = "token_embd.weight";
        let embedding = self.tensors().find(|(name, _)| *name == NAME);
        match embedding {
            Some((_, tensor)) => Ok(tensor.rows()),
            None => Err(Error::NotGguf {
                path: self.metadata.path().into(),
                reason: format!("it has no tensor {NAME}"),
            }),
        }
    }

    /// Llama, Mistral or Mixtral, which GGUF calls alike.
    fn llama(&self, config: &mut Map<String, Value>) -> Result<()> {
        let set = |config: &mut Map<_, _>, name: &str, value| config.insert(name.into(), value);
        let experts = self
            .metadata
            .unsigned(&self.architecture.key("expert_count"))?;
        if let Some(experts) = experts.filter(|experts| *experts > 0) {
            set(config, "model_type", "mixtral".into());
            set(config, "num_local_experts", experts.into());
            if let Some(used) = self.number("expert_used_count")? {
                set(config, "num_experts_per_tok", used);
            }
            set(config, "sliding_window", Value::Null);
            return Ok(());
        }
        set(
            config,
            "attention_bias",
            self.has("blk.0.attn_q.bias").into(),
        );
        set(config, "mlp_bias", self.has("blk.0.ffn_up.bias").into());
        Ok(())
    }

    /// What llama.cpp takes where the file does not say it.
    fn gemma2(&self, config: &mut Map<String, Value>) -> Result<()> {
        const LAYERS_OF_27B: u64 = 46;
        self.gemma(config, LAYERS_OF_27B)?;
        config.extend(object(json!({
            "attn_logit_softcapping": self.number("attn_logit_softcapping")?.unwrap_or(50.0.into()),
            "final_logit_softcapping": self.number("final_logit_softcapping")?.unwrap_or(30.0.into()),
            "sliding_window": self.number("attention.sliding_window")?.unwrap_or(4096.into()),
        })));
        Ok(())
    }

    /// What llama.cpp takes where the file does not say it.
    fn gemma3(&self, config: &mut Map<String, Value>) -> Result<()> {
        const LAYERS_OF_27B: u64 = 62;
        self.gemma(config, LAYERS_OF_27B)?;
        let cap = self.number("final_logit_softcapping")?;
        let local_base = self.number("rope.freq_base_swa")?;
        config.extend(object(json!({
            "final_logit_softcapping": cap.filter(|cap| cap.as_f64() != Some(0.0)),
            "rope_local_base_freq": local_base.unwrap_or(10_000.0.into()),
        })));
        const PATTERN: &str = "attention.sliding_window_pattern";
        let key = self.architecture.key(PATTERN);
        let layers = self.layers()?;
        let slides: Vec<bool> = if self.metadata.is_array(&key) {
            self.metadata.flags(&key)?.unwrap_or_default()
        } else {
            let period = self.metadata.unsigned(&key)?.unwrap_or(6);
            (1..=layers)
                .map(|layer| period == 0 || layer % period != 0)
                .collect()
        };
        let kind = |slides| {
            if slides {
                "sliding_attention"
            } else {
                "full_attention"
            }
        };
        match self
            .metadata
            .unsigned(&self.architecture.key("attention.sliding_window"))?
        {
            Some(window @ 1..) => {
                let kinds: Vec<_> = slides.into_iter().map(kind).collect();
                config.extend(object(
                    json!({"layer_types": kinds, "sliding_window": window}),
                ));
            }
            _ => {
                let kinds = vec![kind(false); usize::try_from(layers).unwrap_or(0).min(1 << 12)];
                config.insert("layer_types".into(), kinds.into());
            }
        }
        Ok(())
    }

    /// What Gemma 2 and 3 share. In the files of 27B, which are told by their layers, scores are scaled by the width of the
    /// stream and not by that of a head.
    fn gemma(&self, config: &mut Map<String, Value>, layers_of_27b: u64) -> Result<()> {
        config.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
        let size = |name: &str| -> Result<u64> {
            Ok(self
                .metadata
                .unsigned(&self.architecture.key(name))?
                .unwrap_or(0))
        };
        let (hidden, heads) = (
            size("embedding_length")?,
            size("attention.head_count")?.max(1),
        );
        let scalar = if self.layers()? == layers_of_27b {
            hidden / heads
        } else {
            match size("attention.key_length")? {
                0 => hidden / heads,
                length => length,
            }
        };
        config.insert("query_pre_attn_scalar".into(), scalar.into());
        Ok(())
    }

    fn falcon(&self, config: &mut Map<String, Value>) {
        let new = self.has("blk.0.attn_norm_2.weight");
        config.extend(object(json!({
            "new_decoder_architecture": new,
            "multi_query": !new,
            "parallel_attn": true,
            "alibi": false,
            "bias": self.has("blk.0.attn_qkv.bias"),
        })));
    }

    fn layers(&self) -> Result<u64> {
        let key = self.architecture.key("block_count");
        match self.metadata.unsigned(&key)? {
            Some(layers) if layers <= 1 << 12 => Ok(layers),
            _ => Err(self.metadata.wrong(&key, "a number of layers up to 4096")),
        }
    }

    /// Which share of a head rotates, and how angles are scaled.
    fn rope(&self, config: &mut Map<String, Value>) -> Result<()> {
        let key = self.architecture.key("rope.dimension_count");
        let head = config.get("head_dim").and_then(Value::as_u64);
        if let (Some(dims), Some(head)) = (self.metadata.unsigned(&key)?, head)
            && dims != head
        {
            return Err(self
                .metadata
                .wrong(&key, format!("{head}, as many as a head has")));
        }
        if let Some(scaling) = self.rope_scaling()? {
            config.insert("rope_scaling".into(), scaling);
        }
        Ok(())
    }

    /// `rope_scaling` of config.json.
    fn rope_scaling(&self) -> Result<Option<Value>> {
        let number = |name: &str| self.number(&format!("rope.scaling.{name}"));
        let key = self.architecture.key("rope.scaling.type");
        let factor = number("factor")?.or(self.number("rope.scale_linear")?);
        let factor = factor.filter(|factor| factor.as_f64() != Some(0.0));
        match (self.metadata.string(&key)?.unwrap_or("linear"), factor) {
            ("none", _) | ("linear", None) => super::rope_factors::scaling(self),
            ("linear", Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
            ("yarn", factor) => {
                let mut scaling = object(json!({"rope_type": "yarn", "factor": factor}));
                for (field, name) in [
                    (
                        "original_max_position_embeddings",
                        "original_context_length",
                    ),
                    ("beta_fast", "yarn_beta_fast"),
                    ("beta_slow", "yarn_beta_slow"),
                ] {
                    scaling.extend(number(name)?.map(|value| (field.into(), value)));
                }
                Ok(Some(scaling.into()))
            }
            _ => Err(self.metadata.wrong(&key, "none, linear or yarn")),
        }
    }
}

/// The fields of an object.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A number as config.json would have it.
fn written(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 2f64.powi(53) {
        return (number as i64).into();
    }
    let narrow = number as f32;
    if f64::from(narrow) == number {
        return narrow.to_string().parse::<f64>().unwrap_or(number).into();
    }
    number.into()
}

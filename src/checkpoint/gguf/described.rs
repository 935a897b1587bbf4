//! The other way: what a GGUF file says of a model of Hugging Face's.

use super::architecture::Architecture;
use super::rope_factors::{self, Llama3};
use super::writer::Values;
use crate::checkpoint::config::Config;
use crate::checkpoint::form::{AttentionForm, MapsForm, RopeForm, RopeScaling};

/// The values that say the config of a model of this architecture, as far as such a file can.
pub(super) fn values(architecture: &Architecture, config: &Config) -> Values {
    let mut values = Values::default();
    values.text("general.architecture", architecture.name);
    values.text("general.type", "model");
    let attention = &config.blocks[config.num_hidden_layers - 1].attention;
    let mut described = Described {
        architecture,
        values,
    };
    described.sizes(config, attention);
    described.rope(attention.rope.as_ref());
    described.windows(config);
    if let MapsForm::Experts(experts) = &config.blocks[0].inner.maps {
        described.count("expert_count", experts.experts.len());
        described.count("expert_used_count", experts.top_k);
    }
    if let Some(cap) = attention.softcap {
        described.number("attn_logit_softcapping", cap);
    }
    if let Some(cap) = config.decoder.softcap {
        described.number("final_logit_softcapping", cap);
    }
    described.values
}

struct Described<'a> {
    architecture: &'a Architecture,
    values: Values,
}

impl Described<'_> {
    fn count(&mut self, key: &str, number: usize) {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.values.count(&self.architecture.key(key), number);
    }

    fn number(&mut self, key: &str, number: f64) {
        self.values
            .number(&self.architecture.key(key), number as f32);
    }

    fn sizes(&mut self, config: &Config, attention: &AttentionForm) {
        self.count("vocab_size", config.vocab_size);
        for (_, key) in self.architecture.fields {
            match *key {
                "embedding_length" => self.count(key, config.hidden_size),
                "block_count" => self.count(key, config.num_hidden_layers),
                "feed_forward_length" => self.count(key, config.intermediate_size),
                "attention.head_count" => self.count(key, config.num_attention_heads),
                "attention.head_count_kv" => self.count(key, config.num_key_value_heads),
                "context_length" => self.count(key, config.max_position_embeddings),
                "attention.key_length" => {
                    self.count(key, attention.head_dim);
                    self.count("attention.value_length", attention.head_dim);
                }
                "attention.layer_norm_rms_epsilon" | "attention.layer_norm_epsilon" => {
                    self.number(key, config.norm_eps());
                }
                // With the rest of it.
                _ => {}
            }
        }
    }

    fn rope(&mut self, rope: Option<&RopeForm>) {
        let Some(RopeForm { rope, dims, .. }) = rope else {
            return;
        };
        self.count("rope.dimension_count", *dims);
        self.number("rope.freq_base", rope.theta);
        let kind = self.architecture.key("rope.scaling.type");
        match rope.scaling {
            RopeScaling::Linear { factor } if factor != 1.0 => {
                self.values.text(&kind, "linear");
                self.number("rope.scaling.factor", factor);
            }
            RopeScaling::Yarn {
                factor,
                fast,
                slow,
                original,
                ..
            } => {
                self.values.text(&kind, "yarn");
                self.number("rope.scaling.factor", factor);
                self.count("rope.scaling.original_context_length", original as usize);
                self.number("rope.scaling.yarn_beta_fast", fast);
                self.number("rope.scaling.yarn_beta_slow", slow);
            }
            // That of Llama 3 is a tensor.
            RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => {}
        }
    }

    /// The window of those layers that have one, and for Gemma 3 which they are and how they rotate.
    fn windows(&mut self, config: &Config) {
        let attentions = || config.blocks.iter().map(|block| &block.attention);
        let Some(local) = attentions().find(|attention| attention.window.is_some()) else {
            return;
        };
        self.count("attention.sliding_window", local.window.unwrap_or_default());
        if self.architecture.name != "gemma3" {
            return;
        }
        if let Some(rope) = &local.rope {
            self.number("rope.freq_base_swa", rope.rope.theta);
        }
        let slides: Vec<bool> = attentions()
            .map(|attention| attention.window.is_some())
            .collect();
        let period = slides
            .iter()
            .position(|slides| !slides)
            .map_or(0, |first| first + 1);
        let periodic =
            |(layer, &slides): (usize, &bool)| slides == (period == 0 || (layer + 1) % period != 0);
        let key = "attention.sliding_window_pattern";
        if slides.iter().enumerate().all(periodic) {
            self.count(key, period);
        } else {
            self.values.flags(&self.architecture.key(key), &slides);
        }
    }
}

/// The divisors of angles, `[dims / 2]`, where a config's scaling is one of Llama 3's own.
pub(super) fn rope_divisors(config: &Config) -> Option<Vec<f64>> {
    let RopeForm { rope, dims, .. } = config.blocks[0].attention.rope?;
    let RopeScaling::Llama3 {
        factor,
        low,
        high,
        original,
    } = rope.scaling
    else {
        return None;
    };
    let scaling = Llama3 {
        factor,
        low,
        high,
        original,
    };
    if !scaling.is_common() {
        return None;
    }
    let divisor = |pair| rope_factors::divisor_of(pair, dims, rope.theta, &scaling);
    Some((0..dims / 2).map(divisor).collect())
}

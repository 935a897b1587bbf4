//! The operations of a pass, each between two points that have a name.

use super::Recording;
use crate::kernels::activation::Activation;
use crate::model::{Attention, Model, RmsNorm};
use crate::tensor::Tensor;

/// An operation of a model and the names of what it takes in.
pub(super) struct Operation<'m> {
    pub(super) kind: Kind<'m>,
    pub(super) inputs: Vec<String>,
}

pub(super) enum Kind<'m> {
    Embedding,
    Norm(&'m RmsNorm),
    Product(&'m Tensor),
    Logits(&'m Tensor, Option<f64>),
    Rope(&'m Attention),
    Mix(&'m Attention),
    Activation(Activation),
    /// An activation and a product in one, for engines that fuse them.
    Gated(Activation),
    Times,
    Plus,
}

impl<'m> Operation<'m> {
    /// What gives the tensor `name` in `model`, or `None` where no tensor is called so. Where `other` has not what it takes
    /// in, it may be this operation and the one before in one.
    pub(super) fn of(model: &'m Model, name: &str, other: &Recording) -> Option<Self> {
        let last = model.layers().len() - 1;
        let (kind, inputs) = match name {
            "model.embed_tokens" => (Kind::Embedding, vec![]),
            "model.norm" => (
                Kind::Norm(model.norm()),
                vec![format!("model.layers.{last}")],
            ),
            "lm_head" => {
                let logits = Kind::Logits(model.lm_head(), model.final_softcap());
                (logits, vec!["model.norm".to_owned()])
            }
            _ => {
                let rest = name.strip_prefix("model.layers.")?;
                let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
                return Self::of_layer(model, layer.parse().ok()?, part, other);
            }
        };
        Some(Self { kind, inputs })
    }

    fn of_layer(model: &'m Model, layer: usize, part: &str, other: &Recording) -> Option<Self> {
        let block = model.layers().get(layer)?;
        let (attention, inner, outer) = (&block.attention, &block.inner, &block.outer);
        let x = match layer.checked_sub(1) {
            None => "model.embed_tokens".to_owned(),
            Some(before) => format!("model.layers.{before}"),
        };
        let [before_norm, before_rope, before_scores] = if attention.norm_after_rope {
            ["rope", "proj", "norm"]
        } else {
            ["proj", "norm", "rope"]
        };
        let of = |part: &str| format!("model.layers.{layer}.{part}");
        let head = |head: char, after: &str| of(&format!("self_attn.{head}_{after}"));
        let (kind, inputs) = match part {
            "input_layernorm" => (Kind::Norm(&attention.input_layernorm), vec![x]),
            "self_attn.q_proj" => (
                Kind::Product(&attention.q_proj),
                vec![of("input_layernorm")],
            ),
            "self_attn.k_proj" => (
                Kind::Product(&attention.k_proj),
                vec![of("input_layernorm")],
            ),
            "self_attn.v_proj" => (
                Kind::Product(&attention.v_proj),
                vec![of("input_layernorm")],
            ),
            "self_attn.q_norm" => (Kind::Norm(&attention.q_norm), vec![head('q', before_norm)]),
            "self_attn.k_norm" => (Kind::Norm(&attention.k_norm), vec![head('k', before_norm)]),
            "self_attn.q_rope" => (Kind::Rope(attention), vec![head('q', before_rope)]),
            "self_attn.k_rope" => (Kind::Rope(attention), vec![head('k', before_rope)]),
            "self_attn.mixed" => {
                let [q, k] = ['q', 'k'].map(|h| head(h, before_scores));
                (Kind::Mix(attention), vec![q, k, head('v', "proj")])
            }
            "self_attn.o_proj" => (
                Kind::Product(&attention.o_proj),
                vec![of("self_attn.mixed")],
            ),
            "post_attention_layernorm" => {
                let norm = Kind::Norm(&attention.post_attention_layernorm);
                (norm, vec![of("self_attn.o_proj")])
            }
            "residual_mid" => (Kind::Plus, vec![x, of("post_attention_layernorm")]),
            "pre_feedforward_layernorm" => {
                let norm = Kind::Norm(&inner.pre_feedforward_layernorm);
                (norm, vec![of("residual_mid")])
            }
            "mlp.gate_proj" => {
                let z = of("pre_feedforward_layernorm");
                (Kind::Product(&inner.gate_proj), vec![z])
            }
            "mlp.up_proj" => (
                Kind::Product(&inner.up_proj),
                vec![of("pre_feedforward_layernorm")],
            ),
            "mlp.act_fn" => (
                Kind::Activation(inner.activation),
                vec![of("mlp.gate_proj")],
            ),
            "mlp.product" if !other.contains(&of("mlp.act_fn")) => {
                let gated = Kind::Gated(inner.activation);
                (gated, vec![of("mlp.gate_proj"), of("mlp.up_proj")])
            }
            "mlp.product" => (Kind::Times, vec![of("mlp.act_fn"), of("mlp.up_proj")]),
            "mlp.down_proj" => (Kind::Product(&outer.down_proj), vec![of("mlp.product")]),
            "post_feedforward_layernorm" => {
                let norm = Kind::Norm(&outer.post_feedforward_layernorm);
                (norm, vec![of("mlp.down_proj")])
            }
            "" => {
                let g = of("post_feedforward_layernorm");
                (Kind::Plus, vec![of("residual_mid"), g])
            }
            _ => return None,
        };
        Some(Self { kind, inputs })
    }

    /// Whether a token's row takes rows of the tokens before it.
    pub(super) fn looks_back(&self) -> bool {
        matches!(self.kind, Kind::Mix(_))
    }
}

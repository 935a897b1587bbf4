//! What a model is made of and what its tensors are called: the data that a [family](super::families) fills in and a
//! [`Model`](crate::Model) is built from.
//!
//! A part is named as the Hugging Face module is, relative to its layer. `{name}.weight` is its tensor, `{name}` its
//! output in a recording, the key of its change in a patch and the target of an adapter.

use crate::kernels::activation::Activation;

/// A norm over the last axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NormForm {
    pub(crate) name: String,
    pub(crate) kind: NormKind,
    /// ε.
    pub(crate) eps: f64,
}

/// What a norm does with its input and its weight w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// n(u) ⊙ m with n(u) = u / √(mean(u²) + ε), where m is w or 1 + w; n(u) is rounded before it is scaled, or only the
    /// product is.
    Rms {
        unit_offset: bool,
        rounded_first: bool,
    },
    /// (u − mean(u)) / √(var(u) + ε) ⊙ w, plus a bias where there is one.
    Layer { bias: bool },
}

impl NormKind {
    /// Gemma's RMSNorm.
    pub(crate) const GEMMA: Self = Self::Rms {
        unit_offset: true,
        rounded_first: false,
    };
    /// An RMSNorm as it is written down, by w and rounded once.
    pub(crate) const PLAIN: Self = Self::Rms {
        unit_offset: false,
        rounded_first: false,
    };
    /// Llama's RMSNorm.
    pub(crate) const LLAMA: Self = Self::Rms {
        unit_offset: false,
        rounded_first: true,
    };
}

/// A linear map.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LinearForm {
    pub(crate) name: String,
    pub(crate) bias: bool,
    /// Whether the weight is stored `[in, out]`, as GPT-2's `Conv1D` does, and not `[out, in]`.
    pub(crate) transposed: bool,
    /// Whether W x is rounded before the bias is added, as Falcon's `FalconLinear` does.
    pub(crate) rounded_first: bool,
}

impl LinearForm {
    /// A map without a bias.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            bias: false,
            transposed: false,
            rounded_first: false,
        }
    }

    /// The same with a bias, where there is one.
    pub(crate) fn biased(self, bias: bool) -> Self {
        Self { bias, ..self }
    }
}

/// Where queries, keys and values come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ProjectionsForm {
    /// A map each.
    Separate([LinearForm; 3]),
    /// Rows of one map.
    Fused(LinearForm, FusedOrder),
}

/// The order of rows in a fused map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FusedOrder {
    /// All queries, all keys, all values.
    Concatenated,
    /// For each key head its queries, its key and its value, as in Falcon.
    Grouped,
}

/// A of Theorem 5.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttentionForm {
    /// The module, such as `self_attn`: points inside it that no module outputs are called after it.
    pub(crate) module: &'static str,
    pub(crate) norm: Option<NormForm>,
    pub(crate) projections: ProjectionsForm,
    /// Of q and k, each over a head, or over all heads.
    pub(crate) qk_norms: Option<[NormForm; 2]>,
    pub(crate) qk_norm_width: NormWidth,
    /// Whether the norms of q and k follow the rotation, which no family does.
    pub(crate) norm_after_rope: bool,
    pub(crate) rope: Option<RopeForm>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// The tokens that a token sees, itself counted; all before it where there is none.
    pub(crate) window: Option<usize>,
    /// What scores are multiplied by.
    pub(crate) scaling: f64,
    /// Whether scores are rounded to the compute type, as everywhere but in GPT-J.
    pub(crate) rounded_scores: bool,
    /// Scores s become cap · tanh(s / cap).
    pub(crate) softcap: Option<f64>,
    pub(crate) out: LinearForm,
    pub(crate) post_norm: Option<NormForm>,
}

/// What a norm of q or k goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormWidth {
    Head,
    AllHeads,
}

/// The rotation of q and k.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RopeForm {
    pub(crate) rope: Rope,
    /// How many of a head's numbers are rotated, the first ones.
    pub(crate) dims: usize,
    pub(crate) pairing: RopePairing,
    /// Whether it is computed in the type of sums and rounded once, as OLMo 2 does, or every product is rounded.
    pub(crate) rounded_once: bool,
}

/// Which elements of a head RoPE rotates together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RopePairing {
    /// Element i with element i + dims/2.
    #[default]
    Halves,
    /// Element 2i with element 2i + 1, as in GPT-J.
    Interleaved,
}

/// The parameters of a rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base: pair k of d numbers turns by `position · theta^(−2k / d)`, but for the scaling.
    pub theta: f64,
    /// What the angles are scaled by.
    pub scaling: RopeScaling,
}

/// How the angles of a rotary position embedding are scaled for longer sequences: Hugging Face's `rope_type`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// `linear`: positions are divided by the factor; `default` is a factor of 1.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// `llama3`: angles of long waves are divided by the factor, of short ones not, between the two they are blended.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Waves longer than `original / low` are long.
        low: f64,
        /// Waves shorter than `original / high` are short.
        high: f64,
        /// The length of sequence that the model was first trained for.
        original: f64,
    },
    /// `yarn`: pairs that turn less than `slow` times in the original length are divided, those that turn more than
    /// `fast` times are not, those between are blended by their index; cos and sin are scaled by `attention`.
    Yarn {
        /// The divisor.
        factor: f64,
        /// Turns from which on a pair keeps its angle.
        fast: f64,
        /// Turns up to which a pair's angle is divided.
        slow: f64,
        /// Whether the two bounds are rounded to whole pairs.
        truncate: bool,
        /// What cos and sin are multiplied by.
        attention: f64,
        /// The length of sequence that the model was first trained for.
        original: f64,
    },
}

impl Rope {
    /// Positions divided by `factor`.
    pub const fn linear(theta: f64, factor: f64) -> Self {
        Self {
            theta,
            scaling: RopeScaling::Linear { factor },
        }
    }
}

/// f of Theorem 5.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InnerForm {
    /// The norm before it; without one it takes what attention's own norm gives in a [parallel](Sum::Parallel) block, and v
    /// itself in a sequential one.
    pub(crate) norm: Option<NormForm>,
    /// The module, such as `mlp`.
    pub(crate) module: &'static str,
    pub(crate) maps: MapsForm,
    pub(crate) activation: Activation,
    /// Length of h.
    pub(crate) width: usize,
}

/// The first linear maps of an inner function.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MapsForm {
    /// h = act(W_gate z) ⊙ (W_up z).
    Gated { gate: LinearForm, up: LinearForm },
    /// The same, with the rows of W_gate before those of W_up in one map.
    Fused(LinearForm),
    /// h = act(W_up z).
    Plain(LinearForm),
    /// Gated maps, of which a router chooses `top_k` for a token.
    Experts(ExpertsForm),
}

/// Experts, as Mixtral has them: the softmax goes over all of them, the gates are those of the `top_k` largest, divided by
/// their sum.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExpertsForm {
    pub(crate) router: LinearForm,
    /// gate and up of each.
    pub(crate) experts: Vec<[LinearForm; 2]>,
    pub(crate) top_k: usize,
    /// Whether the gates are divided by their sum.
    pub(crate) renormalised: bool,
    /// The tensors of a checkpoint in which one holds the maps of all experts.
    pub(crate) fused: FusedExperts,
}

/// Experts as transformers 5 has them in memory, and stores where it is told not to give them their published names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FusedExperts {
    /// `[experts, hidden]`
    pub(crate) router: &'static str,
    /// `[experts, 2 · intermediate, hidden]`: the rows of each expert's gate before those of its up.
    pub(crate) gate_up: &'static str,
    /// `[experts, hidden, intermediate]`
    pub(crate) down: &'static str,
}

/// g of Theorem 5.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OuterForm {
    /// The last linear map; of every expert, where there are experts.
    pub(crate) down: Vec<LinearForm>,
    pub(crate) post_norm: Option<NormForm>,
}

/// How a block adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    /// v = x + A(C, x), T = v + g(f(v)).
    Sequential,
    /// T = (g(f(x)) + A(C, x)) + x.
    Parallel,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BlockForm {
    pub(crate) attention: AttentionForm,
    pub(crate) inner: InnerForm,
    pub(crate) outer: OuterForm,
    pub(crate) sum: Sum,
}

/// What is around the blocks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderForm {
    /// The path of the layers: `model.layers`.
    pub(crate) layers: &'static str,
    /// The path of the embedding.
    pub(crate) embed: &'static str,
    /// Whether its rows are multiplied by √hidden.
    pub(crate) embed_scaled: bool,
    /// The path of the learned positions, and how far the row of a position is from it.
    pub(crate) positions: Option<LearnedPositions>,
    /// The norm before the head, under its whole path.
    pub(crate) norm: NormForm,
    /// The head, under its whole path.
    pub(crate) head: LinearForm,
    /// Logits l become cap · tanh(l / cap).
    pub(crate) softcap: Option<f64>,
    /// What llama.cpp calls the architecture.
    pub(crate) gguf: &'static str,
}

/// Positions that are looked up and added to the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LearnedPositions {
    /// The path of the table.
    pub(crate) table: &'static str,
    /// The path of the sum.
    pub(crate) sum: &'static str,
    /// What is added to a position to find its row, which is 0 in every family here.
    pub(crate) offset: usize,
}

//! Known bugs: a model that is wrong in one named way.
//!
//! Each is one that an engine had ([docs/bugs.md](https://docs.rs/crate/context-patch/latest/source/docs/bugs.md) says
//! which). A recording of such a model shows whether a comparison would have found the bug.

mod apply;
mod effect;

use std::fmt;
use std::str::FromStr;

macro_rules! known_bugs {
    ($($bug:ident $name:literal $meaning:literal)*) => {
        /// A known bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum KnownBug {
            $(#[doc = $meaning] $bug,)*
        }

        impl KnownBug {
            /// All of them, in the order in which a pass meets them.
            pub const ALL: &[Self] = &[$(Self::$bug),*];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }

            /// What is wrong, in a few words.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$bug => $meaning,)*
                }
            }
        }
    };
}

known_bugs! {
    PixelsBgr "pixels-bgr" "pictures have their colours in reverse, blue first"
    PixelsClip "pixels-clip" "pixels are normalised by the mean and deviation of CLIP, not by those of the config"
    EmbeddingUnscaled "embedding-unscaled" "the embedding is not multiplied by √hidden"
    EmbeddingScaleType "embedding-scale-type" "√hidden, which scales the embedding, is rounded to another type"
    ImagesScaled "images-scaled" "what images put in the place of embeddings is multiplied by √hidden, as embeddings are"
    MissingBos "missing-bos" "the token that begins the sequence is missing"
    PositionsPlus1 "positions-plus-1" "a token has the learned position of the next one"
    PositionsPlus2 "positions-plus-2" "a token has the learned position of the next but one, as in OPT"
    NormWeight "norm-weight" "norms scale by w, not by 1 + w, or the reverse"
    NormRounded "norm-rounded" "norms round before they scale"
    NormRoundedOnce "norm-rounded-once" "norms round only after they scale"
    NormEps "norm-eps" "ε of norms is 1e-5 in the place of 1e-6, or the reverse"
    BranchNormShared "branch-norm-shared" "the MLP's norm has the weights of attention's"
    QkPermuted "qk-permuted" "rows of q and k are permuted, as in Llama's GGUF files"
    QkvBiasMissing "qkv-bias-missing" "q, k and v lack their biases"
    KeyBiasMissing "key-bias-missing" "k lacks its bias"
    QkvOrder "qkv-order" "the fused q, k and v are split by group, not q before k before v, or the reverse"
    NormAfterRope "norm-after-rope" "q and k are normalised after RoPE, not before"
    RopeInterleaved "rope-interleaved" "RoPE turns neighbours, not halves"
    RopeHalves "rope-halves" "RoPE turns halves, not neighbours"
    RopeWholeHead "rope-whole-head" "RoPE turns whole heads, not the part that the config says"
    RopeDefaultTheta "rope-default-theta" "RoPE turns with a θ of 10000, whatever the config says"
    RopeLocalTheta "rope-local-theta" "full layers turn with the θ of sliding ones"
    RopeNoFactor "rope-no-factor" "RoPE leaves out the factor of rope_scaling"
    ScaleHeadDim "scale-head-dim" "scores are scaled by head_dim, not by query_pre_attn_scalar"
    ScaleHidden "scale-hidden" "scores are scaled by hidden_size / heads, which is not head_dim"
    WindowMinus1 "window-minus-1" "sliding layers see one token too few"
    WindowPlus1 "window-plus-1" "sliding layers see one token too many"
    WindowMissing "window-missing" "sliding layers see all tokens"
    ImagesCausal "images-causal" "tokens of images see no token behind them"
    WindowEverywhere "window-everywhere" "full layers have a window"
    SoftCapping "soft-capping" "scores and logits are soft-capped, as in Gemma 2"
    SoftCappingMissing "soft-capping-missing" "scores and logits are not soft-capped"
    Silu "silu" "SiLU in the place of GeLU"
    GeluErf "gelu-erf" "GeLU by erf in the place of its tanh form"
    GeluTanh "gelu-tanh" "GeLU's tanh form in the place of erf"
    GeluF16 "gelu-f16" "GeLU from a table in f16"
    GatesUnnormalised "gates-unnormalised" "the gates of the chosen experts are not divided by their sum"
    HeadTied "head-tied" "logits come from the embedding, not from lm_head.weight"
}

impl KnownBug {
    /// The tokens that the wrong model takes in for `tokens`.
    pub fn tokens(self, tokens: &[u32]) -> &[u32] {
        match (self, tokens) {
            (Self::MissingBos, [_, rest @ ..]) => rest,
            _ => tokens,
        }
    }
}

impl fmt::Display for KnownBug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KnownBug {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.iter().find(|bug| bug.name() == s);
        known.copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|bug| bug.name()).collect();
            format!("there is no bug '{s}': use one of {}", names.join(", "))
        })
    }
}

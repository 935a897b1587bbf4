//! What llama.cpp and TransformerLens call the points of a model.

use super::pattern::Pattern;
use crate::checkpoint::form::Sum;
use crate::model::{Block, Linear, Maps, Model, Projections};

/// What a point is, in a model of any family that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Embedding,
    ScaledEmbedding,
    Positions,
    /// The embedding with the learned positions.
    Positioned,
    AttentionNorm,
    /// The norms of a parallel block that has one for each branch.
    AttentionBranchNorm,
    InnerBranchNorm,
    Query,
    Key,
    Value,
    Qkv,
    /// The same with a bias, which llama.cpp adds in an operation of its own.
    BiasedQuery,
    BiasedKey,
    BiasedValue,
    BiasedQkv,
    QueryNorm,
    KeyNorm,
    QueryRope,
    KeyRope,
    Mixed,
    Out,
    BiasedOut,
    AttentionPostNorm,
    Middle,
    InnerNorm,
    Gate,
    Up,
    BiasedGate,
    BiasedUp,
    /// The first map of an MLP without a gate.
    Plain,
    BiasedPlain,
    Activation,
    Product,
    Router,
    Down,
    Experts,
    OuterPostNorm,
    Output,
    FinalNorm,
    Logits,
}

/// An engine's names: each means the first of these points that the model has.
type Aliases = &'static [(&'static str, &'static [Role])];

/// The engines, and their names with `{i}` for the layer.
///
/// Only points whose numbers are the same: TransformerLens' `hook_normalized` is before the norm's weight and so not
/// here; neither is llama.cpp's bare `Qcur-3`, which it gives to q before and after RoPE (`llama_trace.py` adds
/// the operation).
const ENGINES: [(&str, Aliases); 2] = [
    (
        "llama.cpp",
        &[
            // inp_embd is what older versions say.
            ("embd", &[Role::Embedding]),
            ("inp_embd", &[Role::Embedding]),
            ("inp_scaled", &[Role::ScaledEmbedding]),
            ("pos_embd", &[Role::Positions]),
            ("inpL", &[Role::Positioned]),
            // Falcon's, where there are two, are the other way round.
            (
                "attn_norm-{i}",
                &[Role::InnerBranchNorm, Role::AttentionNorm],
            ),
            ("attn_norm_2-{i}", &[Role::AttentionBranchNorm]),
            ("wqkv-{i}", &[Role::Qkv]),
            ("bqkv-{i}", &[Role::BiasedQkv]),
            ("Qcur-{i}.MUL_MAT", &[Role::Query]),
            ("Kcur-{i}.MUL_MAT", &[Role::Key]),
            ("Vcur-{i}", &[Role::Value]),
            ("Qcur-{i}.ADD", &[Role::BiasedQuery]),
            ("Kcur-{i}.ADD", &[Role::BiasedKey]),
            ("Vcur-{i}.ADD", &[Role::BiasedValue]),
            ("Qcur_normed-{i}", &[Role::QueryNorm]),
            ("Kcur_normed-{i}", &[Role::KeyNorm]),
            ("Qcur-{i}.ROPE", &[Role::QueryRope]),
            ("Kcur-{i}.ROPE", &[Role::KeyRope]),
            ("kqv_out-{i}", &[Role::Mixed]),
            ("blk.{i}.attn_output", &[Role::Out]),
            ("attn_out-{i}", &[Role::Out, Role::BiasedOut]),
            ("attn_post_norm-{i}", &[Role::AttentionPostNorm]),
            ("sa_out-{i}", &[Role::Middle]),
            ("ffn_inp-{i}", &[Role::Middle]),
            ("ffn_norm-{i}", &[Role::InnerNorm]),
            ("ffn_gate-{i}", &[Role::Gate]),
            ("ffn_gate_b-{i}", &[Role::BiasedGate]),
            ("ffn_up-{i}", &[Role::Up, Role::Plain]),
            ("ffn_up_b-{i}", &[Role::BiasedUp, Role::BiasedPlain]),
            ("ffn_gelu-{i}", &[Role::Activation]),
            ("ffn_silu-{i}", &[Role::Activation]),
            ("ffn_geglu-{i}", &[Role::Product]),
            ("ffn_swiglu-{i}", &[Role::Product]),
            ("ffn_gate_par-{i}", &[Role::Product]),
            ("ffn_moe_logits-{i}", &[Role::Router]),
            ("ffn_moe_out-{i}", &[Role::Experts]),
            ("ffn_out-{i}", &[Role::Down]),
            ("ffn_post_norm-{i}", &[Role::OuterPostNorm]),
            ("l_out-{i}", &[Role::Output]),
            ("result_norm", &[Role::FinalNorm]),
            ("result_output", &[Role::Logits]),
        ],
    ),
    (
        "TransformerLens",
        &[
            ("hook_embed", &[Role::ScaledEmbedding, Role::Embedding]),
            ("hook_pos_embed", &[Role::Positions]),
            ("blocks.{i}.attn.hook_q", &[Role::Query, Role::BiasedQuery]),
            ("blocks.{i}.attn.hook_k", &[Role::Key, Role::BiasedKey]),
            ("blocks.{i}.attn.hook_v", &[Role::Value, Role::BiasedValue]),
            ("blocks.{i}.attn.hook_rot_q", &[Role::QueryRope]),
            ("blocks.{i}.attn.hook_rot_k", &[Role::KeyRope]),
            ("blocks.{i}.attn.hook_z", &[Role::Mixed]),
            (
                "blocks.{i}.hook_attn_out",
                &[Role::AttentionPostNorm, Role::Out, Role::BiasedOut],
            ),
            ("blocks.{i}.hook_resid_mid", &[Role::Middle]),
            (
                "blocks.{i}.mlp.hook_pre",
                &[Role::Gate, Role::BiasedGate, Role::Plain, Role::BiasedPlain],
            ),
            (
                "blocks.{i}.mlp.hook_pre_linear",
                &[Role::Up, Role::BiasedUp],
            ),
            (
                "blocks.{i}.mlp.hook_post",
                &[Role::Product, Role::Activation],
            ),
            (
                "blocks.{i}.hook_mlp_out",
                &[Role::OuterPostNorm, Role::Down, Role::Experts],
            ),
            ("blocks.{i}.hook_resid_post", &[Role::Output]),
        ],
    ),
];

/// An engine's name for a point of a model, `{i}` for the layer in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The engine.
    pub engine: &'static str,
    /// Its name.
    pub theirs: &'static str,
    /// Ours.
    pub ours: String,
    /// Whether the two numbers of a RoPE pair lie side by side there and not here: llama.cpp permutes Llama's q and k.
    pub interleaved: bool,
}

/// The names of other engines for the points of a model.
pub fn aliases(model: &Model) -> Vec<Alias> {
    let points = points(model);
    let mut aliases = Vec::new();
    for (engine, pairs) in ENGINES {
        for (theirs, roles) in pairs {
            let mut of_role = roles.iter().filter_map(|role| {
                let point = points.iter().find(|(known, _)| known == role);
                point.map(|(role, ours)| (*role, ours.clone()))
            });
            if let Some((role, ours)) = of_role.next() {
                let permuted = engine == "llama.cpp" && model.config().decoder.gguf == "llama";
                aliases.push(Alias {
                    engine,
                    theirs,
                    ours,
                    interleaved: permuted && turns(role),
                });
            }
        }
    }
    aliases
}

/// The point that an engine's `name` means, its layer, and whether its RoPE pairs lie side by side.
pub(super) fn find(aliases: &[Alias], name: &str) -> Option<(String, Option<usize>, bool)> {
    aliases.iter().find_map(|alias| {
        let layer = Pattern::new(alias.theirs).matches(name)?;
        let ours = Pattern::new(&alias.ours).with(layer);
        Some((ours, layer, alias.interleaved))
    })
}

/// Whether a point is of what RoPE turns.
fn turns(role: Role) -> bool {
    let turned = [
        Role::Query,
        Role::Key,
        Role::BiasedQuery,
        Role::BiasedKey,
        Role::QueryNorm,
        Role::KeyNorm,
        Role::QueryRope,
        Role::KeyRope,
    ];
    turned.contains(&role)
}

/// What every point of a model is.
fn points(model: &Model) -> Vec<(Role, String)> {
    let form = &model.config().decoder;
    let mut points = vec![
        (Role::FinalNorm, form.norm.name.clone()),
        (Role::Logits, form.head.name.clone()),
    ];
    let scaled = if form.embed_scaled {
        Role::ScaledEmbedding
    } else {
        Role::Embedding
    };
    points.push((scaled, form.embed.into()));
    if let Some(learned) = form.positions {
        points.push((Role::Positions, learned.table.into()));
        points.push((Role::Positioned, learned.sum.into()));
    }
    if let Some(block) = model.layers().first() {
        let names = of_attention(block).into_iter().chain(of_branch(block));
        points.extend(names.map(|(role, name)| (role, format!("{}.{{i}}.{name}", form.layers))));
    }
    points.push((Role::Output, format!("{}.{{i}}", form.layers)));
    points
}

/// The points of attention.
fn of_attention(block: &Block) -> Vec<(Role, String)> {
    let attention = &block.attention;
    let role = if has_two_branch_norms(block) {
        Role::AttentionBranchNorm
    } else {
        Role::AttentionNorm
    };
    let norm = attention.norm.iter().map(|norm| (role, norm.name().into()));
    let mut points: Vec<(Role, String)> = norm.collect();
    match &attention.projections {
        Projections::Separate([q, k, v]) => points.extend([
            biased(q, [Role::Query, Role::BiasedQuery]),
            biased(k, [Role::Key, Role::BiasedKey]),
            biased(v, [Role::Value, Role::BiasedValue]),
        ]),
        Projections::Fused(map, _) => points.push(biased(map, [Role::Qkv, Role::BiasedQkv])),
    }
    if let Some([q, k]) = &attention.qk_norms {
        points.push((Role::QueryNorm, q.name().into()));
        points.push((Role::KeyNorm, k.name().into()));
    }
    if attention.rotation.is_some() {
        points.push((Role::QueryRope, attention.point("q_rope")));
        points.push((Role::KeyRope, attention.point("k_rope")));
    }
    points.push((Role::Mixed, attention.point("mixed")));
    points.push(biased(&attention.out, [Role::Out, Role::BiasedOut]));
    let post_norm = attention.post_norm.iter();
    points.extend(post_norm.map(|norm| (Role::AttentionPostNorm, norm.name().into())));
    points
}

/// The points after attention.
fn of_branch(block: &Block) -> Vec<(Role, String)> {
    let (inner, outer) = (&block.inner, &block.outer);
    let mut points: Vec<(Role, String)> = Vec::new();
    if block.sum == Sum::Sequential {
        points.push((Role::Middle, "residual_mid".into()));
    }
    let role = if has_two_branch_norms(block) {
        Role::InnerBranchNorm
    } else {
        Role::InnerNorm
    };
    points.extend(inner.norm.iter().map(|norm| (role, norm.name().into())));
    let act = (Role::Activation, inner.point("act_fn"));
    let product = (Role::Product, inner.point("product"));
    match &inner.maps {
        Maps::Gated { gate, up } => points.extend([
            biased(gate, [Role::Gate, Role::BiasedGate]),
            biased(up, [Role::Up, Role::BiasedUp]),
            act,
            product,
        ]),
        Maps::Fused(_) => points.extend([act, product]),
        Maps::Plain(map) => points.extend([biased(map, [Role::Plain, Role::BiasedPlain]), act]),
        Maps::Experts(experts) => {
            points.push((Role::Router, experts.router.name().into()));
            points.push((Role::Experts, inner.module.into()));
        }
    }
    if let [down] = outer.down() {
        points.push((Role::Down, down.name().into()));
    }
    let post_norm = outer.post_norm().into_iter();
    points.extend(post_norm.map(|norm| (Role::OuterPostNorm, norm.name().into())));
    points
}

fn has_two_branch_norms(block: &Block) -> bool {
    block.sum == Sum::Parallel && block.inner.norm.is_some()
}

/// The output of a map, without a bias or with one.
fn biased(map: &Linear, [without, with]: [Role; 2]) -> (Role, String) {
    let role = if map.form.bias { with } else { without };
    (role, map.name().into())
}

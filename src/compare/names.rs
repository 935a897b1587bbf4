//! What engines call the points of the model.

use std::collections::BTreeMap;

use crate::model::Model;
use crate::trace::Point;

/// The names of a layer's tensors, in forward order, relative to `model.layers.I`.
pub(super) const LAYER_NAMES: [&str; 20] = [
    ".input_layernorm",
    ".self_attn.q_proj",
    ".self_attn.k_proj",
    ".self_attn.v_proj",
    ".self_attn.q_norm",
    ".self_attn.k_norm",
    ".self_attn.q_rope",
    ".self_attn.k_rope",
    ".self_attn.mixed",
    ".self_attn.o_proj",
    ".post_attention_layernorm",
    ".residual_mid",
    ".pre_feedforward_layernorm",
    ".mlp.gate_proj",
    ".mlp.act_fn",
    ".mlp.up_proj",
    ".mlp.product",
    ".mlp.down_proj",
    ".post_feedforward_layernorm",
    "",
];

/// The names of other engines that mean a point of ours, `{i}` for the layer: engine, then pairs of their name and ours.
///
/// Only points whose numbers are the same: TransformerLens' `hook_normalized` is before the norm's weight and so not
/// here; neither is llama.cpp's bare `Qcur-3`, which it gives to q before and after RoPE (`llama_trace.py` adds
/// the operation).
pub const ALIASES: &[(&str, &[(&str, &str)])] = &[
    (
        "llama.cpp",
        &[
            ("inp_scaled", "model.embed_tokens"),
            ("attn_norm-{i}", "model.layers.{i}.input_layernorm"),
            ("Qcur-{i}.MUL_MAT", "model.layers.{i}.self_attn.q_proj"),
            ("Kcur-{i}.MUL_MAT", "model.layers.{i}.self_attn.k_proj"),
            ("Vcur-{i}", "model.layers.{i}.self_attn.v_proj"),
            ("Qcur_normed-{i}", "model.layers.{i}.self_attn.q_norm"),
            ("Kcur_normed-{i}", "model.layers.{i}.self_attn.k_norm"),
            ("Qcur-{i}.ROPE", "model.layers.{i}.self_attn.q_rope"),
            ("Kcur-{i}.ROPE", "model.layers.{i}.self_attn.k_rope"),
            ("kqv_out-{i}", "model.layers.{i}.self_attn.mixed"),
            ("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
            (
                "attn_post_norm-{i}",
                "model.layers.{i}.post_attention_layernorm",
            ),
            ("sa_out-{i}", "model.layers.{i}.residual_mid"),
            ("ffn_norm-{i}", "model.layers.{i}.pre_feedforward_layernorm"),
            ("ffn_gate-{i}", "model.layers.{i}.mlp.gate_proj"),
            ("ffn_gelu-{i}", "model.layers.{i}.mlp.act_fn"),
            ("ffn_up-{i}", "model.layers.{i}.mlp.up_proj"),
            ("ffn_geglu-{i}", "model.layers.{i}.mlp.product"),
            ("ffn_gate_par-{i}", "model.layers.{i}.mlp.product"),
            ("ffn_out-{i}", "model.layers.{i}.mlp.down_proj"),
            (
                "ffn_post_norm-{i}",
                "model.layers.{i}.post_feedforward_layernorm",
            ),
            ("l_out-{i}", "model.layers.{i}"),
            ("result_norm", "model.norm"),
            ("result_output", "lm_head"),
        ],
    ),
    (
        "TransformerLens",
        &[
            ("hook_embed", "model.embed_tokens"),
            (
                "blocks.{i}.attn.hook_q",
                "model.layers.{i}.self_attn.q_proj",
            ),
            (
                "blocks.{i}.attn.hook_k",
                "model.layers.{i}.self_attn.k_proj",
            ),
            (
                "blocks.{i}.attn.hook_v",
                "model.layers.{i}.self_attn.v_proj",
            ),
            (
                "blocks.{i}.attn.hook_rot_q",
                "model.layers.{i}.self_attn.q_rope",
            ),
            (
                "blocks.{i}.attn.hook_rot_k",
                "model.layers.{i}.self_attn.k_rope",
            ),
            ("blocks.{i}.attn.hook_z", "model.layers.{i}.self_attn.mixed"),
            (
                "blocks.{i}.hook_attn_out",
                "model.layers.{i}.post_attention_layernorm",
            ),
            ("blocks.{i}.hook_resid_mid", "model.layers.{i}.residual_mid"),
            ("blocks.{i}.mlp.hook_pre", "model.layers.{i}.mlp.gate_proj"),
            (
                "blocks.{i}.mlp.hook_pre_linear",
                "model.layers.{i}.mlp.up_proj",
            ),
            ("blocks.{i}.mlp.hook_post", "model.layers.{i}.mlp.product"),
            (
                "blocks.{i}.hook_mlp_out",
                "model.layers.{i}.post_feedforward_layernorm",
            ),
            ("blocks.{i}.hook_resid_post", "model.layers.{i}"),
        ],
    ),
];

/// Names of other engines that are near enough to a point to be taken for it, and why they are not.
pub(super) const UNCLEAR: [(&str, &str); 6] = [
    ("Qcur-{i}", "it is q before RoPE or after it"),
    ("Kcur-{i}", "it is k before RoPE or after it"),
    ("blocks.{i}.ln1.hook_normalized", BEFORE_WEIGHT),
    ("blocks.{i}.ln2.hook_normalized", BEFORE_WEIGHT),
    ("ln_final.hook_normalized", BEFORE_WEIGHT),
    (
        "hidden_states",
        "it is several tensors in one: record hidden_states.0, hidden_states.1, … by themselves",
    ),
];
const BEFORE_WEIGHT: &str = "it is before the norm's weight, which no point here is";

/// A name in which `{i}` may stand for a layer.
#[derive(Clone, Debug)]
pub(super) struct Pattern<'a> {
    before: &'a str,
    /// What follows `{i}`, where there is one.
    after: Option<&'a str>,
}

impl<'a> Pattern<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        match text.split_once("{i}") {
            Some((before, after)) => Self {
                before,
                after: Some(after),
            },
            None => Self {
                before: text,
                after: None,
            },
        }
    }

    /// Whether there is an `{i}`.
    pub(super) fn has_layer(&self) -> bool {
        self.after.is_some()
    }

    /// Whether `name` is of this form, and of which layer.
    pub(super) fn matches(&self, name: &str) -> Option<Option<usize>> {
        let Some(after) = self.after else {
            return (name == self.before).then_some(None);
        };
        let layer = name.strip_prefix(self.before)?.strip_suffix(after)?;
        parse_layer(layer).map(Some)
    }

    /// The name with a layer.
    pub(super) fn with(&self, layer: Option<usize>) -> String {
        match (self.after, layer) {
            (Some(after), Some(layer)) => format!("{}{layer}{after}", self.before),
            _ => self.before.into(),
        }
    }
}

/// A layer's number as every engine writes it: digits without a sign or zeros in front.
fn parse_layer(text: &str) -> Option<usize> {
    let layer: usize = text.parse().ok()?;
    (layer.to_string() == text).then_some(layer)
}

/// What a tensor is taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Our name, of a layer that the model need not have.
    pub(super) name: String,
    pub(super) layer: Option<usize>,
    /// Whether another of the engine's names is the usual one of this point, and this one counts only where that is absent.
    pub(super) second: bool,
}

impl Known {
    pub(super) fn first(name: String, layer: Option<usize>) -> Self {
        Self {
            name,
            layer,
            second: false,
        }
    }

    pub(super) fn second(name: String, layer: Option<usize>) -> Self {
        Self {
            second: true,
            ..Self::first(name, layer)
        }
    }
}

/// Names looked up once for each tensor of a recording.
pub(super) struct Names {
    points: BTreeMap<String, Point>,
}

impl Names {
    pub(super) fn new(model: &Model) -> Self {
        let points = Point::all(model).into_iter();
        Self {
            points: points.map(|point| (point.name.clone(), point)).collect(),
        }
    }

    /// The point of this name, if the model has it.
    pub(super) fn point(&self, name: &str) -> Option<&Point> {
        self.points.get(name)
    }
}

/// What an engine's `name` means in a model of so many `layers`; the layer of the name need not be one of them.
pub(super) fn recognise(name: &str, layers: usize) -> Option<Known> {
    let name = plain(name);
    let mut rest = name.as_str();
    loop {
        if let Some(known) = meaning(rest, layers) {
            return Some(known);
        }
        if let Some(module) = INPUT.iter().find_map(|end| rest.strip_suffix(end)) {
            return input_of(&meaning(module, layers)?, layers);
        }
        rest = OUTPUT.iter().find_map(|end| rest.strip_suffix(end))?;
    }
}

/// What hooks put behind the name of a module for its output, and for the first of several.
const OUTPUT: [&str; 5] = [".output", ".out", "_output", "_out", ".0"];
/// For what goes into it.
const INPUT: [&str; 3] = [".input", "_input", "_in"];
/// What wrappers of modules put in front of names or between their parts.
const WRAPPERS: [&str; 4] = [
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// A name with `[3]` as `.3`, and without the wrappers of modules.
fn plain(name: &str) -> String {
    let dotted = name.replace('[', ".").replace(']', "");
    let parts = dotted.split('.').filter(|part| !WRAPPERS.contains(part));
    parts.collect::<Vec<_>>().join(".")
}

fn meaning(name: &str, layers: usize) -> Option<Known> {
    hugging_face(name)
        .or_else(|| alias(name))
        .or_else(|| hidden_state(name, layers))
        .or_else(|| residual_before(name))
}

/// Names of modules, with the prefixes that models around the text model add.
fn hugging_face(name: &str) -> Option<Known> {
    let mut rest = name;
    while let Some(inner) = ["model.", "language_model.", "base_model."]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix))
    {
        rest = inner;
    }
    let name = match rest {
        "lm_head" => rest.to_owned(),
        _ => format!("model.{rest}"),
    };
    if let Some(layer) = is_ours(&name) {
        return Some(Known::first(name, layer));
    }
    let [name, layer] = match rest.split_once(".self_attn") {
        Some((layer, "")) => [format!("model.{rest}.o_proj"), layer.to_owned()],
        _ => [
            format!("model.{rest}.down_proj"),
            rest.strip_suffix(".mlp")?.to_owned(),
        ],
    };
    let layer = parse_layer(layer.strip_prefix("layers.")?)?;
    Some(Known::second(name, Some(layer)))
}

/// What the transformers library gives for `output_hidden_states`: the embedding, the output of each layer but the last, and
/// that of the final norm. And what it calls the last two outputs of a model.
fn hidden_state(name: &str, layers: usize) -> Option<Known> {
    match name {
        "last_hidden_state" => return Some(Known::second("model.norm".into(), None)),
        "logits" => return Some(Known::second("lm_head".into(), None)),
        _ => {}
    }
    let prefixes = ["hidden_states.", "hidden_states_", "hidden_state_"];
    let index = prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    let index = parse_layer(index)?;
    if index == layers {
        return Some(Known::second("model.norm".into(), None));
    }
    Some(Known::second(before(index), index.checked_sub(1)))
}

/// The residual stream that enters a layer.
fn before(layer: usize) -> String {
    let before = layer.checked_sub(1);
    before.map_or("model.embed_tokens".into(), |i| format!("model.layers.{i}"))
}

/// The point that goes into a module, which `module` is the output of.
fn input_of(module: &Known, layers: usize) -> Option<Known> {
    let Some(layer) = module.layer else {
        return match module.name.as_str() {
            "lm_head" => Some(Known::second("model.norm".into(), None)),
            "model.norm" => Some(Known::second(before(layers), layers.checked_sub(1))),
            _ => None,
        };
    };
    let of_layer = |point: &str| format!("model.layers.{layer}.{point}");
    let part = module.name.strip_prefix(&of_layer("")).unwrap_or("");
    let input = match part {
        "" | "input_layernorm" => before(layer),
        "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => of_layer("input_layernorm"),
        // The whole module's own input is that of its first part.
        "self_attn.o_proj" if module.second => of_layer("input_layernorm"),
        "self_attn.q_norm" => of_layer("self_attn.q_proj"),
        "self_attn.k_norm" => of_layer("self_attn.k_proj"),
        "self_attn.o_proj" => of_layer("self_attn.mixed"),
        "post_attention_layernorm" => of_layer("self_attn.o_proj"),
        "pre_feedforward_layernorm" => of_layer("residual_mid"),
        "mlp.down_proj" if module.second => of_layer("pre_feedforward_layernorm"),
        "mlp.gate_proj" | "mlp.up_proj" => of_layer("pre_feedforward_layernorm"),
        "mlp.act_fn" => of_layer("mlp.gate_proj"),
        "mlp.down_proj" => of_layer("mlp.product"),
        "post_feedforward_layernorm" => of_layer("mlp.down_proj"),
        _ => return None,
    };
    Some(Known::second(input, Some(layer)))
}

/// Whether `name` is that of a point in some model, and of which layer.
pub(super) fn is_ours(name: &str) -> Option<Option<usize>> {
    if ["model.embed_tokens", "model.norm", "lm_head"].contains(&name) {
        return Some(None);
    }
    let rest = name.strip_prefix("model.layers.")?;
    let (layer, point) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
    LAYER_NAMES
        .contains(&point)
        .then(|| parse_layer(layer).map(Some))?
}

fn alias(name: &str) -> Option<Known> {
    let pairs = ALIASES.iter().flat_map(|(_, pairs)| *pairs);
    pairs.into_iter().find_map(|(theirs, ours)| {
        let layer = Pattern::new(theirs).matches(name)?;
        let name = Pattern::new(ours).with(layer);
        Some(Known::first(name, layer))
    })
}

/// TransformerLens' residual stream before a block: what the block before it gave, or the embedding.
fn residual_before(name: &str) -> Option<Known> {
    let layer = Pattern::new("blocks.{i}.hook_resid_pre").matches(name)??;
    Some(Known::second(before(layer), Some(layer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_module_is_ours() {
        for (theirs, ours) in [
            (
                "model.layers.3.mlp.up_proj",
                Some("model.layers.3.mlp.up_proj"),
            ),
            ("language_model.model.layers.3", Some("model.layers.3")),
            (
                "model.language_model.layers.3.residual_mid",
                Some("model.layers.3.residual_mid"),
            ),
            (
                "model.layers.3.self_attn.q_norm.output",
                Some("model.layers.3.self_attn.q_norm"),
            ),
            ("layers.12.mlp.act_fn", Some("model.layers.12.mlp.act_fn")),
            ("embed_tokens", Some("model.embed_tokens")),
            ("language_model.lm_head", Some("lm_head")),
            ("model.lm_head.output", Some("lm_head")),
            ("model.norm", Some("model.norm")),
            ("model.layers.03", None),
            ("model.layers.+3", None),
            ("model.layers.3.mlp", Some("model.layers.3.mlp.down_proj")),
            (
                "model.layers.3.self_attn",
                Some("model.layers.3.self_attn.o_proj"),
            ),
            (
                "model.layers.3.self_attn.0",
                Some("model.layers.3.self_attn.o_proj"),
            ),
            ("model.layers.3.self_attn.1", None),
            ("model.layers.3.0", Some("model.layers.3")),
            ("model.layers.3.output.0", Some("model.layers.3")),
            (
                "model.layers[3].mlp.output",
                Some("model.layers.3.mlp.down_proj"),
            ),
            ("model.layers.3.output[0]", Some("model.layers.3")),
            (
                "model.layers.3.mlp.act_fn_out",
                Some("model.layers.3.mlp.act_fn"),
            ),
            ("module.model.layers.3", Some("model.layers.3")),
            (
                "_orig_mod.model.layers.3.mlp.up_proj",
                Some("model.layers.3.mlp.up_proj"),
            ),
            (
                "model.layers.3._orig_mod.mlp.up_proj",
                Some("model.layers.3.mlp.up_proj"),
            ),
            ("base_model.model.model.layers.3", Some("model.layers.3")),
            ("model.layers.3.input", Some("model.layers.2")),
            ("model.layers.0.input", Some("model.embed_tokens")),
            (
                "model.layers.3.mlp.input",
                Some("model.layers.3.pre_feedforward_layernorm"),
            ),
            (
                "model.layers.3.self_attn.o_proj.input",
                Some("model.layers.3.self_attn.mixed"),
            ),
            (
                "model.layers.3.mlp.down_proj_input",
                Some("model.layers.3.mlp.product"),
            ),
            (
                "model.layers.3.pre_feedforward_layernorm.input.0",
                Some("model.layers.3.residual_mid"),
            ),
            ("lm_head.input", Some("model.norm")),
            ("model.norm.input", Some("model.layers.25")),
            ("hidden_states.0", Some("model.embed_tokens")),
            ("hidden_states.4", Some("model.layers.3")),
            ("hidden_states[4]", Some("model.layers.3")),
            ("hidden_states_26", Some("model.norm")),
            ("hidden_states", None),
            ("logits", Some("lm_head")),
            ("last_hidden_state", Some("model.norm")),
            ("model.layers.3.mlp.up_proj.weight", None),
            ("model.layers", None),
            ("norm.3", None),
            ("", None),
        ] {
            assert_eq!(
                recognise(theirs, 26).map(|k| k.name).as_deref(),
                ours,
                "{theirs}"
            );
        }
    }

    #[test]
    fn every_alias_means_the_point_it_claims() {
        for (engine, pairs) in ALIASES {
            for (theirs, ours) in *pairs {
                let both = [theirs, ours].map(|text| Pattern::new(text));
                assert_eq!(
                    both[0].has_layer(),
                    both[1].has_layer(),
                    "{engine}: {theirs}"
                );
                let [theirs, ours] = both.map(|pattern| pattern.with(Some(7)));
                assert!(is_ours(&ours).is_some(), "{engine}: {ours}");
                assert_eq!(
                    recognise(&theirs, 26).unwrap().name,
                    ours,
                    "{engine}: {theirs}"
                );
            }
            let theirs: std::collections::BTreeSet<_> = pairs.iter().map(|pair| pair.0).collect();
            assert_eq!(theirs.len(), pairs.len(), "{engine} has a name twice");
        }
        // q before or after RoPE: nobody can know.
        assert_eq!(recognise("Qcur-3", 26), None);
        // Before the norm's weight.
        assert_eq!(recognise("blocks.3.ln1.hook_normalized", 26), None);
    }

    #[test]
    fn the_stream_before_a_block_is_a_second_choice() {
        let at = |name: &str| recognise(name, 26).map(|k| (k.name, k.second)).unwrap();
        assert_eq!(
            at("blocks.0.hook_resid_pre"),
            ("model.embed_tokens".into(), true)
        );
        assert_eq!(
            at("blocks.4.hook_resid_pre"),
            ("model.layers.3".into(), true)
        );
        assert_eq!(
            at("blocks.3.hook_resid_post"),
            ("model.layers.3".into(), false)
        );
    }
}

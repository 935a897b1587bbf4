//! What a name in a recording means in a model: the names of Hugging Face modules as everyone spells them, and those of
//! [other engines](super::aliases).

use std::collections::{BTreeMap, BTreeSet};

use super::aliases::{Alias, aliases, find};
use super::pattern::{Pattern, parse_layer};
use crate::checkpoint::VisionConfig;
use crate::model::{Block, INPUTS_EMBEDS, Maps, Model, Operation, Plan};
use crate::trace::{Point, Rows};

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

/// What a tensor is taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Our name, of a layer that the model need not have.
    pub(super) name: String,
    pub(super) layer: Option<usize>,
    /// Whether another of the engine's names is the usual one of this point, and this one counts only where that is absent.
    pub(super) second: bool,
    /// Whether the two numbers of a RoPE pair lie side by side there and not here.
    pub(super) interleaved: bool,
}

impl Known {
    pub(super) fn first(name: String, layer: Option<usize>) -> Self {
        Self {
            name,
            layer,
            second: false,
            interleaved: false,
        }
    }

    pub(super) fn second(name: String, layer: Option<usize>) -> Self {
        Self {
            second: true,
            ..Self::first(name, layer)
        }
    }
}

/// The names of a model's points.
pub(super) struct Names {
    plan: Plan,
    points: BTreeMap<String, Point>,
    /// The text model's blocks, and the vision tower's where there is one.
    stacks: Vec<Stack>,
    /// The points outside the layers, in forward order.
    others: Vec<String>,
    aliases: Vec<Alias>,
    /// The points, relative to a layer, whose numbers RoPE turns or has turned.
    turned: BTreeSet<String>,
}

/// The names of the points of blocks that lie on one another.
struct Stack {
    /// The path of the layers: `model.layers`.
    path: &'static str,
    layers: usize,
    /// The points of a layer, relative to it.
    of_layer: Vec<String>,
    /// Modules whose output is a point that a part of them has: their name, relative to a layer, and the part's, and
    /// whether the part's is the usual one.
    modules: Vec<(String, String, bool)>,
    /// What goes into the first layer.
    input: String,
}

impl Stack {
    fn new(path: &'static str, blocks: &[Block], points: &[Point], input: &str) -> Self {
        let first = format!("{path}.0");
        let of_layer = points
            .iter()
            .filter_map(|point| relative(&point.name, &first));
        Self {
            path,
            layers: blocks.len(),
            of_layer: of_layer.collect(),
            modules: blocks.first().map(modules).unwrap_or_default(),
            input: input.into(),
        }
    }

    /// The name of a point of a layer.
    fn of_layer(&self, layer: impl std::fmt::Display, point: &str) -> String {
        let dot = if point.is_empty() { "" } else { "." };
        format!("{}.{layer}{dot}{point}", self.path)
    }

    /// A layer and the name of something in it.
    fn in_layer<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let rest = name.strip_prefix(bare(self.path))?.strip_prefix('.')?;
        let (layer, point) = rest.split_once('.').unwrap_or((rest, ""));
        Some((parse_layer(layer)?, point))
    }

    /// The residual stream that enters a layer.
    fn before(&self, layer: usize) -> String {
        match layer.checked_sub(1) {
            Some(before) => self.of_layer(before, ""),
            None => self.input.clone(),
        }
    }

    /// The first part of the module whose last part is `last`.
    fn first_part(&self, last: &str) -> Option<String> {
        let (module, ..) = self.modules.iter().find(|(_, part, _)| part == last)?;
        let inside = format!("{module}.");
        let mut points = self.of_layer.iter();
        points.find(|point| point.starts_with(&inside)).cloned()
    }
}

/// The name of something in the layer of path `first`, relative to it.
fn relative(name: &str, first: &str) -> Option<String> {
    let rest = name.strip_prefix(first)?;
    Some(rest.trim_start_matches('.').to_owned())
}

impl Names {
    /// Those of a text, and of images where the model can see some.
    pub(super) fn new(model: &Model) -> Self {
        let of_text = Point::all(model);
        let path = model.config().decoder.layers;
        // What goes into the first layer comes before the first of its points.
        let inside = of_text
            .iter()
            .position(|point| point.name.starts_with(path));
        let input = inside.and_then(|first| of_text.get(first.checked_sub(1)?));
        let input = input.map_or("", |point| &point.name);
        let vision = model.vision().ok();
        let (points, plan) = match &vision {
            None => (of_text.clone(), model.plan()),
            Some(vision) => {
                let points = Point::with_images(model).unwrap_or_default();
                (points, model.plan_with(vision))
            }
        };
        let mut stacks = vec![Stack::new(path, model.layers(), &points, input)];
        stacks.extend(vision.iter().map(|vision| {
            let (path, input) = (VisionConfig::LAYERS, VisionConfig::EMBEDDINGS);
            Stack::new(path, vision.blocks(), &points, input)
        }));
        let first = format!("{path}.0");
        let turned = turned(&plan).into_iter();
        let outside = |name: &str| !stacks.iter().any(|stack| name.starts_with(stack.path));
        let others = points.iter().filter(|point| outside(&point.name));
        Self {
            turned: turned.filter_map(|name| relative(name, &first)).collect(),
            others: others.map(|point| point.name.clone()).collect(),
            aliases: aliases(model),
            points: points
                .into_iter()
                .map(|point| (point.name.clone(), point))
                .collect(),
            stacks,
            plan,
        }
    }

    /// The same for a recording of a text with images.
    pub(super) fn of_images(mut self) -> Self {
        self.stacks[0].input = INPUTS_EMBEDS.into();
        self
    }

    /// Whether a tensor of an engine's `name` is there only where there are images.
    pub(super) fn is_of_images(&self, name: &str) -> bool {
        let known = self.recognise(name);
        let point = known.and_then(|known| self.point(&known.name));
        point.is_some_and(|point| point.rows != Rows::Tokens || point.name == INPUTS_EMBEDS)
    }

    /// The point of this name, if the model has it.
    pub(super) fn point(&self, name: &str) -> Option<&Point> {
        self.points.get(name)
    }

    /// Every known name, ours first, with `{i}` for the layer.
    pub(super) fn patterns(&self) -> impl Iterator<Item = String> {
        let of_layers = self.stacks.iter().flat_map(|stack| {
            let points = stack.of_layer.iter();
            points.map(|point| stack.of_layer("{i}", point))
        });
        let theirs = self.aliases.iter().map(|alias| alias.theirs.to_owned());
        of_layers.chain(self.others.iter().cloned()).chain(theirs)
    }

    /// Which blocks a name is of, their layer, and the name of something in it.
    fn in_layer<'n>(&self, name: &'n str) -> Option<(&Stack, usize, &'n str)> {
        self.stacks.iter().find_map(|stack| {
            let (layer, point) = stack.in_layer(name)?;
            Some((stack, layer, point))
        })
    }

    /// How many layers there are of the kind that a point is of.
    pub(super) fn layers(&self, point: &str) -> usize {
        let (stack, ..) = self
            .in_layer(bare(point))
            .unwrap_or((&self.stacks[0], 0, ""));
        stack.layers
    }

    /// Whether `name` is one that [`trace`](crate::trace) writes, and of which layer; the model need not have so many.
    pub(super) fn is_ours(&self, name: &str) -> Option<Option<usize>> {
        if self.others.iter().any(|other| other == name) {
            return Some(None);
        }
        let (stack, layer, point) = self.in_layer(bare(name))?;
        let known = stack.of_layer.iter().any(|known| known == point);
        (known && stack.of_layer(layer, point) == name).then_some(Some(layer))
    }

    /// Whether the point `name` is of numbers that RoPE turns or has turned.
    pub(super) fn is_turned(&self, name: &str) -> bool {
        let point = self.stacks[0].in_layer(bare(name));
        point.is_some_and(|(_, point)| self.turned.contains(point))
    }

    /// What an engine's `name` means; the layer of the name need not be one of the model's.
    pub(super) fn recognise(&self, name: &str) -> Option<Known> {
        let name = plain(name);
        let mut rest = name.as_str();
        loop {
            if let Some(known) = self.meaning(rest) {
                return Some(known);
            }
            if let Some(module) = INPUT.iter().find_map(|end| rest.strip_suffix(end)) {
                return self.input_of(&self.meaning(module)?);
            }
            rest = OUTPUT.iter().find_map(|end| rest.strip_suffix(end))?;
        }
    }

    fn meaning(&self, name: &str) -> Option<Known> {
        let alias = || {
            let (name, layer, interleaved) = find(&self.aliases, name)?;
            Some(Known {
                interleaved,
                ..Known::first(name, layer)
            })
        };
        self.hugging_face(bare(name))
            .or_else(alias)
            .or_else(|| self.hidden_state(name))
            .or_else(|| self.residual_before(name))
    }

    /// A module's name, without what models around the text model put in front.
    fn hugging_face(&self, name: &str) -> Option<Known> {
        if let Some(other) = self.others.iter().find(|other| bare(other) == name) {
            return Some(Known::first(other.clone(), None));
        }
        let (stack, layer, point) = self.in_layer(name)?;
        if stack.of_layer.iter().any(|known| known == point) {
            return Some(Known::first(stack.of_layer(layer, point), Some(layer)));
        }
        let mut modules = stack.modules.iter();
        let (_, part, first) = modules.find(|(module, ..)| module == point)?;
        let known = Known::second(stack.of_layer(layer, part), Some(layer));
        Some(Known {
            second: !first,
            ..known
        })
    }

    /// What the transformers library gives for `output_hidden_states`: what enters the first layer, the output of each layer but the
    /// last, and that of the final norm. And what it calls the last two outputs of a model.
    fn hidden_state(&self, name: &str) -> Option<Known> {
        let [.., norm, head] = self.others.as_slice() else {
            return None;
        };
        match name {
            "last_hidden_state" => return Some(Known::second(norm.clone(), None)),
            "logits" => return Some(Known::second(head.clone(), None)),
            _ => {}
        }
        let prefixes = ["hidden_states.", "hidden_states_", "hidden_state_"];
        let index = prefixes
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))?;
        let index = parse_layer(index)?;
        let stack = &self.stacks[0];
        if index == stack.layers {
            return Some(Known::second(norm.clone(), None));
        }
        Some(Known::second(stack.before(index), index.checked_sub(1)))
    }

    /// TransformerLens' residual stream before a block: what the block before it gave, or what enters the first.
    fn residual_before(&self, name: &str) -> Option<Known> {
        let layer = Pattern::new("blocks.{i}.hook_resid_pre").matches(name)??;
        let before = self.stacks[0].before(layer);
        Some(Known::second(before, Some(layer)))
    }

    /// The point that goes into a module, which `module` is the output of.
    fn input_of(&self, module: &Known) -> Option<Known> {
        let Some(layer) = module.layer else {
            let input = self.input_of_point(&module.name)?;
            let layer = self.in_layer(bare(input)).map(|(_, layer, _)| layer);
            return Some(Known::second(input.into(), layer));
        };
        let (stack, _, part) = self.in_layer(bare(&module.name))?;
        if part.is_empty() {
            return Some(Known::second(stack.before(layer), Some(layer)));
        }
        // The whole module's own input is that of its first part.
        let part = if module.second {
            stack.first_part(part)?
        } else {
            part.into()
        };
        let input = self.input_of_point(&stack.of_layer(0, &part))?;
        let input = match stack.in_layer(bare(input)) {
            Some((_, input)) => stack.of_layer(layer, input),
            None => stack.before(layer),
        };
        Some(Known::second(input, Some(layer)))
    }

    /// The point that the operation of another takes in first.
    fn input_of_point(&self, name: &str) -> Option<&str> {
        let node = &self.plan.nodes[self.plan.place(name)?];
        self.plan.name(*node.inputs.first()?)
    }
}

/// Whole modules, whose output is that of their last part, and other names of parts.
fn modules(block: &Block) -> Vec<(String, String, bool)> {
    let (attention, inner) = (&block.attention, &block.inner);
    let named = |name: &str, part: &str, first| (name.to_owned(), part.to_owned(), first);
    let mut modules = vec![named(attention.form.module, attention.out.name(), false)];
    match (&inner.maps, block.outer.down()) {
        // The names of the modules, where those of the tensors are older.
        (Maps::Experts(experts), _) => modules.extend([
            named("mlp.gate", experts.router.name(), true),
            named("mlp", inner.module, true),
            named("mlp.experts", inner.module, false),
        ]),
        (_, [down, ..]) => modules.push(named(inner.module, down.name(), false)),
        _ => {}
    }
    let act = inner.point("act_fn");
    for other in ["act", "activation_fn"] {
        modules.push((inner.point(other), act.clone(), true));
    }
    modules
}

/// The points that are turned by RoPE, and what they come from up to the maps.
fn turned(plan: &Plan) -> BTreeSet<&str> {
    let mut turned = BTreeSet::new();
    let ropes = plan.nodes.iter().enumerate();
    for (mut place, _) in ropes.filter(|(_, node)| matches!(node.operation, Operation::Rope(_))) {
        while plan.nodes[place].heads.is_some() {
            turned.extend(plan.name(place));
            let Some(&input) = plan.nodes[place].inputs.first() else {
                break;
            };
            place = input;
        }
    }
    turned
}

/// What hooks put behind the name of a module for its output, and for the first of several.
const OUTPUT: [&str; 5] = [".output", ".out", "_output", "_out", ".0"];
/// For what goes into it.
const INPUT: [&str; 3] = [".input", "_input", "_in"];
/// What wrappers of modules put in front of names or between their parts.
const WRAPPERS: [&str; 5] = [
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    // Of older versions of transformers, around the tower.
    "vision_model",
];

/// A name with `[3]` as `.3`, and without the wrappers of modules.
fn plain(name: &str) -> String {
    let dotted = name.replace('[', ".").replace(']', "");
    let parts = dotted.split('.').filter(|part| !WRAPPERS.contains(part));
    parts.collect::<Vec<_>>().join(".")
}

/// A module's name without what models around the text model put in front of it.
fn bare(name: &str) -> &str {
    let mut rest = name;
    while let Some(inner) = ["model.", "language_model.", "base_model.", "transformer."]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix))
    {
        rest = inner;
    }
    rest
}

#[cfg(test)]
mod tests;

//! A pass written down and not computed: every operation, what it takes in, and the name of what it gives.
//!
//! It is made by the blocks' own forward pass over [`Ops`] that only take notes, so there is no second list of operations that
//! would have to be kept like the first.

use super::decoder::INPUTS_EMBEDS;
use super::grid::Grid;
use super::ops::Ops;
use super::parts::{Active, Attention, Experts};
use super::vision::{PIXEL_VALUES, position_embedding};
use super::{Linear, Model, Norm, Vision};
use crate::checkpoint::VisionConfig;
use crate::kernels::activation::Activation;
use crate::tensor::Tensor;

/// The operations of a model's pass, in the order in which they run.
#[derive(Debug)]
pub(crate) struct Plan {
    path: &'static str,
    layer: usize,
    pub(crate) nodes: Vec<Node>,
    /// What is recorded, in this order: a name and the node that gives it.
    pub(crate) named: Vec<(String, usize)>,
    /// The rows of the next node.
    rows: Rows,
    /// The experts whose router ran last.
    routed: Option<Experts>,
}

/// One operation.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) operation: Operation,
    /// The nodes that it takes in.
    pub(crate) inputs: Vec<usize>,
    /// The numbers of one token.
    pub(crate) width: usize,
    /// How many heads they are of, where they are of heads.
    pub(crate) heads: Option<usize>,
    pub(crate) rows: Rows,
}

/// How many rows a tensor of a pass has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One a token.
    Tokens,
    /// These for each image.
    EachImage(usize),
    /// These for all images.
    AllImages(usize),
}

impl Rows {
    /// The rows in a pass over `tokens` tokens, those of images among them.
    pub fn of(self, tokens: usize, images: usize) -> usize {
        match self {
            Self::Tokens => tokens,
            Self::EachImage(rows) => rows * images,
            Self::AllImages(rows) => rows,
        }
    }
}

/// What a node does with its inputs.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Embedding,
    /// An image's pixels, and its patches.
    Pixels,
    Patches(Grid),
    /// The mean of patches.
    Pool(Grid),
    /// The learned positions, of which a sequence begins with the one of this index.
    Positions(Tensor, usize),
    /// Embeddings, with what images put in the place of some.
    PutImages,
    Norm(Norm),
    Linear(Linear),
    /// Queries (0), keys (1) or values (2) from the output of a fused map.
    SplitHeads(Attention, usize),
    /// Gate (0) or up (1) from the output of a fused map.
    SplitHalves(usize),
    Rope(Attention),
    Attend(Attention),
    Activation(Activation),
    Multiply,
    Add,
    /// Σ gate · said, of the router's output and what each expert says.
    Combine(Experts),
    Logits(Linear, Option<f64>),
}

/// An activation of the plan: the node that gives it.
pub(crate) type Place = usize;

impl Model {
    /// What a pass of this model computes of a text.
    pub(crate) fn plan(&self) -> Plan {
        let mut plan = Plan::new(self.decoder().form.layers);
        let x = self.plan_embedding(&mut plan);
        self.plan_blocks(plan, x)
    }

    /// What a pass of this model computes of a text with images.
    pub(crate) fn plan_with(&self, vision: &Vision<'_>) -> Plan {
        let mut plan = Plan::new(VisionConfig::LAYERS);
        let features = vision.plan(&mut plan);
        plan.rows = Rows::Tokens;
        plan.path = self.decoder().form.layers;
        let x = self.plan_embedding(&mut plan);
        let width = plan.nodes[x].width;
        let x = plan.named(
            INPUTS_EMBEDS,
            Operation::PutImages,
            vec![x, features],
            width,
        );
        self.plan_blocks(plan, x)
    }

    fn plan_embedding(&self, plan: &mut Plan) -> Place {
        let (decoder, hidden) = (self.decoder(), self.config().hidden_size);
        let x = plan.named(decoder.form.embed, Operation::Embedding, vec![], hidden);
        let (Some(learned), Some(table)) = (decoder.form.positions, &decoder.positions) else {
            return x;
        };
        let positions = Operation::Positions(table.clone(), learned.offset);
        let positions = plan.named(learned.table, positions, vec![], hidden);
        plan.named(learned.sum, Operation::Add, vec![x, positions], hidden)
    }

    fn plan_blocks(&self, mut plan: Plan, mut x: Place) -> Plan {
        for (layer, block) in self.layers().iter().enumerate() {
            plan.layer = layer;
            x = block.forward(&mut plan, x);
        }
        self.decoder().logits(&mut plan, &x);
        plan
    }
}

impl Vision<'_> {
    /// What the vision part computes of images, and the node of what takes the place of embeddings.
    fn plan(&self, plan: &mut Plan) -> Place {
        let (config, grid) = (self.config(), self.grid);
        let patches = grid.patches();
        plan.rows = Rows::AllImages(patches);
        let learned = Operation::Positions(self.positions.clone(), 0);
        let positions = plan.named(&position_embedding(), learned, vec![], config.hidden_size);
        plan.rows = Rows::EachImage(3 * config.image_size);
        let pixels = plan.named(PIXEL_VALUES, Operation::Pixels, vec![], config.image_size);
        plan.rows = Rows::EachImage(patches);
        let width = 3 * config.patch_size.pow(2);
        let cut = plan.push(Operation::Patches(grid), vec![pixels], width);
        let mut x = self.embed(plan, &cut, &positions);
        for (layer, block) in self.blocks.iter().enumerate() {
            plan.layer = layer;
            x = block.forward(plan, x);
        }
        let x = self.normed(plan, &x);
        plan.rows = Rows::EachImage(grid.tokens());
        let pooled = plan.like(x, Operation::Pool(grid), vec![x]);
        self.project(plan, &pooled)
    }
}

impl Plan {
    fn new(path: &'static str) -> Self {
        Self {
            path,
            layer: 0,
            nodes: Vec::new(),
            named: Vec::new(),
            rows: Rows::Tokens,
            routed: None,
        }
    }

    /// The node that gives the tensor `name`.
    pub(crate) fn place(&self, name: &str) -> Option<Place> {
        self.named
            .iter()
            .find_map(|(known, place)| (known == name).then_some(*place))
    }

    /// The first name of what a node gives, where it has one.
    pub(crate) fn name(&self, place: Place) -> Option<&str> {
        let named = self.named.iter().find(|(_, known)| *known == place);
        named.map(|(name, _)| name.as_str())
    }

    fn push(&mut self, operation: Operation, inputs: Vec<Place>, width: usize) -> Place {
        let heads = None;
        self.nodes.push(Node {
            operation,
            inputs,
            width,
            heads,
            rows: self.rows,
        });
        self.nodes.len() - 1
    }

    /// Pushes a node outside the layers, under its whole name.
    fn named(
        &mut self,
        name: &str,
        operation: Operation,
        inputs: Vec<Place>,
        width: usize,
    ) -> Place {
        let place = self.push(operation, inputs, width);
        self.named.push((name.into(), place));
        place
    }

    /// A node as wide as `place`.
    fn like(&mut self, place: Place, operation: Operation, inputs: Vec<Place>) -> Place {
        self.push(operation, inputs, self.nodes[place].width)
    }

    /// Marks a node as `heads` heads, and what it was made of, back to the map that gave it.
    fn of_heads(&mut self, mut place: Place, heads: usize) {
        loop {
            let node = &mut self.nodes[place];
            node.heads = Some(heads);
            match (&node.operation, node.inputs.first()) {
                (Operation::Norm(_) | Operation::Rope(_), Some(&input)) => place = input,
                _ => return,
            }
        }
    }
}

impl Ops for Plan {
    type Rows = Place;

    fn norm(&mut self, norm: &Norm, x: &Place) -> Place {
        self.like(*x, Operation::Norm(norm.clone()), vec![*x])
    }

    fn linear<const N: usize>(&mut self, maps: [&Linear; N], x: &Place) -> [Place; N] {
        maps.map(|map| self.push(Operation::Linear(map.clone()), vec![*x], map.weight.rows()))
    }

    fn split_heads(&mut self, attention: &Attention, qkv: &Place) -> [Place; 3] {
        let form = &attention.form;
        let heads = [form.heads, form.kv_heads, form.kv_heads];
        [0, 1, 2].map(|which| {
            let split = Operation::SplitHeads(attention.clone(), which);
            self.push(split, vec![*qkv], heads[which] * form.head_dim)
        })
    }

    fn split_halves(&mut self, x: &Place) -> [Place; 2] {
        let half = self.nodes[*x].width / 2;
        [0, 1].map(|which| self.push(Operation::SplitHalves(which), vec![*x], half))
    }

    fn rope(&mut self, attention: &Attention, x: Place) -> Place {
        self.like(x, Operation::Rope(attention.clone()), vec![x])
    }

    fn attend(&mut self, attention: &Attention, q: &Place, k: &Place, v: &Place) -> Place {
        let form = &attention.form;
        self.of_heads(*q, form.heads);
        self.of_heads(*k, form.kv_heads);
        self.of_heads(*v, form.kv_heads);
        let attend = Operation::Attend(attention.clone());
        let mixed = self.like(*q, attend, vec![*q, *k, *v]);
        self.of_heads(mixed, form.heads);
        mixed
    }

    fn activate(&mut self, activation: Activation, x: Place) -> Place {
        self.like(x, Operation::Activation(activation), vec![x])
    }

    fn multiply(&mut self, x: &Place, y: &Place) -> Place {
        self.like(*x, Operation::Multiply, vec![*x, *y])
    }

    fn add(&mut self, x: &Place, y: &Place) -> Place {
        self.like(*x, Operation::Add, vec![*x, *y])
    }

    fn route(&mut self, experts: &Experts, _: &Place) -> Vec<Active> {
        self.routed = Some(experts.clone());
        let each = (0..experts.maps.len()).map(|expert| Active {
            expert,
            rows: Vec::new(),
            gates: Vec::new(),
        });
        each.collect()
    }

    fn gather(&mut self, _: &Active, x: &Place) -> Place {
        *x
    }

    fn linear_of<const N: usize>(
        &mut self,
        _: &Active,
        maps: [&Linear; N],
        x: &Place,
    ) -> [Place; N] {
        self.linear(maps, x)
    }

    fn combine(&mut self, router: &Place, said: &[(&Active, Place)]) -> Place {
        let width = said.first().map_or(0, |(_, said)| self.nodes[*said].width);
        let said = said.iter().map(|(_, said)| *said);
        let inputs = std::iter::once(*router).chain(said).collect();
        match self.routed.take() {
            Some(experts) => self.push(Operation::Combine(experts), inputs, width),
            None => *router,
        }
    }

    fn copy(&mut self, x: &Place) -> Place {
        *x
    }

    fn logits(&mut self, head: &Linear, softcap: Option<f64>, x: &Place) -> Place {
        let width = head.weight.rows();
        self.push(Operation::Logits(head.clone(), softcap), vec![*x], width)
    }

    fn record(&mut self, name: &str, x: &Place) {
        let dot = if name.is_empty() { "" } else { "." };
        let name = format!("{}.{}{dot}{name}", self.path, self.layer);
        self.named.push((name, *x));
    }

    fn record_global(&mut self, name: &str, x: &Place) {
        self.named.push((name.into(), *x));
    }
}

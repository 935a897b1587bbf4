//! The points of a model that are recorded.

use crate::model::Model;

/// Every name a pass of this model records, in forward order.
pub fn names(model: &Model) -> Vec<String> {
    let points = Point::all(model).into_iter();
    points.map(|point| point.name).collect()
}

/// A point of the model that a tensor can be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name, one of [`names`].
    pub name: String,
    /// The numbers of one token.
    pub width: usize,
    /// How many heads they are of, where they are of heads.
    pub heads: Option<usize>,
}

impl Point {
    /// Every point of a model, in forward order.
    pub fn all(model: &Model) -> Vec<Self> {
        let plan = model.plan();
        let points = plan.named.iter().map(|(name, node)| Self {
            name: name.clone(),
            width: plan.nodes[*node].width,
            heads: plan.nodes[*node].heads,
        });
        points.collect()
    }
}

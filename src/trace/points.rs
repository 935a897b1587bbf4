//! The points of a model that are recorded.

use crate::model::{self, Model, Rows};

/// Every name that a pass of this model records of a text, in forward order.
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

/// What a pass of this model records of some images beside the [points](Point::all) of a text, before it: name and shape.
pub(super) fn of_images(model: &Model, images: usize) -> model::Result<Vec<(String, [usize; 2])>> {
    let plan = model.vision()?.plan();
    let shapes = plan.named.iter().map(|(name, node)| {
        let node = &plan.nodes[*node];
        let rows = match node.rows {
            Rows::EachImage(rows) => rows * images,
            Rows::AllImages(rows) => rows,
            Rows::Tokens => 0,
        };
        (name.clone(), [rows, node.width])
    });
    Ok(shapes.collect())
}

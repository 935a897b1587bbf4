//! The points of a model that are recorded.

pub use crate::model::Rows;
use crate::model::{self, Model, Plan};

/// Every name that a pass of this model records of a text, in forward order.
pub fn names(model: &Model) -> Vec<String> {
    let points = Point::all(model).into_iter();
    points.map(|point| point.name).collect()
}

/// A point of the model that a tensor can be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name: one of [`names`], where it is of a text.
    pub name: String,
    /// The numbers of a row.
    pub width: usize,
    /// How many heads they are of, where they are of heads.
    pub heads: Option<usize>,
    /// What has a row: a token, or what an image is cut into.
    pub rows: Rows,
}

impl Point {
    /// Every point of a text's pass, in forward order.
    pub fn all(model: &Model) -> Vec<Self> {
        Self::of(&model.plan())
    }

    /// Every point of a pass over a text with images, in forward order: those of the vision part come first.
    ///
    /// # Errors
    ///
    /// Those of [`Model::vision`].
    pub fn with_images(model: &Model) -> model::Result<Vec<Self>> {
        Ok(Self::of(&model.plan_with(&model.vision()?)))
    }

    fn of(plan: &Plan) -> Vec<Self> {
        let points = plan.named.iter().map(|(name, node)| {
            let node = &plan.nodes[*node];
            Self {
                name: name.clone(),
                width: node.width,
                heads: node.heads,
                rows: node.rows,
            }
        });
        points.collect()
    }
}

//! What was run: tokens, and images at some of them.

use std::borrow::Cow;
use std::ops::Range;

use super::Recording;
use super::error::{Error, Result};
use crate::model::{Inputs, KnownBug, Model, PIXEL_VALUES, looked_up};
use crate::trace::{Point, Rows};

/// The images of a reference.
#[derive(Clone, Debug, Default)]
pub(super) struct Images {
    /// Pixels of a side.
    size: usize,
    /// `[3, image_size, image_size]` each.
    pixels: Vec<Vec<f32>>,
}

/// The tokens of a reference, and its images.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    pub(super) tokens: &'a [u32],
    pub(super) images: &'a Images,
}

impl Images {
    /// Those that a reference has recorded.
    ///
    /// # Errors
    ///
    /// [`Error::NoPixels`] where it has not recorded them; those of [`Model::vision`] and of [`Recording::read`].
    pub(super) fn of(model: &Model, reference: &Recording) -> Result<Self> {
        if reference.images() == 0 {
            return Ok(Self::default());
        }
        let config = model.vision()?.config().clone();
        let Some(pixels) = reference.read(PIXEL_VALUES)? else {
            return Err(Error::NoPixels {
                path: reference.path().into(),
            });
        };
        let each = pixels.as_slice().chunks(config.pixels());
        let narrowed = |image: &[f64]| image.iter().map(|&x| x as f32).collect();
        Ok(Self {
            size: config.image_size,
            pixels: each.map(narrowed).collect(),
        })
    }

    /// As a model with a bug takes them in.
    pub(super) fn with_bug(&self, bug: KnownBug, model: &Model) -> Result<Self> {
        if self.pixels.is_empty() {
            return Ok(Self::default());
        }
        let config = model.checkpoint().image_processor()?.unwrap_or_default();
        let images = self.pixels.iter();
        Ok(Self {
            size: self.size,
            pixels: images
                .map(|image| bug.pixels(&config, image).into())
                .collect(),
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.pixels.len()
    }

    /// The pixels of each.
    pub(super) fn pixel_values(&self) -> Vec<&[f32]> {
        self.pixels.iter().map(Vec::as_slice).collect()
    }

    /// A row of their pixels, of all images one after the other.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        let (image, row) = (row / (3 * self.size), row % (3 * self.size));
        &self.pixels[image][row * self.size..][..self.size]
    }
}

impl<'a> Sequence<'a> {
    /// Every point of a pass over it, in forward order.
    pub(super) fn points(self, model: &Model) -> Result<Vec<Point>> {
        Ok(match self.images.count() {
            0 => Point::all(model),
            _ => Point::with_images(model)?,
        })
    }

    /// How many rows a tensor has of it.
    pub(super) fn rows(self, rows: Rows) -> usize {
        rows.of(self.tokens.len(), self.images.count())
    }

    /// Where tokens of images stand.
    pub(super) fn spans(self, model: &Model) -> Result<Vec<Range<usize>>> {
        let inputs = Inputs {
            ids: self.tokens,
            pixel_values: &self.images.pixel_values(),
        };
        Ok(inputs.spans(model)?)
    }

    /// The tokens as they are looked up in the embedding.
    pub(super) fn looked_up(self, model: &Model) -> Result<Cow<'a, [u32]>> {
        let spans = self.spans(model)?;
        Ok(looked_up(self.tokens, &spans, model.config().vocab_size))
    }
}

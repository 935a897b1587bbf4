//! Images among the tokens of a sequence: what they put in the place of embeddings, and which tokens see each other.
//!
//! As transformers has it, tokens of images that follow one another without a token of text between see each other in both
//! directions, all of them at once in layers without a window. In layers with one a token sees no further back than its
//! window, and as far ahead as its images go.

use std::borrow::Cow;
use std::ops::Range;

use super::Model;
use super::error::{Error, Result};
use crate::checkpoint::VisionConfig;
use crate::tensor::{Element, Matrix};

/// A prompt as Hugging Face's processor gives it: token ids, and the pixels of the images that stand at some of them.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The tokens. Each image has [`mm_tokens_per_image`](VisionConfig::mm_tokens_per_image) of them, all
    /// [`image_token_index`](VisionConfig::image_token_index).
    pub ids: &'a [u32],
    /// `[3, image_size, image_size]` of each image, in the order of its tokens.
    pub pixel_values: &'a [&'a [f32]],
}

/// Tokens to take in, and what stands in the place of some of their embeddings.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a, E: Element> {
    pub(crate) ids: &'a [u32],
    pub(crate) images: Option<&'a Images<E>>,
}

/// What the vision part makes of the images of a prompt, in a compute type.
#[derive(Clone, Debug)]
pub struct Images<E: Element> {
    /// `[tokens of images, hidden]`
    features: Matrix<E>,
    /// Where the tokens of images stand, each range as long as images follow one another.
    spans: Vec<Range<usize>>,
}

impl<'a> Inputs<'a> {
    /// Token ids without images.
    pub fn text(ids: &'a [u32]) -> Self {
        Self {
            ids,
            pixel_values: &[],
        }
    }

    /// The ranges of tokens that are of images.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::vision_config`](crate::Checkpoint::vision_config), and [`Error::ImageTokens`].
    pub(crate) fn spans(&self, model: &Model) -> Result<Vec<Range<usize>>> {
        match self.pixel_values.len() {
            0 => Ok(Vec::new()),
            images => {
                let config = model.checkpoint().vision_config()?;
                spans(&config, self.ids, images * config.mm_tokens_per_image)
            }
        }
    }
}

impl<'a> From<&'a [u32]> for Inputs<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self::text(ids)
    }
}

impl<'a> From<&'a Vec<u32>> for Inputs<'a> {
    fn from(ids: &'a Vec<u32>) -> Self {
        Self::text(ids)
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Inputs<'a> {
    fn from(ids: &'a [u32; N]) -> Self {
        Self::text(ids)
    }
}

/// The ranges of image tokens among `ids`, which must be `expected`.
fn spans(config: &VisionConfig, ids: &[u32], expected: usize) -> Result<Vec<Range<usize>>> {
    let id = config.image_token_index;
    let mut spans = Vec::new();
    let mut start = 0;
    for run in ids.chunk_by(|a, b| (*a == id) == (*b == id)) {
        if run[0] == id {
            spans.push(start..start + run.len());
        }
        start += run.len();
    }
    let tokens = spans.iter().map(Range::len).sum();
    if tokens == expected {
        return Ok(spans);
    }
    Err(Error::ImageTokens {
        id,
        tokens,
        images: expected / config.mm_tokens_per_image,
        each: config.mm_tokens_per_image,
    })
}

impl<'a, E: Element> Tokens<'a, E> {
    /// Tokens that begin with those of a prompt, and its images. What follows the prompt is text.
    pub fn new(ids: &'a [u32], images: Option<&'a Images<E>>) -> Self {
        Self { ids, images }
    }

    /// The ranges of tokens that see each other, as positions where the first token is at `first`.
    pub(crate) fn spans(&self, first: usize) -> Vec<Range<usize>> {
        let spans = self.images.iter().flat_map(|images| &images.spans);
        spans
            .map(|span| first + span.start..first + span.end)
            .collect()
    }
}

impl<'a, E: Element> From<&'a [u32]> for Tokens<'a, E> {
    fn from(ids: &'a [u32]) -> Self {
        Self::new(ids, None)
    }
}

impl<'a, E: Element> From<&'a Vec<u32>> for Tokens<'a, E> {
    fn from(ids: &'a Vec<u32>) -> Self {
        Self::new(ids, None)
    }
}

impl<'a, E: Element, const N: usize> From<&'a [u32; N]> for Tokens<'a, E> {
    fn from(ids: &'a [u32; N]) -> Self {
        Self::new(ids, None)
    }
}

/// The ids as they are looked up in an embedding of `vocab_size` rows: the first row for those of images, which are at `spans`,
/// that have none. So does transformers.
pub(crate) fn looked_up<'a>(
    ids: &'a [u32],
    spans: &[Range<usize>],
    vocab_size: usize,
) -> Cow<'a, [u32]> {
    let mut ids = Cow::Borrowed(ids);
    for span in spans {
        let outside = |&i: &usize| ids[i] as usize >= vocab_size;
        for i in span.clone().filter(outside).collect::<Vec<_>>() {
            ids.to_mut()[i] = 0;
        }
    }
    ids
}

impl<E: Element> Images<E> {
    /// What `features` `[images · mm_tokens_per_image, hidden]` put in the place of the image tokens among `ids`, in order.
    ///
    /// # Errors
    ///
    /// [`Error::ImageTokens`] where there are not as many.
    pub fn new(config: &VisionConfig, ids: &[u32], features: Matrix<E>) -> Result<Self> {
        let spans = spans(config, ids, features.rows())?;
        Ok(Self { features, spans })
    }

    /// What the model's vision part makes of the images of a prompt, where it has some.
    ///
    /// # Errors
    ///
    /// Those of [`Model::vision`], of [`Vision::features`](super::Vision::features) and of [`new`](Self::new).
    pub fn of(model: &Model, inputs: Inputs<'_>) -> Result<Option<Self>> {
        if inputs.pixel_values.is_empty() {
            return Ok(None);
        }
        let vision = model.vision()?;
        let features = vision.features(inputs.pixel_values, None)?;
        Self::new(vision.config(), inputs.ids, features).map(Some)
    }

    /// Puts features times `factor`, which is 1 unless a known bug is meant, in the place of the embeddings `x` of the tokens
    /// `rows`.
    pub(crate) fn put(&self, rows: Range<usize>, factor: f64, x: &mut Matrix<E>) {
        let factor = E::Acc::from_f64(factor);
        let mut feature = 0;
        for span in &self.spans {
            for token in span.clone() {
                if rows.contains(&token) {
                    let features = self.features.row(feature);
                    for (x, feature) in x.row_mut(token - rows.start).iter_mut().zip(features) {
                        *x = E::round(feature.acc() * factor);
                    }
                }
                feature += 1;
            }
        }
    }
}

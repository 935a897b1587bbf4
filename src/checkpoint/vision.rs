//! What the vision part of a checkpoint looks like.

use super::Checkpoint;
use super::error::{Error, Result};
use super::families::siglip;
use super::fields::{Fields, parse_object};
use super::form::{BlockForm, NormForm};

/// The shape and parts of the vision part of `Gemma3ForConditionalGeneration`, from the fields of its Hugging Face config.
///
/// An image is cut into [`patches_per_side`](Self::patches_per_side)² patches, which go through the tower, and squares of
/// [`pool`](Self::pool)² of them become one token of the text model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VisionConfig {
    /// Length of the tower's residual stream.
    pub hidden_size: usize,
    /// Number of its blocks.
    pub num_hidden_layers: usize,
    /// Pixels of an image's side.
    pub image_size: usize,
    /// Pixels of a patch's side. What is left over at the right and the bottom of an image is not seen.
    pub patch_size: usize,
    /// Tokens that an image becomes.
    pub mm_tokens_per_image: usize,
    /// The token that stands for a part of an image. It may lie outside the vocabulary.
    pub image_token_index: u32,
    /// The token before an image's.
    pub boi_token_index: u32,
    /// The token behind them.
    pub eoi_token_index: u32,
    pub(crate) block: BlockForm,
    /// Behind the blocks, under its whole path.
    pub(crate) post_norm: NormForm,
    /// Of the pooled patches, under its whole path.
    pub(crate) soft_norm: NormForm,
}

impl VisionConfig {
    /// The path of the tower's blocks.
    pub(crate) const LAYERS: &str = "model.vision_tower.encoder.layers";
    /// The path of what is before them.
    pub(crate) const EMBEDDINGS: &str = "model.vision_tower.embeddings";
    /// The path of what is behind the tower.
    pub(crate) const PROJECTOR: &str = "model.multi_modal_projector";

    /// Numbers of an image as the tower takes it in, `[3, image_size, image_size]`.
    pub fn pixels(&self) -> usize {
        3 * self.image_size * self.image_size
    }

    /// Patches of an image's side.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of a side of what becomes one token; 0 where there are more tokens than patches.
    pub fn pool(&self) -> usize {
        self.patches_per_side() / self.mm_tokens_per_image.isqrt()
    }
}

impl Checkpoint {
    /// Reads the config of the vision part, which nothing but an image needs: a text is computed whatever it says.
    ///
    /// # Errors
    ///
    /// [`Error::NoVision`] for a model of another family or without such weights; [`Error::FieldType`],
    /// [`Error::FieldValue`] and [`Error::UnsupportedOption`] with the field's name.
    pub fn vision_config(&self) -> Result<VisionConfig> {
        const NAME: &str = "config.json";
        let missing = |why| Error::NoVision {
            model: self.name.clone(),
            why,
        };
        if !self.config.multimodal {
            return Err(missing("its model_type is not gemma3"));
        }
        if self.tensors.vision_names().len() == 0 {
            return Err(missing("its weights have no vision_tower"));
        }
        let path = self.files.path(NAME);
        let map = parse_object(&path, &self.files.read(NAME)?.unwrap_or_default())?;
        siglip::read(&Fields::new(&path, "", &map))
    }
}

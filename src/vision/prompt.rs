//! Where pictures stand among the tokens of a prompt.

use super::error::{Error, Result};
use super::picture::Picture;
use super::preprocess::{PanAndScan, PixelValues, Preprocessor};
use crate::Checkpoint;
use crate::checkpoint::{ImageProcessorConfig, Tokenizer, VisionConfig};

/// What transformers' `Gemma3Processor` makes of a text and pictures.
///
/// A text says where its pictures stand by the token `boi_token_index` of config.json, `<start_of_image>`: in order, each once. In its place
/// comes the token again, `mm_tokens_per_image` times `image_token_index` and `eoi_token_index`, between two empty lines.
#[derive(Clone, Debug)]
pub struct Processor {
    vision: VisionConfig,
    preprocessor: Preprocessor,
}

impl Processor {
    /// The processor of a checkpoint. One without settings for pictures has `Gemma3ImageProcessor`'s own, at the size that its
    /// vision tower takes in.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::vision_config`] and [`Checkpoint::image_processor`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let vision = checkpoint.vision_config()?;
        let config = checkpoint.image_processor()?;
        let config = config.unwrap_or_else(|| ImageProcessorConfig {
            size: (vision.image_size, vision.image_size),
            ..ImageProcessorConfig::default()
        });
        Ok(Self {
            vision,
            preprocessor: Preprocessor::new(config),
        })
    }

    /// With crops of long pictures.
    pub fn with_pan_and_scan(self, settings: PanAndScan) -> Self {
        Self {
            preprocessor: self.preprocessor.with_pan_and_scan(settings),
            ..self
        }
    }

    /// The text of the token that stands for a picture in a prompt.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`].
    pub fn placeholder(&self, tokenizer: &Tokenizer) -> Result<String> {
        token(tokenizer, "boi_token_index", self.vision.boi_token_index)
    }

    /// The text with every token of its pictures.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`], and [`Error::Placeholders`] where the text has not one for each picture.
    pub fn expand(&self, tokenizer: &Tokenizer, text: &str, pictures: &[Picture]) -> Result<String> {
        let VisionConfig { image_token_index, eoi_token_index, .. } = self.vision;
        let begin = self.placeholder(tokenizer)?;
        let places = text.matches(&begin).count();
        if places != pictures.len() {
            return Err(Error::Placeholders {
                token: begin,
                places,
                pictures: pictures.len(),
            });
        }
        let image = token(tokenizer, "image_token_index", image_token_index)?;
        let end = token(tokenizer, "eoi_token_index", eoi_token_index)?;
        let images = image.repeat(self.vision.mm_tokens_per_image);
        let one = format!("\n\n{begin}{images}{end}\n\n");
        let mut texts = text.split(&begin);
        let mut expanded = texts.next().unwrap_or_default().to_owned();
        for (picture, behind) in pictures.iter().zip(texts) {
            match self.preprocessor.crops(picture) {
                0 => expanded += &one,
                crops => {
                    let crops = vec![one.as_str(); crops].join(" ");
                    expanded += &format!(
                        "Here is the original image {one} and here are some crops to help you see better {crops}"
                    );
                }
            }
            expanded += behind;
        }
        Ok(expanded)
    }

    /// What the model reads of pictures at their tokens, in order, after a check that `ids` have the tokens for it.
    ///
    /// # Errors
    ///
    /// [`Error::ImageTokens`].
    pub fn pixel_values(&self, ids: &[u32], pictures: &[Picture]) -> Result<Vec<PixelValues>> {
        let (id, each) = (self.vision.image_token_index, self.vision.mm_tokens_per_image);
        let images = pictures.iter().map(|picture| 1 + self.preprocessor.crops(picture)).sum();
        let runs = ids.chunk_by(|a, b| (*a == id) == (*b == id));
        let runs: Vec<usize> = runs.filter(|run| run[0] == id).map(<[u32]>::len).collect();
        let whole = runs.iter().all(|run| run.is_multiple_of(each));
        let tokens = runs.iter().sum();
        if !whole || tokens != images * each {
            return Err(Error::ImageTokens { id, tokens, images, each });
        }
        let values = pictures.iter().map(|picture| self.preprocessor.pixel_values(picture));
        Ok(values.flatten().collect())
    }
}

/// The text of a token that config.json names.
fn token(tokenizer: &Tokenizer, field: &'static str, id: u32) -> Result<String> {
    tokenizer.token_text(id).ok_or(Error::NoToken { field, id })
}

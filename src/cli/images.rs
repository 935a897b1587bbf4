//! `--image`: prompts with pictures.

use std::path::PathBuf;

use clap::Args;
use context_patch::checkpoint::{Conversation, Tokenizer, VisionConfig};
use context_patch::model::{Images, Inputs, Model};
use context_patch::tensor::Element;
use context_patch::vision::{self, PanAndScan, Picture, PictureRecord, PixelValues, Processor};
use context_patch::{Checkpoint, Result};

/// The pictures of a prompt.
#[derive(Args)]
pub(super) struct ImageArgs {
    /// A picture for the model to see, PNG, JPEG, WebP or GIF; again for each. They stand where the prompt has the token
    /// <start_of_image>, in order, or before a prompt without it
    #[arg(long = "image", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Let the model see crops of long pictures, too
    #[arg(long, requires = "files")]
    pub(super) pan_and_scan: bool,
}

/// A prompt before it is tokens.
pub(super) enum Written<'a> {
    /// A text as it is.
    Text(&'a str),
    /// A text to put into the chat template.
    Chat(Conversation),
    /// Messages, which have pictures in their places.
    Messages(Conversation),
}

/// A prompt: tokens, and the pictures at some of them.
pub(super) struct Prompt {
    pub(super) ids: Vec<u32>,
    pub(super) pictures: Vec<Picture>,
    values: Vec<PixelValues>,
}

/// The tokens of a text that follows a context, and is text alone.
pub(super) fn encode_behind(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    text: &str,
) -> Result<Vec<u32>> {
    let ids = tokenizer.encode_more(text)?;
    let is_of_picture = |config: VisionConfig| {
        ids.contains(&config.boi_token_index) || ids.contains(&config.image_token_index)
    };
    if checkpoint.vision_config().is_ok_and(is_of_picture) {
        let text = text.to_owned();
        return Err(vision::Error::BehindContext { text }.into());
    }
    Ok(ids)
}

/// Reads and decodes files.
pub(super) fn open_pictures(files: &[PathBuf]) -> Result<Vec<Picture>> {
    let open = |file: &PathBuf| Ok(Picture::open(file)?);
    files.iter().map(open).collect()
}

impl ImageArgs {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether a prompt for this model may have pictures, or lack them.
    pub(super) fn concern(&self, checkpoint: &Checkpoint) -> bool {
        !self.is_empty() || checkpoint.vision_config().is_ok()
    }

    /// The tokens of a prompt, with the pictures in their places.
    ///
    /// A text for a model that sees may have no token of a picture where there is none; another model's is as it ever was.
    pub(super) fn prompt(
        &self,
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        written: Written<'_>,
    ) -> Result<Prompt> {
        let (processor, pictures) = self.open(checkpoint)?;
        // A tokenizer without the tokens of pictures will do for a text.
        let knows = |p: &Processor| !pictures.is_empty() || p.placeholder(tokenizer).is_ok();
        let Some(processor) = processor.filter(knows) else {
            let ids = match written {
                Written::Text(text) => tokenizer.encode(text)?,
                Written::Chat(conversation) | Written::Messages(conversation) => {
                    let text = checkpoint.chat_template()?.render(&conversation)?;
                    tokenizer.encode_as_written(&text)?
                }
            };
            return Ok(Prompt::text(ids));
        };
        let place = processor.placeholder(tokenizer)?;
        let expand = |text: &str| processor.expand(tokenizer, text, &pictures);
        let ids = match written {
            Written::Text(text) if text.contains(&place) => tokenizer.encode(&expand(text)?)?,
            Written::Text(text) => {
                let before = place.repeat(pictures.len());
                tokenizer.encode(&expand(&(before + text))?)?
            }
            Written::Chat(conversation) => {
                let template = checkpoint.chat_template()?;
                let mut text = template.render(&conversation)?;
                if !text.contains(&place) && !pictures.is_empty() {
                    text = template.render(&conversation.with_images(pictures.len()))?;
                }
                tokenizer.encode_as_written(&expand(&text)?)?
            }
            Written::Messages(conversation) => {
                let text = checkpoint.chat_template()?.render(&conversation)?;
                tokenizer.encode_as_written(&expand(&text)?)?
            }
        };
        Prompt::new(ids, &processor, pictures)
    }

    /// Token ids that have those of the pictures in their places.
    pub(super) fn ids(&self, checkpoint: &Checkpoint, ids: Vec<u32>) -> Result<Prompt> {
        match self.open(checkpoint)? {
            (Some(processor), pictures) => Prompt::new(ids, &processor, pictures),
            (None, _) => Ok(Prompt::text(ids)),
        }
    }

    /// The pictures, and what puts them into a prompt; a model that does not see needs none where there are no pictures.
    fn open(&self, checkpoint: &Checkpoint) -> Result<(Option<Processor>, Vec<Picture>)> {
        let pictures = open_pictures(&self.files)?;
        let processor = match Processor::of(checkpoint) {
            Err(_) if pictures.is_empty() => None,
            Ok(processor) if self.pan_and_scan => {
                Some(processor.with_pan_and_scan(PanAndScan::default()))
            }
            processor => Some(processor?),
        };
        Ok((processor, pictures))
    }
}

impl Prompt {
    /// Tokens without pictures.
    pub(super) fn text(ids: Vec<u32>) -> Self {
        Self {
            ids,
            pictures: Vec::new(),
            values: Vec::new(),
        }
    }

    fn new(ids: Vec<u32>, processor: &Processor, pictures: Vec<Picture>) -> Result<Self> {
        let values = processor.pixel_values(&ids, &pictures)?;
        Ok(Self {
            ids,
            pictures,
            values,
        })
    }

    /// What the model reads of each image, `[3, height, width]`.
    pub(super) fn pixel_values(&self) -> Vec<&[f32]> {
        self.values.iter().map(|image| &*image.values).collect()
    }

    /// The pictures as files name them.
    pub(super) fn records(&self) -> Vec<PictureRecord> {
        self.pictures.iter().map(Picture::record).collect()
    }

    /// The tokens with their [pixel values](Self::pixel_values).
    pub(super) fn inputs<'a>(&'a self, pixel_values: &'a [&'a [f32]]) -> Inputs<'a> {
        Inputs {
            ids: &self.ids,
            pixel_values,
        }
    }

    /// What the model makes of its images.
    pub(super) fn images<E: Element>(&self, model: &Model) -> Result<Option<Images<E>>> {
        Ok(Images::of(model, self.inputs(&self.pixel_values()))?)
    }
}

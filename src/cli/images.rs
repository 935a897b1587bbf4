//! `--image`: prompts with pictures.

use std::path::PathBuf;

use clap::Args;
use context_patch::checkpoint::{Conversation, Tokenizer};
use context_patch::model::{Images, Inputs, Model, Session, Tokens};
use context_patch::tensor::Element;
use context_patch::vision::{PanAndScan, Picture, PixelValues, Processor};
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
    pan_and_scan: bool,
}

/// A prompt before it is tokens.
pub(super) enum Written<'a> {
    /// A text as it is.
    Text(&'a str),
    /// A text to put into the chat template.
    Chat(Conversation),
    /// Messages, which have pictures in their places.
    Messages(Conversation),
    /// Token ids, which have those of pictures in their places.
    Ids(Vec<u32>),
}

/// A prompt: tokens, and the pictures at some of them.
pub(super) struct Prompt {
    pub(super) ids: Vec<u32>,
    pub(super) pictures: Vec<Picture>,
    values: Vec<PixelValues>,
}

impl ImageArgs {
    /// Whether a prompt for this model may have pictures, or lack them.
    pub(super) fn concern(&self, checkpoint: &Checkpoint) -> bool {
        !self.files.is_empty() || checkpoint.vision_config().is_ok()
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
        let open = |file: &PathBuf| Picture::open(file);
        let pictures = self.files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let mut processor = match Processor::of(checkpoint) {
            Err(_) if pictures.is_empty() => None,
            processor => Some(processor?),
        };
        if self.pan_and_scan {
            processor = processor.map(|p| p.with_pan_and_scan(PanAndScan::default()));
        }
        let expand = |text: String| match &processor {
            Some(processor) => processor.expand(tokenizer, &text, &pictures),
            None => Ok(text),
        };
        let has_places = |text: &str| -> Result<bool> {
            let Some(processor) = processor.as_ref().filter(|_| !pictures.is_empty()) else {
                return Ok(true);
            };
            Ok(text.contains(&processor.placeholder(tokenizer)?))
        };
        let render = |conversation: &Conversation| -> Result<String> {
            Ok(checkpoint.chat_template()?.render(conversation)?)
        };
        let ids = match written {
            Written::Text(text) => {
                let mut text = text.to_owned();
                if let (false, Some(processor)) = (has_places(&text)?, &processor) {
                    let place = processor.placeholder(tokenizer)?;
                    text.insert_str(0, &place.repeat(pictures.len()));
                }
                tokenizer.encode(&expand(text)?)?
            }
            Written::Chat(conversation) => {
                let mut text = render(&conversation)?;
                if !has_places(&text)? {
                    text = render(&conversation.with_images(pictures.len()))?;
                }
                tokenizer.encode_as_written(&expand(text)?)?
            }
            Written::Messages(conversation) => {
                tokenizer.encode_as_written(&expand(render(&conversation)?)?)?
            }
            Written::Ids(ids) => ids,
        };
        let values = match &processor {
            Some(processor) => processor.pixel_values(&ids, &pictures)?,
            None => Vec::new(),
        };
        Ok(Prompt { ids, pictures, values })
    }
}

impl Prompt {
    /// What the model reads of each image, `[3, height, width]`.
    pub(super) fn pixel_values(&self) -> Vec<&[f32]> {
        self.values.iter().map(|image| &*image.values).collect()
    }

    /// What the model makes of its images.
    pub(super) fn images<E: Element>(&self, model: &Model) -> Result<Option<Images<E>>> {
        let inputs = Inputs {
            ids: &self.ids,
            pixel_values: &self.pixel_values(),
        };
        Ok(Images::of(model, inputs, None)?)
    }

    /// Lets a session take in the images and what stands before and between them; the tokens that are left.
    pub(super) fn take_in<E: Element>(&self, session: &mut Session<'_, E>) -> Result<&[u32]> {
        let Some(images) = self.images(session.model())? else {
            return Ok(&self.ids);
        };
        let (before, last) = self.ids.split_at(self.ids.len() - 1);
        session.forward(Tokens::new(before, Some(&images)), 0)?;
        Ok(last)
    }
}

//! A checkpoint in Hugging Face's layout (config.json, safetensors, tokenizer.json, chat template), or a GGUF file, which is read
//! as if it were one.
//!
//! Nothing read from a file is trusted: sizes are bounded before anything is computed from them, and
//! whatever is wrong becomes an [`Error`] that names the file and the field or tensor.

mod chat;
mod config;
mod error;
mod families;
mod fields;
mod files;
mod folder;
pub(crate) mod form;
mod gguf;
pub mod hub;
mod image_processor;
mod json;
mod names;
mod safetensors;
mod tensors;
mod tokenizer;
mod tokenizer_config;
mod vision;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

pub use chat::{ChatTemplate, Conversation, Message};
pub use config::Config;
pub use error::{Error, Result};
pub use folder::Converted;
pub use form::{Rope, RopeScaling};
pub(crate) use gguf::{Layout as GgufLayout, Values, write_gguf};
pub use image_processor::{ImageProcessorConfig, Resample};
pub use safetensors::Access;
pub(crate) use safetensors::{SINGLE, is_index, list, load};
pub(crate) use tensors::Stored;
pub use tensors::Tensors;
pub use tokenizer::{TextStream, Tokenizer};
pub use vision::VisionConfig;
pub(crate) use writer::{Layout, TensorsFile, write_tensors, written, written_length};
pub use writer::{TensorData, write_safetensors};

use crate::tensor::Tensor;
use fields::{Fields, parse_object};
use files::{Files, Source};
use gguf::Gguf;
use tokenizer_config::TokenizerConfig;

/// Texts by name.
type Named = BTreeMap<String, String>;

/// A model's files, the config and the weights parsed and checked, the rest read when asked for.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    name: String,
    files: Files,
    /// The GGUF file that it is, if it is one.
    gguf: Option<Arc<Gguf>>,
    config: Config,
    tensors: Tensors,
    /// The file of weights that config.json names.
    weights_file: Option<String>,
    eos_token_ids: Vec<u32>,
}

impl Checkpoint {
    /// Opens `model`: a GGUF file, a directory, or the id of a repository in the local Hugging Face cache.
    ///
    /// # Errors
    ///
    /// Those of [`open_revision`](Self::open_revision).
    pub fn open(model: &str, access: Access) -> Result<Self> {
        Self::open_revision(model, None, access)
    }

    /// [`open`](Self::open) with the revision of a repository: a branch, a tag or a full commit.
    ///
    /// # Errors
    ///
    /// Those of [`hub::resolve`], [`Config::parse`] and [`Tensors::open`], [`Error::NoConfig`] and
    /// [`Error::DanglingLink`].
    pub fn open_revision(model: &str, revision: Option<&str>, access: Access) -> Result<Self> {
        let file = Path::new(model);
        if gguf::is_gguf(file)? {
            return Self::of_gguf(model, Gguf::open(file, access)?);
        }
        let dir = hub::resolve(model, revision, hub::variable)?;
        Self::open_dir(model, &dir, access)
    }

    /// A checkpoint from a GGUF file in memory; `name` stands for the file in messages.
    ///
    /// # Errors
    ///
    /// [`Error::NotGguf`] and those of [`Config::parse`].
    pub fn from_gguf(name: &str, data: Bytes) -> Result<Self> {
        Self::of_gguf(name, Gguf::parse(Path::new(name), data)?)
    }

    fn of_gguf(name: &str, gguf: Gguf) -> Result<Self> {
        let gguf = Arc::new(gguf);
        let files = Files::Of(gguf.clone());
        let mut checkpoint = Self::with_weights(name, files, |_, _| gguf.checkpoint_tensors())?;
        checkpoint.config.as_stored_in_gguf();
        checkpoint.gguf = Some(gguf);
        Ok(checkpoint)
    }

    /// Opens the directory `dir` of a model called `name`.
    pub(crate) fn open_dir(name: &str, dir: &Path, access: Access) -> Result<Self> {
        let files = Files::Dir(dir.into());
        Self::with_weights(name, files, |_, named| match named {
            Some(file) => Tensors::open_named(dir, file, access),
            None => Tensors::open(dir, access),
        })
    }

    /// A checkpoint from files in memory, such as a model compiled into a binary: pairs of a file's
    /// name and content. It needs `config.json` and `model.safetensors`, and uses
    /// `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`
    /// where they are given. `name` stands for the directory in messages.
    ///
    /// # Errors
    ///
    /// Those of [`Config::parse`] and [`Tensors::parse`], [`Error::NoConfig`] and
    /// [`Error::NoWeights`].
    pub fn from_files<'a>(
        name: &str,
        files: impl IntoIterator<Item = (&'a str, Bytes)>,
    ) -> Result<Self> {
        let files = files.into_iter().map(|(name, data)| (name.into(), data));
        let files = Files::Memory {
            name: name.into(),
            files: files.collect(),
        };
        Self::with_weights(name, files, |files, named| {
            let file = named.unwrap_or(SINGLE);
            match files.read(file)? {
                Some(data) => Tensors::parse(&files.path(file), data),
                None => Err(Error::NoWeights {
                    dir: files.path(""),
                    other: None,
                }),
            }
        })
    }

    fn with_weights(
        name: &str,
        files: Files,
        weights: impl FnOnce(&Files, Option<&str>) -> Result<Tensors>,
    ) -> Result<Self> {
        let path = files.path("config.json");
        let Some(json) = files.read("config.json")? else {
            refuse_dangling(&path)?;
            return Err(Error::NoConfig {
                dir: files.path(""),
            });
        };
        let config = Config::parse(&path, &json)?;
        let eos_token_ids = eos_token_ids(&files, &config)?;
        let weights_file = config::weights_file(&path, &json)?;
        let mut tensors = weights(&files, weights_file.as_deref())?;
        tensors.separate_experts(&config)?;
        Ok(Self {
            name: name.into(),
            files,
            gguf: None,
            config,
            tensors,
            weights_file,
            eos_token_ids,
        })
    }

    /// What the model was opened as: a path, a repository id, or the name given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What names the model from any folder: a repository and its commit for one of the Hugging Face cache, a whole
    /// path for another directory, and the name of files in memory.
    pub(crate) fn origin(&self) -> hub::Origin {
        match (self.dir(), self.gguf()) {
            (Some(dir), _) => hub::origin(dir),
            (None, Some(gguf)) => hub::Origin {
                name: std::path::absolute(gguf.path())
                    .unwrap_or_else(|_| gguf.path().into())
                    .to_string_lossy()
                    .into_owned(),
                revision: None,
            },
            (None, None) => hub::Origin {
                name: self.name.clone(),
                revision: None,
            },
        }
    }

    /// The directory of the files, or `None` for files in memory.
    pub fn dir(&self) -> Option<&Path> {
        match &self.files {
            Files::Dir(dir) => Some(dir),
            Files::Memory { .. } | Files::Of(_) => None,
        }
    }

    /// The GGUF file that it is, if it is one.
    fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_deref()
    }

    /// The content of the file `name` of this checkpoint, or `None` where there is none: to copy it
    /// beside changed weights.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn file(&self, name: &str) -> Result<Option<Bytes>> {
        self.files.read(name)
    }

    /// The file or index of weights that config.json names, where it names one.
    pub(crate) fn weights_file(&self) -> Option<&str> {
        self.weights_file.as_deref()
    }

    /// The same checkpoint with some tensors replaced; the others are shared.
    pub(crate) fn replaced(&self, with: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self {
            tensors: self.tensors.replaced(with),
            ..self.clone()
        }
    }

    /// The model's config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model's weights.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The tokens that end a generated text: those of generation_config.json, be they none, and where it is
    /// missing or no JSON those of config.json.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// Reads the tokenizer; for the published models, with their 262 144 tokens, this takes about two
    /// seconds.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`], and those of [`Tokenizer::from_bytes`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        if let Some(gguf) = &self.gguf {
            let settings = self.tokenizer_config()?;
            return Tokenizer::as_written(gguf.path(), gguf.tokenizer()?, &self.config, settings);
        }
        let Some(json) = self.files.read("tokenizer.json")? else {
            return Err(Error::NoTokenizer {
                dir: self.files.path(""),
            });
        };
        let path = self.files.path("tokenizer.json");
        Tokenizer::load(&path, &json, &self.config, self.tokenizer_config()?)
    }

    /// Reads the chat template where transformers' tokenizer looks for it: `chat_template.jinja` and
    /// `additional_chat_templates`, else `chat_template` in `tokenizer_config.json`. A model that has none there has
    /// the one of its processor, in `processor_config.json` or `chat_template.json`.
    ///
    /// # Errors
    ///
    /// [`Error::NoChatTemplate`], [`Error::ChatTemplate`], and those of reading JSON files.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        match self.chat_sources()? {
            (Some((path, sources)), tokens) => ChatTemplate::of_several(&path, sources, tokens),
            (None, _) => Err(Error::NoChatTemplate {
                dir: self.files.path(""),
                looked: match &self.gguf {
                    Some(_) => "no tokenizer.chat_template",
                    None => {
                        "no chat_template.jinja, and no chat_template in tokenizer_config.json, processor_config.json or \
                         chat_template.json"
                    }
                },
            }),
        }
    }

    /// Reads what becomes of a picture before the model reads it, where transformers looks for it: `image_processor` in
    /// processor_config.json, else preprocessor_config.json; `None` where there is neither.
    ///
    /// # Errors
    ///
    /// Those of [`ImageProcessorConfig::parse`].
    pub fn image_processor(&self) -> Result<Option<ImageProcessorConfig>> {
        image_processor::read(&self.files)
    }

    /// The chat templates by name with the file that has them, and the special tokens by name.
    fn chat_sources(&self) -> Result<(Option<(PathBuf, Named)>, Named)> {
        let mut settings = self.tokenizer_config()?;
        let configured = std::mem::take(&mut settings.chat_templates);
        let sources = chat::sources(&self.files, configured)?;
        // A GGUF file's does not pad, and takes time to write.
        let json = match &self.gguf {
            Some(_) => Bytes::new(),
            None => self.files.read("tokenizer.json")?.unwrap_or_default(),
        };
        Ok((sources, tokenizer::special_tokens(settings, &json)?))
    }

    /// The tokenizer's settings, with the model type of config.json, and its class where they name none.
    fn tokenizer_config(&self) -> Result<TokenizerConfig> {
        const NAME: &str = "config.json";
        let mut settings = TokenizerConfig::read(&self.files)?;
        let path = self.files.path(NAME);
        let map = parse_object(&path, &self.files.read(NAME)?.unwrap_or_default())?;
        let fields = Fields::new(&path, "", &map);
        settings.model_type = fields.string("model_type")?.unwrap_or_default().into();
        if settings.class.is_none() {
            settings.class = tokenizer_config::class(&path, &fields)?;
        }
        Ok(settings)
    }
}

/// Says of a file that it is a link to nothing, if it is.
fn refuse_dangling(file: &Path) -> Result<()> {
    if file.is_symlink() && !file.exists() {
        return Err(Error::DanglingLink { link: file.into() });
    }
    Ok(())
}

/// The ids in generation_config.json; where there is no such file, or it is no JSON, those in config.json.
fn eos_token_ids(files: &Files, config: &Config) -> Result<Vec<u32>> {
    const NAME: &str = "generation_config.json";
    let path = files.path(NAME);
    let map = match files.read(NAME)?.map(|json| parse_object(&path, &json)) {
        None | Some(Err(Error::NotJson { .. })) => return Ok(config.eos_token_ids.clone()),
        Some(map) => map?,
    };
    let ids = Fields::new(&path, "", &map).token_ids("eos_token_id")?;
    let mut ids = ids.unwrap_or_default();
    ids.retain(|id| (*id as usize) < config.vocab_size);
    Ok(ids)
}

#[cfg(test)]
mod tests;

//! The checkpoint's own chat template, rendered as Hugging Face's `apply_chat_template` renders it.
//!
//! minijinja does the work. What Jinja2, Python and transformers do otherwise stands in the files of this module:
//! the source is prepared (`source`), filters, tests and functions are replaced (`environment`), Python's values,
//! methods and JSON are added (`python`, `methods`, `json`), and the clock (`clock`).

mod clock;
mod conversation;
mod environment;
mod globals;
mod json;
mod methods;
mod python;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::{Environment, ErrorKind, Value};

pub use conversation::{Conversation, Message};

use super::error::{Error, Result};
use super::fields::{Fields, parse_object};
use super::files::Files;
use crate::message::one_line;

/// A chat template, parsed; or several under names, of which the one for tools is used where there are tools.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    path: PathBuf,
    sources: BTreeMap<String, String>,
    special_tokens: BTreeMap<String, String>,
}

/// The template's name in messages; not ending in `.html`, so that nothing is escaped.
const NAME: &str = "chat_template";

/// The templates' names in a file that has several.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Steps that one rendering may take, or 64 bytes each that it may write: a thousand times what a
/// template needs, and done in seconds.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Parses the Jinja template `source`; `path` is the file it comes from and only serves the
    /// messages. `special_tokens` are the names and texts of the tokens that the template finds: `bos_token`,
    /// `eos_token` and so on.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`].
    pub fn parse<N: Into<String>, T: Into<String>>(
        path: &Path,
        source: String,
        special_tokens: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self> {
        let sources = BTreeMap::from([(DEFAULT.to_owned(), source)]);
        let tokens = special_tokens.into_iter();
        let tokens = tokens.map(|(name, text)| (name.into(), text.into()));
        Self::of_several(path, sources, tokens.collect())
    }

    /// Templates under names.
    pub(super) fn of_several(
        path: &Path,
        sources: BTreeMap<String, String>,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        let env = environment::environment(FUEL).map_err(|e| refused(path, &e))?;
        let template = Self {
            env,
            path: path.into(),
            sources,
            special_tokens,
        };
        if let Some(source) = template.sources.get(DEFAULT) {
            template.compile(source, |_| Ok(()))?;
        }
        Ok(template)
    }

    /// The prompt that stands for `conversation`. Encode it with
    /// [`Tokenizer::encode_as_written`](super::Tokenizer::encode_as_written): whether `<bos>` begins it is the
    /// template's business.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`], for instance where roles do not alternate or a loop goes on and on.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        let name = if self.sources.contains_key(TOOL_USE) && conversation.has_tools() {
            TOOL_USE
        } else {
            DEFAULT
        };
        let Some(source) = self.sources.get(name) else {
            let names: Vec<&str> = self.sources.keys().map(String::as_str).collect();
            let names = names.join(", ");
            return Err(self.refuse(&format!("none of its templates ({names}) is named {name}")));
        };
        let variables = conversation.variables().map_err(|e| self.refuse(&e))?;
        let tokens = self.special_tokens.iter();
        let tokens = tokens.map(|(name, text)| (name.clone(), Value::from(text.as_str())));
        // Later ones replace earlier ones: what the caller gives, the tokens.
        let context: BTreeMap<String, Value> = tokens.chain(variables).collect();
        self.compile(source, |template| template.render(Value::from(context)))
    }

    fn compile<T>(
        &self,
        source: &str,
        use_it: impl FnOnce(&minijinja::Template<'_, '_>) -> std::result::Result<T, minijinja::Error>,
    ) -> Result<T> {
        let source = source::prepare(source).map_err(|e| self.refuse(&e))?;
        let template = self.env.template_from_named_str(NAME, &source);
        let done = template.and_then(|template| use_it(&template));
        done.map_err(|e| refused(&self.path, &e))
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::ChatTemplate {
            path: self.path.clone(),
            reason: one_line(reason, 300),
        }
    }
}

/// The templates by name and the path of their file, from where transformers takes them; `configured` are those of
/// tokenizer_config.json.
pub(super) fn sources(
    files: &Files,
    configured: BTreeMap<String, String>,
) -> Result<Option<(PathBuf, BTreeMap<String, String>)>> {
    const FILE: &str = "chat_template.jinja";
    const FOLDER: &str = "additional_chat_templates";
    let mut names = vec![(DEFAULT.to_owned(), FILE.to_owned())];
    for file in files.list(FOLDER)? {
        if let Some(name) = file.strip_suffix(".jinja") {
            names.push((name.into(), format!("{FOLDER}/{file}")));
        }
    }
    let mut sources = BTreeMap::new();
    let mut path = None;
    for (name, file) in names {
        if let Some(source) = files.read(&file)? {
            let text = String::from_utf8(source.into()).map_err(|_| Error::ChatTemplate {
                path: files.path(&file),
                reason: "it is not UTF-8; save it as such".into(),
            })?;
            path.get_or_insert(files.path(&file));
            sources.insert(name, text);
        }
    }
    if let Some(path) = path {
        return Ok(Some((path, sources)));
    }
    if !configured.is_empty() {
        return Ok(Some((files.path("tokenizer_config.json"), configured)));
    }
    // A processor's own.
    for file in ["processor_config.json", "chat_template.json"] {
        let path = files.path(file);
        let Some(json) = files.read(file)? else {
            continue;
        };
        let map = parse_object(&path, &json)?;
        let source = Fields::new(&path, "", &map).string("chat_template")?;
        if let Some(source) = source.map(String::from) {
            return Ok(Some((path, BTreeMap::from([(DEFAULT.to_owned(), source)]))));
        }
    }
    Ok(None)
}

fn refused(path: &Path, error: &minijinja::Error) -> Error {
    let reason = match error.kind() {
        ErrorKind::OutOfFuel => format!("it is not done after {FUEL} steps; use another template"),
        _ => error.to_string(),
    };
    Error::ChatTemplate {
        path: path.into(),
        reason: one_line(&reason, 300),
    }
}

#[cfg(test)]
mod tests;

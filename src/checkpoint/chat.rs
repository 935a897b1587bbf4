//! The checkpoint's own chat template, rendered as Hugging Face's `apply_chat_template` renders it.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::error::{Error, Result};
use crate::message::one_line;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `user`, `assistant`, or `system` where the template knows it.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user".into(),
            content: content.into(),
        }
    }
}

/// A chat template, parsed.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    path: PathBuf,
    bos_token: String,
    eos_token: String,
}

/// The template's name in its environment and in messages; not ending in `.html`, so that nothing is
/// escaped.
const NAME: &str = "chat_template";

/// Steps that one rendering may take, or 64 bytes each that it may write: a thousand times what a
/// template needs, and done in seconds.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Parses the Jinja template `source`; `path` is the file it comes from and only serves the
    /// messages. `bos_token` and `eos_token` are what the template finds under these names.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`].
    pub fn parse(path: &Path, source: String, bos_token: &str, eos_token: &str) -> Result<Self> {
        let wrong = |e: minijinja::Error| refused(path, &e);
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        env.set_syntax(syntax.map_err(wrong)?);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(unknown_method_callback);
        env.add_function("raise_exception", raise_exception);
        env.add_template_owned(NAME, source).map_err(wrong)?;
        Ok(Self {
            env,
            path: path.into(),
            bos_token: bos_token.into(),
            eos_token: eos_token.into(),
        })
    }

    /// The prompt that stands for `messages` and ends where the model's answer begins. Encode it with
    /// [`Tokenizer::encode`](super::Tokenizer::encode), which does not repeat the `<bos>` that the
    /// template writes.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`], for instance where roles do not alternate or a loop goes on and on.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let turn =
            |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let messages: Vec<Value> = messages.iter().map(turn).collect();
        let template = self.env.get_template(NAME);
        let text = template.and_then(|t| {
            t.render(context! {
                messages,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
                add_generation_prompt => true,
            })
        });
        text.map_err(|e| refused(&self.path, &e))
    }
}

/// What templates call to refuse a conversation.
fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
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

//! A prompt and its queries as token ids.

use crate::checkpoint::{ChatTemplate, Conversation, Message, Result, Tokenizer};

/// What stands for a query while a template is looked at.
const PLACE: &str = "\u{1}QUERY\u{1}";

/// A prompt that is to be compiled.
pub struct Prompt<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template, where the prompt is a system message; otherwise queries follow it as they are.
    pub template: Option<&'a ChatTemplate>,
    /// The prompt.
    pub context: &'a str,
}

impl Prompt<'_> {
    /// A query behind the prompt, and without it.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer and the template.
    pub fn query(&self, query: &str) -> Result<[Vec<u32>; 2]> {
        match self.template {
            None => Ok([
                self.tokenizer.encode(&format!("{}{query}", self.context))?,
                self.tokenizer.encode(query)?,
            ]),
            Some(template) => {
                let user = || Message::user(query);
                let with = Conversation::new([Message::system(self.context), user()]);
                let render = |conversation| {
                    let text = template.render(&conversation)?;
                    self.tokenizer.encode_as_written(&text)
                };
                Ok([render(with)?, render(Conversation::new([user()]))?])
            }
        }
    }

    /// Where the model with the prompt goes on by itself with a query, and the same without the prompt.
    ///
    /// # Errors
    ///
    /// Those of the tokenizer and the template.
    pub fn beginning(&self) -> Result<Vec<u32>> {
        let Some(template) = self.template else {
            return self.tokenizer.encode(self.context);
        };
        let messages = [Message::system(self.context), Message::user(PLACE)];
        let text = template.render(&Conversation::new(messages))?;
        let before = text.split(PLACE).next().unwrap_or_default();
        self.tokenizer.encode_as_written(before)
    }
}

//! Text out of tokens as they come.

use super::super::error::Result;
use super::Tokenizer;

/// Text out of tokens as they come, never cutting a character in two. The pieces joined are what
/// [`Tokenizer::decode`] gives for all the tokens at once, as long as these spell valid UTF-8. A byte that can no longer
/// be part of a character becomes U+FFFD as soon as that is known.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last token that is not special: the decoder may treat the first token of a text in its own way.
    last: Option<u32>,
    /// The bytes of a character that is not complete.
    pending: Vec<u8>,
}

/// How a tokenizer's decoder reads bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    /// No token stands for bytes.
    None,
    /// Tokens such as `<0x0A>` stand for a byte each; each that is not UTF-8 becomes a U+FFFD.
    Fallback,
    /// Every token is bytes, written as GPT-2 writes them; each beginning of a character becomes a U+FFFD.
    Level,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            last: None,
            pending: Vec::new(),
        }
    }

    /// Takes the next token and returns the text that it completes: empty for a special token, or
    /// within a character spelled as several tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`](crate::checkpoint::Error::Tokenizer).
    pub fn push(&mut self, id: u32) -> Result<String> {
        if let Some(bytes) = self.tokenizer.bytes_of(id) {
            if bytes.is_empty() {
                return Ok(self.complete());
            }
            // A decoder may leave out a space that begins a text.
            let left_out = self.last.is_none() && self.tokenizer.decode(&[id])?.is_empty();
            self.pending.extend(bytes.iter().filter(|_| !left_out));
            self.last = Some(id);
            return Ok(self.complete());
        }
        let text = self.text_of(id)?;
        self.last = Some(id);
        Ok(self.rest() + &text)
    }

    /// What is left when no more tokens come: U+FFFD for an unfinished character.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`](crate::checkpoint::Error::Tokenizer).
    pub fn finish(mut self) -> Result<String> {
        Ok(self.rest())
    }

    /// The text of a token that follows the last one.
    fn text_of(&self, id: u32) -> Result<String> {
        let Some(last) = self.last else {
            return self.tokenizer.decode(&[id]);
        };
        let before = self.tokenizer.decode(&[last])?;
        let both = self.tokenizer.decode(&[last, id])?;
        match both.strip_prefix(&before) {
            Some(text) => Ok(text.into()),
            None => self.tokenizer.decode(&[id]),
        }
    }

    /// Takes all pending bytes but the beginning of a character.
    fn complete(&mut self) -> String {
        let mut text = String::new();
        let mut bytes = &self.pending[..];
        while !bytes.is_empty() {
            let (valid, wrong) = match std::str::from_utf8(bytes) {
                Ok(_) => (bytes.len(), 0),
                Err(e) => match e.error_len() {
                    Some(wrong) => (e.valid_up_to(), wrong),
                    None => {
                        text += &String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
                        bytes = &bytes[e.valid_up_to()..];
                        break;
                    }
                },
            };
            text += &String::from_utf8_lossy(&bytes[..valid]);
            text += &self.replacement(wrong);
            bytes = &bytes[valid + wrong..];
        }
        self.pending = bytes.to_vec();
        text
    }

    /// Takes the pending beginning of a character, which nothing completes.
    fn rest(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        self.replacement(rest.len())
    }

    /// What stands for this many bytes that are no character.
    fn replacement(&self, bytes: usize) -> String {
        let count = if self.tokenizer.bytes == Bytes::Level {
            bytes.min(1)
        } else {
            bytes
        };
        "\u{fffd}".repeat(count)
    }
}

/// The bytes of a token as GPT-2 writes them: printable Latin-1 characters for themselves, the others as the
/// characters from U+0100 on, in their order. A token with any other character is its own text.
pub(super) fn level_bytes(token: &str) -> Vec<u8> {
    let is_itself = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let byte = |c: char| match u32::from(c) {
        code @ 0..=0xff => Some(code as u8).filter(is_itself),
        code => (0..=0xff)
            .filter(|b| !is_itself(b))
            .nth(code as usize - 0x100),
    };
    let bytes: Option<Vec<u8>> = token.chars().map(byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

//! A template's source as minijinja needs it to mean what it means to Jinja2.
//!
//! Where the two read the same text differently, the text is changed: line ends, the escapes within strings,
//! the newline after `{% raw %}`, and the tag `generation`, which transformers adds.

use std::iter::Peekable;
use std::str::CharIndices;

/// The source with the differences mended, or what of it is not supported.
pub(super) fn prepare(source: &str) -> Result<String, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = find_tag(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = if let Some(comment) = rest.strip_prefix("{#") {
            let end = comment.find("#}").map_or(rest.len(), |end| end + 4);
            out.push_str(&rest[..end]);
            end
        } else if let Some((begin, end)) = raw_block(rest) {
            out.push_str(&rest[..begin]);
            // Jinja2 keeps the newline after this one tag, which minijinja trims.
            if rest[begin..].starts_with('\n') && !rest[..begin].ends_with("-%}") {
                out.push('\n');
            }
            out.push_str(&rest[begin..end]);
            end
        } else {
            tag(rest, &mut out)?
        };
        rest = &rest[length..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the next tag of any kind begins.
fn find_tag(text: &str) -> Option<usize> {
    let begins = |at: &usize| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
    text.match_indices('{').map(|(at, _)| at).find(begins)
}

/// For a text that begins with a `{% raw %}`: where its content begins, and where the tag that ends it begins.
fn raw_block(text: &str) -> Option<(usize, usize)> {
    let begin = named_tag(text, "raw")?;
    let content = &text[begin..];
    let is_end = |at: &usize| named_tag(&content[*at..], "endraw").is_some();
    let end = content
        .match_indices("{%")
        .map(|(at, _)| at)
        .find(is_end)
        .unwrap_or(content.len());
    Some((begin, begin + end))
}

/// The length of the tag `{% name %}` that the text begins with.
fn named_tag(text: &str, name: &str) -> Option<usize> {
    let inner = text.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start();
    let inner = inner.strip_prefix(name)?.trim_start();
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    Some(text.len() - inner.strip_prefix("%}")?.len())
}

/// Copies the `{{ … }}` or `{% … %}` that the text begins with, and returns its length.
fn tag(text: &str, out: &mut String) -> Result<usize, String> {
    let (open, body) = text.split_at(2);
    let close = if open == "{{" { "}}" } else { "%}" };
    out.push_str(open);
    let mut chars = body.char_indices().peekable();
    let (mut depth, mut first) = (0_usize, open == "{%");
    while let Some((at, c)) = chars.next() {
        if depth == 0 && body[at..].starts_with(close) {
            out.push_str(close);
            return Ok(open.len() + at + close.len());
        }
        match c {
            '\'' | '"' => string(c, &mut chars, out)?,
            c if c.is_alphabetic() || c == '_' => {
                let mut name = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                out.push_str(if first { tag_name(&name)? } else { &name });
                first = false;
            }
            c => {
                depth = match c {
                    '(' | '[' | '{' => depth + 1,
                    ')' | ']' | '}' => depth.saturating_sub(1),
                    _ => depth,
                };
                out.push(c);
            }
        }
    }
    Ok(text.len())
}

/// The tag's name for minijinja. transformers' `generation` prints its body, in which variables that are set are its
/// own, as those of `with` are.
fn tag_name(name: &str) -> Result<&str, String> {
    match name {
        "generation" => Ok("with"),
        "endgeneration" => Ok("endwith"),
        // minijinja has `do`; transformers' environment has not.
        "autoescape" | "do" => Err(format!("the tag {name} is not supported")),
        name => Ok(name),
    }
}

/// Copies the rest of a string that began with `quote`, with Python's escapes resolved.
fn string(
    quote: char,
    chars: &mut Peekable<CharIndices<'_>>,
    out: &mut String,
) -> Result<(), String> {
    out.push(quote);
    while let Some((_, c)) = chars.next() {
        if c == quote {
            out.push(quote);
            return Ok(());
        }
        let c = if c == '\\' {
            escape(chars)?
        } else {
            Escape::Char(c)
        };
        match c {
            Escape::Char(c) if c == quote || c == '\\' => out.extend(['\\', c]),
            Escape::Char(c) => out.push(c),
            Escape::Nothing => {}
            Escape::Unknown(c) => out.extend(['\\', '\\', c]),
        }
    }
    Ok(())
}

/// What a backslash and what follows stand for.
enum Escape {
    Char(char),
    /// A line that goes on.
    Nothing,
    /// The backslash and this character themselves.
    Unknown(char),
}

fn escape(chars: &mut Peekable<CharIndices<'_>>) -> Result<Escape, String> {
    let Some((_, c)) = chars.next() else {
        return Ok(Escape::Nothing);
    };
    let mut code = |digits: usize, radix: u32, first: u32| {
        let mut code = first;
        for _ in 0..digits {
            let digit = chars.peek().and_then(|(_, c)| c.to_digit(radix))?;
            chars.next();
            code = code * radix + digit;
        }
        Some(code)
    };
    let code = match c {
        '\n' => return Ok(Escape::Nothing),
        '\\' | '\'' | '"' => return Ok(Escape::Char(c)),
        'a' => Some(7),
        'b' => Some(8),
        'f' => Some(12),
        'n' => Some(10),
        'r' => Some(13),
        't' => Some(9),
        'v' => Some(11),
        'x' => code(2, 16, 0),
        'u' => code(4, 16, 0),
        'U' => code(8, 16, 0),
        '0'..='7' => {
            let mut octal = c as u32 - '0' as u32;
            for _ in 0..2 {
                octal = code(1, 8, octal).unwrap_or(octal);
            }
            Some(octal)
        }
        'N' => None,
        other => return Ok(Escape::Unknown(other)),
    };
    match code.and_then(char::from_u32) {
        Some(c) => Ok(Escape::Char(c)),
        None => Err(format!(
            "a string has an escape \\{c} that is not supported"
        )),
    }
}

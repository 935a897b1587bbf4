//! Map files: what another engine's names and layouts mean, where the known names do not say it.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::layout::{Heads, Words};
use super::names::{Known, Names};
use super::pattern::Pattern;
use crate::message::{IoError, shown};

/// The rules of a map file, or none.
///
/// One rule a line, `their name = our name [layout words]`, with `{i}` for the layer in both names or neither; `#`
/// begins a comment at the start of a line or after a space. A tensor that a rule matches is what the rules
/// say, whatever its name would mean without them; several may take their columns from one.
///
/// | layout word | the tensor |
/// |---|---|
/// | `transposed` | has its axes in the other order, `[width, tokens]` |
/// | `heads-first` | is `[heads, tokens, head_dim]` |
/// | `tokens-first` | is `[tokens, heads, head_dim]` |
/// | `columns A..B` | is wider; columns A to B − 1 are meant |
/// | `interleaved` | has the two numbers of a RoPE pair side by side, 2j and 2j + 1 of a head for our j and j + n / 2, of the n that RoPE turns |
#[derive(Clone, Debug, Default)]
pub struct Rules {
    path: PathBuf,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    line: usize,
    theirs: String,
    ours: String,
    words: Words,
    /// The columns of our name and of `interleaved` in the line, from 1.
    ours_at: usize,
    interleaved_at: usize,
}

impl Rules {
    /// The rules in the bytes of a file; `path` only serves the messages. Whether a model has our names is seen when a
    /// [`Recording`](super::Recording) is opened.
    ///
    /// # Errors
    ///
    /// [`Error::Rule`] with line and column.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        // Some editors begin a file with a mark of its encoding.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut rules = Vec::new();
        for (index, line) in text.split(|&b| b == b'\n').enumerate() {
            let rule = std::str::from_utf8(line)
                .map_err(|error| (error.valid_up_to(), "it is not UTF-8".to_owned()))
                .and_then(|text| Rule::parse(index + 1, text));
            match rule {
                Ok(rule) => rules.extend(rule),
                Err((byte, reason)) => {
                    let before = String::from_utf8_lossy(&line[..byte]).chars().count();
                    return Err(Error::Rule {
                        path: path.into(),
                        line: index + 1,
                        column: before + 1,
                        reason,
                    });
                }
            }
        }
        Ok(Self {
            path: path.into(),
            rules,
        })
    }

    /// The rules in a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and those of [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(IoError::at("read", path))?;
        Self::parse(path, &text)
    }

    /// Checks that every rule names a point of the model, and the layout word that is for q and k alone one of those.
    pub(super) fn check(&self, names: &Names) -> Result<()> {
        for rule in &self.rules {
            let point = Pattern::new(&rule.ours).with(Some(0));
            let (column, reason) = if names.is_ours(&point).is_none() {
                let such_as = names.patterns().next().unwrap_or_default();
                let ours = shown(&rule.ours);
                let reason = format!(
                    "'{ours}' is no name that `trace` writes for this model; use one such as {such_as}"
                );
                (rule.ours_at, reason)
            } else if rule.words.interleaved && !names.is_turned(&point) {
                let reason = "only q and k have pairs that RoPE turns";
                (rule.interleaved_at, reason.into())
            } else {
                continue;
            };
            return Err(Error::Rule {
                path: self.path.clone(),
                line: rule.line,
                column,
                reason,
            });
        }
        Ok(())
    }

    /// What the rules say that a tensor is: for each that matches, the point and the layout.
    pub(super) fn matches(&self, name: &str, names: &Names) -> Vec<(Known, Words)> {
        let said = |rule: &'_ Rule| {
            let layer = Pattern::new(&rule.theirs).matches(name)?;
            let name = Pattern::new(&rule.ours).with(layer);
            // A layer can also be written out.
            let layer = names.is_ours(&name)?;
            Some(Known::first(name, layer))
        };
        let rules = self.rules.iter();
        rules
            .filter_map(|rule| Some((said(rule)?, rule.words.clone())))
            .collect()
    }

    /// Checks that every rule matches a tensor of the recording `path`.
    pub(super) fn check_used<'a>(
        &self,
        path: &Path,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        let unused = self.rules.iter().find(|rule| {
            let pattern = Pattern::new(&rule.theirs);
            !names.clone().any(|name| pattern.matches(name).is_some())
        });
        unused.map_or(Ok(()), |rule| {
            Err(Error::RuleUnmatched {
                map: self.path.clone(),
                line: rule.line,
                pattern: rule.theirs.clone(),
                path: path.into(),
            })
        })
    }
}

/// What is wrong with a line, from which byte on.
type Wrong = (usize, String);

impl Rule {
    /// The rule in a line; none where it is empty or a comment.
    fn parse(line: usize, text: &str) -> Result<Option<Self>, Wrong> {
        let text = without_comment(text).trim_end();
        if text.trim_start().is_empty() {
            return Ok(None);
        }
        let at = |part: &str| part.as_ptr() as usize - text.as_ptr() as usize;
        let Some((theirs, rest)) = text.split_once('=') else {
            return Err((
                text.len(),
                "no = here; write 'their name = our name [layout words]'".into(),
            ));
        };
        let equals = theirs.len();
        let theirs = theirs.trim();
        if theirs.is_empty() {
            return Err((equals, "no name before the =".into()));
        }
        if theirs.matches("{i}").count() > 1 {
            return Err((
                at(theirs),
                "{i} stands in it twice; name a layer once".into(),
            ));
        }
        let mut words = rest.split_whitespace();
        let Some(ours) = words.next() else {
            return Err((text.len(), "no name after the =".into()));
        };
        check_layers(theirs, ours).map_err(|reason| (at(ours), reason))?;
        let column = |part: &str| text[..at(part)].chars().count() + 1;
        let ours_at = column(ours);
        let interleaved = words.clone().find(|&word| word == "interleaved");
        let words = parse_words(words, at, text.len())?;
        Ok(Some(Self {
            line,
            theirs: theirs.into(),
            ours: ours.into(),
            words,
            ours_at,
            interleaved_at: interleaved.map_or(ours_at, column),
        }))
    }
}

/// A line up to its comment.
fn without_comment(line: &str) -> &str {
    let starts = line
        .char_indices()
        .zip(std::iter::once(' ').chain(line.chars()));
    let mut starts = starts.filter(|&((_, c), before)| c == '#' && before.is_whitespace());
    starts.next().map_or(line, |((at, _), _)| &line[..at])
}

/// Whether both names of a rule have a layer, or neither.
fn check_layers(theirs: &str, ours: &str) -> Result<(), String> {
    let [has, wanted] = [theirs, ours].map(|name| Pattern::new(name).has_layer());
    match (has, wanted) {
        (true, false) => {
            Err("it has no {i} and their name has; write the layer as {i} in both".into())
        }
        (false, true) => {
            Err("it has an {i} and their name has none; write the layer as {i} in both".into())
        }
        _ => Ok(()),
    }
}

/// The layout words after a name.
fn parse_words<'a>(
    mut texts: impl Iterator<Item = &'a str>,
    at: impl Fn(&str) -> usize,
    end: usize,
) -> Result<Words, Wrong> {
    let mut words = Words::default();
    while let Some(text) = texts.next() {
        let before = words.clone();
        match text {
            "transposed" => words.transposed = true,
            "interleaved" => words.interleaved = true,
            "heads-first" => words.heads = Some(Heads::First),
            "tokens-first" => words.heads = Some(Heads::AfterTokens),
            "columns" => {
                let range = texts
                    .next()
                    .ok_or((end, "no A..B after columns".to_owned()))?;
                words.columns = Some(parse_columns(range).ok_or_else(|| {
                    let reason = format!("'{}' is no range A..B with A below B", shown(range));
                    (at(range), reason)
                })?);
            }
            other => {
                let reason = format!(
                    "'{}' is no layout word: use transposed, heads-first, tokens-first, columns A..B or interleaved",
                    shown(other)
                );
                return Err((at(text), reason));
            }
        }
        if before == words || (before.heads.is_some() && before.heads != words.heads) {
            return Err((
                at(text),
                "it says again, or against, what is said before".into(),
            ));
        }
    }
    Ok(words)
}

fn parse_columns(text: &str) -> Option<std::ops::Range<usize>> {
    let (from, to) = text.split_once("..")?;
    let range = from.parse().ok()?..to.parse().ok()?;
    (range.start < range.end).then_some(range)
}

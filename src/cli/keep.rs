//! Lists of tokens: `0,4..9`.

use context_patch::patch::{Error, Result};

/// The numbers in `text`, of `context` there are: single ones and ranges that leave their end out, which
/// may be open at either end.
pub(super) fn parse_keep(text: &str, context: usize) -> Result<Vec<usize>> {
    let mut kept = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let range = match part.split_once("..") {
            None => number(part)?..number(part)?.saturating_add(1),
            Some((start, end)) => {
                let start = if start.is_empty() { 0 } else { number(start)? };
                let end = if end.is_empty() {
                    context
                } else {
                    number(end)?
                };
                start..end
            }
        };
        // A number that is far too large is refused before it is written out.
        if let Some(index) = [range.start, range.end.saturating_sub(1)]
            .into_iter()
            .find(|i| *i >= context)
        {
            return Err(Error::KeptIndex { index, context });
        }
        kept.extend(range);
    }
    kept.sort_unstable();
    kept.dedup();
    Ok(kept)
}

fn number(text: &str) -> Result<usize> {
    let parsed = text.trim().parse();
    parsed.map_err(|_| Error::KeepList { part: text.into() })
}

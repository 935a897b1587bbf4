//! Which tokens are merged, and in which order.

use std::cmp::Reverse;

use tokenizers::models::bpe::{Merges, Vocab};

use super::super::super::error::Result;
use super::super::metadata::Metadata;
use super::vocabulary::{Kind, TOKENS, Vocabulary};
use crate::message::shown;

pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";

/// The longest token that is looked at for its merges, in bytes: the work grows with the square of it, and those of
/// SentencePiece are a few dozen bytes long.
const LONGEST: usize = 1024;

/// The merges of a byte-level tokenizer, which the file has as `left right`.
pub(super) fn listed(metadata: &Metadata, ids: &Vocab) -> Result<Merges> {
    let Some(lines) = metadata.strings(MERGES)? else {
        return Err(metadata.wrong(MERGES, "an array of pairs of tokens"));
    };
    let mut joined = String::new();
    let mut pair = |line: &str| {
        let (left, right) = line.split_once(' ')?;
        joined.clear();
        joined.extend([left, right]);
        let known = [left, right, &joined]
            .into_iter()
            .all(|token| ids.contains_key(token));
        known.then(|| (left.into(), right.into()))
    };
    let mut merges = Merges::with_capacity(lines.len());
    for (i, line) in lines.into_iter().enumerate() {
        let Some(merge) = pair(line) else {
            let expected = format!(
                "an array of pairs of tokens that make one together, with a space between; number {i} is {}",
                shown(line)
            );
            return Err(metadata.wrong(MERGES, expected));
        };
        merges.push(merge);
    }
    Ok(merges)
}

/// A token that two others are together.
struct Candidate {
    /// Higher ones are merged first.
    score: f32,
    /// Characters of both.
    lengths: (usize, usize),
    id: u32,
    /// Where the right one begins, in bytes.
    at: usize,
}

/// The merges that SentencePiece does: any two tokens that are one together, those of the highest score first.
///
/// Where several make tokens of the same score, transformers prefers longer left ones, then longer right ones. Control tokens and
/// those that users defined have the score 0 in a SentencePiece model; what stands in a GGUF file is the converter's.
pub(super) fn from_scores(
    metadata: &Metadata,
    vocabulary: &Vocabulary<'_>,
    ids: &Vocab,
) -> Result<Merges> {
    let Some(scores) = metadata.floats(SCORES)? else {
        return Err(metadata.wrong(SCORES, "an array of the tokens' scores"));
    };
    vocabulary.check_length(metadata, SCORES, scores.len())?;
    let mut candidates = Vec::new();
    for (id, text, kind) in vocabulary.tokens() {
        let score = match kind {
            Kind::Normal => scores[id as usize],
            _ => 0.0,
        };
        if score.is_nan() {
            return Err(metadata.wrong(
                SCORES,
                format!("an array of numbers; that of token {id} is NaN"),
            ));
        }
        if text.len() > LONGEST {
            let expected = format!(
                "an array of texts up to {LONGEST} bytes; token {id} has {}",
                text.len()
            );
            return Err(metadata.wrong(TOKENS, expected));
        }
        let ends = text.char_indices().skip(1).enumerate();
        let ends = ends.filter(|(_, (at, _))| {
            ids.contains_key(&text[..*at]) && ids.contains_key(&text[*at..])
        });
        let mut characters = None;
        candidates.extend(ends.map(|(i, (at, _))| {
            let characters = *characters.get_or_insert_with(|| text.chars().count());
            Candidate {
                score,
                lengths: (i + 1, characters - i - 1),
                id,
                at,
            }
        }));
    }
    candidates.sort_unstable_by(|a, b| {
        let by_score = b
            .score
            .partial_cmp(&a.score)
            .unwrap_or(std::cmp::Ordering::Equal);
        by_score.then_with(|| (Reverse(a.lengths), a.id).cmp(&(Reverse(b.lengths), b.id)))
    });
    let pair = |candidate: Candidate| {
        let text = vocabulary.text(candidate.id)?;
        let (left, right) = text.split_at(candidate.at);
        Some((left.into(), right.into()))
    };
    Ok(candidates.into_iter().filter_map(pair).collect())
}

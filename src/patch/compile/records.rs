//! What a model writes on after a prompt, cut into what is like one query with its answer.

use std::ops::Range;

/// The records of a text of these pieces, which its tokens are: lines, and where several lines of the prompt begin with the word that
/// the text begins with, such as `Question:`, all lines up to the next that does.
///
/// Behind the prompt alone a record has to do without those before it, as a query has.
pub(super) fn records(pieces: &[String], prompt: &str) -> Vec<Range<usize>> {
    let lines = lines(pieces);
    let word_of = |line: &Range<usize>| first_word(&pieces[line.clone()].concat()).to_owned();
    let begins = lines.first().map(word_of);
    let alike = |word: &str| {
        prompt
            .lines()
            .filter(|line| first_word(line) == word)
            .count()
    };
    let begins = begins.filter(|word| alike(word) >= 2);
    let mut records: Vec<Range<usize>> = Vec::new();
    for line in lines {
        let is_more = begins
            .as_ref()
            .is_some_and(|begins| word_of(&line) != *begins);
        match records.last_mut() {
            Some(record) if is_more => record.end = line.end,
            _ => records.push(line),
        }
    }
    records
}

/// The lines of a text, each with the line breaks before it.
fn lines(pieces: &[String]) -> Vec<Range<usize>> {
    let mut lines = Vec::new();
    let (mut start, mut is_blank) = (0, true);
    for (i, piece) in pieces.iter().enumerate() {
        if piece.starts_with('\n') && !is_blank {
            lines.push(start..i);
            (start, is_blank) = (i, true);
        }
        is_blank &= piece.trim().is_empty();
    }
    if !is_blank {
        lines.push(start..pieces.len());
    }
    lines
}

fn first_word(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, prompt: &str) -> Vec<String> {
        let pieces: Vec<_> = text.chars().map(String::from).collect();
        let each = records(&pieces, prompt).into_iter();
        each.map(|record| pieces[record].concat()).collect()
    }

    #[test]
    fn lines_are_records() {
        let prompt = "Words in French.\ntime = temps\nrain = pluie";
        assert_eq!(
            cut("\nred = rouge\n\nblue = bleu\n", prompt),
            ["\nred = rouge", "\n\nblue = bleu"]
        );
        assert_eq!(
            cut(" and more\nred = rouge", prompt),
            [" and more", "\nred = rouge"]
        );
    }

    #[test]
    fn lines_that_belong_together_stay_together() {
        let prompt = "Answer.\nQ: one\nA: 1\nQ: two\nA: 2";
        let text = "\nQ: three\nA: 3\nQ: four\nwith care\nA: 4";
        assert_eq!(
            cut(text, prompt),
            ["\nQ: three\nA: 3", "\nQ: four\nwith care\nA: 4"]
        );
        assert_eq!(cut(text, "Q: one\nA: 1").len(), 5, "once is no pattern");
    }

    #[test]
    fn blank_text_has_no_records() {
        assert!(cut("", "a").is_empty());
        assert!(cut("\n \n\n", "a").is_empty());
    }
}

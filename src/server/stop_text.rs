//! Text held back until it is known not to be the beginning of a stop string.

/// A text that comes in pieces and ends before the first of some strings.
#[derive(Clone, Debug)]
pub(super) struct StopText {
    stops: Vec<String>,
    /// What may be the beginning of one.
    held: String,
}

/// What a piece completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Released {
    /// Text that no stop string has a part in.
    pub(super) text: String,
    /// Whether one was found, before which the text ends.
    pub(super) stopped: bool,
}

impl StopText {
    /// A text that ends before any of `stops`, none of which is empty.
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece. After one that stopped there is none.
    pub(super) fn push(&mut self, piece: &str) -> Released {
        self.held += piece;
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop));
        if let Some(end) = found.min() {
            self.held.truncate(end);
            return Released {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let begins = |at: &usize| {
            let rest = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(rest))
        };
        let starts = self.held.char_indices().map(|(at, _)| at);
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let near = self.held.len().saturating_sub(longest);
        let kept = starts.filter(|at| *at >= near).find(begins);
        let rest = self.held.split_off(kept.unwrap_or(self.held.len()));
        Released {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// What is held back when no more comes.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out piece by piece, and whether it stopped.
    fn pieces(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops = stops.iter().map(|stop| (*stop).into()).collect();
        let mut text = StopText::new(stops);
        let mut out = Vec::new();
        for piece in pieces {
            let released = text.push(piece);
            out.push(released.text);
            if released.stopped {
                return (out, true);
            }
        }
        out.push(text.finish());
        (out, false)
    }

    fn whole(stops: &[&str], text: &str, cut: usize) -> (String, bool) {
        let chars: Vec<char> = text.chars().collect();
        let cuts: Vec<String> = chars.chunks(cut).map(|c| c.iter().collect()).collect();
        let cuts: Vec<&str> = cuts.iter().map(String::as_str).collect();
        let (out, stopped) = pieces(stops, &cuts);
        (out.concat(), stopped)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces() {
        let (out, stopped) = pieces(&["\n\n"], &["a\n", "b", "\n", "\nc"]);
        assert_eq!(out, ["a", "\nb", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn what_only_began_one_comes_later() {
        let (out, stopped) = pieces(&["END"], &["xE", "N", "e", "EEN", ""]);
        assert_eq!(out, ["x", "", "ENe", "E", "", "EN"]);
        assert!(!stopped);
    }

    #[test]
    fn the_first_in_the_text_counts_however_it_is_cut() {
        for cut in 1..9 {
            let first = whole(&["lazy", "ox", "fox j"], "the fox jumps, lazy", cut);
            // The longer one begins earlier, and is complete later where pieces are short.
            let ends = ["the f", "the "];
            assert!(first.1 && ends.contains(&&*first.0), "{first:?}");
            assert_eq!(whole(&["é!"], "aé é!b", cut), ("aé ".into(), true));
            assert_eq!(whole(&["aab"], "aaab", cut), ("a".into(), true));
            assert_eq!(whole(&["x"], "aaab", cut), ("aaab".into(), false));
        }
    }

    #[test]
    fn nothing_is_held_without_stops() {
        let (out, _) = pieces(&[], &["a", "b"]);
        assert_eq!(out, ["a", "b", ""]);
    }
}

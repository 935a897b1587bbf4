//! How far a long run is, on a terminal alone.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

/// Does something of unknown length under a line that says what.
pub(super) fn waiting<T>(what: &'static str, work: impl FnOnce() -> T) -> T {
    let line = ProgressBar::new_spinner().with_message(what);
    line.enable_steady_tick(Duration::from_millis(120));
    let done = work();
    line.finish_and_clear();
    done
}

/// A bar for work that goes through a known number of `things`.
pub(super) fn counting(things: &str, count: usize) -> ProgressBar {
    let style = format!("{{wide_bar}} {{pos}}/{{len}} {things}, {{eta}} left");
    let style =
        ProgressStyle::with_template(&style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count as u64).with_style(style)
}

/// A bar for `all` tokens, of which `done` were there before: they count as done, and not for the rate.
pub(super) fn bar(done: usize, all: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} tokens{pace}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let pace = move |state: &ProgressState, out: &mut dyn Write| {
        let left = state.len().unwrap_or_default().saturating_sub(state.pos());
        let here = state.pos().saturating_sub(done as u64);
        // The bar has nowhere to say that it cannot be written.
        let _ = out.write_str(&pace(here, left, state.elapsed()));
    };
    ProgressBar::new(all as u64)
        .with_position(done as u64)
        .with_style(style.with_key("pace", pace))
}

/// The rate and the time left, after `here` tokens in `elapsed`; nothing before the first.
fn pace(here: u64, left: u64, elapsed: Duration) -> String {
    if here == 0 {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() / here as f64;
    let left = Duration::from_secs((seconds * left as f64) as u64);
    format!(", {:.1}/s, {} left", 1.0 / seconds, HumanDuration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_of_what_was_done_here() {
        let minute = Duration::from_secs(60);
        assert_eq!(pace(0, 100, minute), "");
        assert_eq!(pace(120, 600, minute), ", 2.0/s, 5 minutes left");
    }
}

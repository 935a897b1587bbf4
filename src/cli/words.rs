//! Numbers, sizes and texts as people write them.

use std::path::Path;

/// The columns that a line may take.
const WIDTH: usize = 79;

/// A count and its noun, such as `1 token` and `12 tokens`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Names in a sentence: `a, b and c`.
pub(super) fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).into(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// A number to two or three digits: `0`, `4.8e-7`, `0.31`, `10.3`, `661`, `7.2e8`.
pub(super) fn figure(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        0.1..1.0 => format!("{x:.2}"),
        1.0..100.0 => format!("{x:.1}"),
        100.0..1000.0 => format!("{x:.0}"),
        _ => format!("{x:.1e}"),
    }
}

/// A share in per cent, with as many digits as a reader can use.
pub(super) fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0 %".into(),
        percent if percent < 0.1 => "< 0.1 %".into(),
        percent if percent < 10.0 => format!("{percent:.1} %"),
        percent if percent < 999.5 => format!("{percent:.0} %"),
        percent => format!("{percent:.0e} %"),
    }
}

/// Bytes, such as `536 MiB`.
pub(super) fn size(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    if bytes < 1024 {
        counted(bytes as usize, "byte")
    } else if kib < 1023.5 {
        format!("{kib:.0} KiB")
    } else if kib < 10.0 * 1024.0 {
        format!("{:.1} MiB", kib / 1024.0)
    } else if kib < 1023.5 * 1024.0 {
        format!("{:.0} MiB", kib / 1024.0)
    } else {
        format!("{:.1} GiB", kib / 1024.0 / 1024.0)
    }
}

/// The bytes of a file, or of all files of a folder.
pub(super) fn size_of(path: &Path) -> Option<String> {
    fn bytes(path: &Path) -> std::io::Result<u64> {
        if !path.is_dir() {
            return Ok(path.metadata()?.len());
        }
        let entries = std::fs::read_dir(path)?;
        entries.map(|entry| bytes(&entry?.path())).sum()
    }
    bytes(path).ok().map(size)
}

/// A text in quotes on one line, its middle left out where it is longer than `most` characters.
pub(super) fn quoted(text: &str, most: usize) -> String {
    let escaped: Vec<char> = text.escape_debug().collect();
    let shown: String = if escaped.len() <= most {
        escaped.iter().collect()
    } else {
        let end = escaped.len() - most / 3;
        let (start, end) = (&escaped[..most - most / 3 - 3], &escaped[end..]);
        start.iter().chain(&[' ', '…', ' ']).chain(end).collect()
    };
    format!("\"{shown}\"")
}

/// An argument as a POSIX shell reads it.
pub(super) fn shell(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.into()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// Lines that say what is at the left of each: its name once, the text broken between words.
pub(super) fn rows<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    const INDENT: usize = 11;
    let mut text = String::new();
    for (name, said) in rows {
        for (i, line) in wrapped(&said, WIDTH - INDENT).iter().enumerate() {
            let name = if i == 0 { name } else { "" };
            text += format!("{name:<INDENT$}{line}").trim_end();
            text.push('\n');
        }
    }
    text
}

/// Commands to type next, each whole on its line.
pub(super) fn commands(commands: &[String]) -> String {
    let lines = commands.iter().map(|command| format!("  {command}\n"));
    lines.fold("Next\n".into(), |text, line| text + &line)
}

/// A paragraph.
pub(super) fn paragraph(text: &str) -> String {
    wrapped(text, WIDTH).join("\n") + "\n"
}

/// Lines of at most `width` columns, unless a word is longer.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().filter(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width
        });
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_they_deserve() {
        let figures = [0.0, 4.77e-7, 0.3125, 10.34, 661.1, 31_703_006.0, f64::NAN].map(figure);
        let want = ["0", "4.8e-7", "0.31", "10.3", "661", "3.2e7", "NaN"];
        assert_eq!(figures, want);
        assert_eq!(listed(&["a", "b", "c"]), "a, b and c");
        let shares = [0.0, 0.0004, 0.0172, 0.24, 3.3823, 11_611_361.7].map(percent);
        assert_eq!(
            shares,
            ["0 %", "< 0.1 %", "1.7 %", "24 %", "338 %", "1e9 %"]
        );
        let sizes = [1, 700, 3 << 10, 5_505_024, 536 << 20, 3 << 30].map(size);
        assert_eq!(
            sizes,
            [
                "1 byte",
                "700 bytes",
                "3 KiB",
                "5.2 MiB",
                "536 MiB",
                "3.0 GiB"
            ]
        );
    }

    #[test]
    fn texts_stay_on_a_line_and_keep_both_ends() {
        assert_eq!(quoted("Bob\nlikes", 20), r#""Bob\nlikes""#);
        let shown = quoted("Write a forecast for Mars, from a robot:", 20);
        assert_eq!(shown, r#""Write a for … robot:""#);
    }

    #[test]
    fn a_shell_reads_what_was_meant() {
        let arguments = ["a/b.patch", "my patch", "it's", "", "ü", "$HOME", "~"];
        let line = arguments.map(shell).join(" ");
        let read = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s|' {line}")])
            .output();
        // Where there is no such shell there is nothing to get wrong.
        if let Ok(read) = read {
            let said = String::from_utf8(read.stdout).unwrap();
            assert_eq!(said, arguments.map(|a| format!("{a}|")).concat());
        }
    }

    #[test]
    fn lines_fit() {
        let text = rows([
            ("Absorbed", "a word ".repeat(30)),
            ("Holds", "as it is".into()),
        ]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(text.ends_with("\nHolds      as it is\n"), "{text}");
    }
}

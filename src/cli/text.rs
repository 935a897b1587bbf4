//! Text that people give: as arguments, in files and on standard input; and text that models give back.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::path::Path;

use clap::Command;
use context_patch::verify::Error;
use context_patch::{IoError, Result};

use super::print;

/// What is wrong with arguments in which an option stands where the text of another one belongs: the text is taken to be forgotten.
///
/// A text may begin with a dash. Only one that is an option of the same command has to be given as `--prompt=--chat`.
pub(super) fn forgotten(program: &Command, arguments: &[OsString]) -> Option<String> {
    let names = arguments.iter().enumerate();
    let mut commands = names.filter_map(|(at, name)| Some((at, program.find_subcommand(name)?)));
    let (at, command) = commands.next()?;
    let long = |name: &OsString| name.to_str()?.strip_prefix("--").map(str::to_owned);
    let find = |name: &str| {
        let mut options = command.get_arguments().chain(program.get_arguments());
        options.find(|option| option.get_long() == Some(name))
    };
    let mut arguments = arguments[at..].iter();
    while let Some(argument) = arguments.next() {
        let Some(name) = long(argument) else { continue };
        if !find(&name).is_some_and(clap::Arg::is_allow_hyphen_values_set) {
            continue;
        }
        let Some(option) = arguments.next().and_then(long) else {
            continue;
        };
        let option = option.split('=').next().unwrap_or_default();
        if option == "help" || find(option).is_some() {
            return Some(format!(
                "--{name} has no text: the option --{option} follows; if that is the text, write --{name}=--{option}"
            ));
        }
    }
    None
}

/// The bytes of a file, or of standard input where it is called `-`.
pub(super) fn read_input(file: &Path) -> Result<Vec<u8>> {
    let read = || {
        if file.as_os_str() != "-" {
            return std::fs::read(file);
        }
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    Ok(read().map_err(|source| IoError {
        action: "read",
        path: file.into(),
        source,
    })?)
}

/// One JSON string a line; lines without anything are left out.
///
/// # Errors
///
/// [`Error::Prompts`] with the line, [`Error::NoPrompts`].
pub(super) fn parse_prompts(file: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut prompts = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let prompt = match std::str::from_utf8(line) {
            Ok(text) => serde_json::from_str(text).map_err(|error| {
                // Lines are counted here.
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                format!("{reason}, column {}", error.column())
            }),
            Err(error) => Err(format!("byte {} is not UTF-8", error.valid_up_to() + 1)),
        };
        prompts.push(prompt.map_err(|reason| Error::Prompts {
            path: file.into(),
            line: index + 1,
            reason,
        })?);
    }
    if prompts.is_empty() {
        return Err(Error::NoPrompts { path: file.into() }.into());
    }
    Ok(prompts)
}

/// Prints what a model wrote: as it is, but on a terminal without what would steer that.
pub(super) fn print_written(text: &str) -> Result<()> {
    if std::io::stdout().is_terminal() {
        print(&harmless(text))
    } else {
        print(text)
    }
}

/// `text` with a picture in the place of every control character but tabs and line ends.
fn harmless(text: &str) -> String {
    let picture = |c: char| match c {
        '\t' | '\n' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(c),
        '\x7f' => '␡',
        _ if c.is_control() => char::REPLACEMENT_CHARACTER,
        _ => c,
    };
    text.chars().map(picture).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_any_editor_are_read() {
        let parse = |bytes: &[u8]| parse_prompts(Path::new("p.jsonl"), bytes).unwrap();
        for bytes in [
            &b"\"a\"\n\"b\""[..],
            b"\"a\"\n\"b\"\n",
            b"\"a\"\r\n\"b\"\r\n",
            b"\xef\xbb\xbf\"a\"\r\n\r\n \t\r\n\"b\"",
            b"\n\n  \"a\"  \n\"b\"\n\n",
        ] {
            assert_eq!(parse(bytes), ["a", "b"]);
        }
        // Characters at which other programs end lines.
        let inside = "\"a\u{2028}b\u{85}c\u{b}\"".replace('\u{b}', "\\u000b");
        assert_eq!(parse(inside.as_bytes()), ["a\u{2028}b\u{85}c\u{b}"]);
        assert_eq!(parse(b"\"\\u0000\""), ["\0"]);
        let long = "x".repeat(1 << 20);
        assert_eq!(parse(format!("\"{long}\"").as_bytes()), [long]);
    }

    #[test]
    fn a_line_that_is_no_string_is_named() {
        for (bytes, parts) in [
            (&b"\"a\"\nhello\n"[..], &["line 2", "column 1"][..]),
            (b"\"a\"\r\n\"b\r\n", &["line 2", "column"]),
            (b"\"a\xffb\"\n", &["line 1", "byte 3 is not UTF-8"]),
            (b"\xff\xfe\"\0a\0\"\0", &["line 1", "byte 1 is not UTF-8"]),
            (b"{\"prompt\": \"a\"}", &["line 1", "map"]),
            (b"\"a\0b\"", &["line 1", "control character"]),
            (b"\r\n\r\n", &["no prompt"]),
            (b"", &["no prompt"]),
        ] {
            let error = parse_prompts(Path::new("p.jsonl"), bytes).unwrap_err();
            let error = error.to_string();
            assert_eq!(error.lines().count(), 1, "{error}");
            for part in parts {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }

    #[test]
    fn what_steers_a_terminal_becomes_a_picture() {
        assert_eq!(harmless("a\tb\nc é\u{2028}"), "a\tb\nc é\u{2028}");
        assert_eq!(harmless("\x1b[31m\0\x7f\r\u{9b}"), "␛[31m␀␡␍\u{fffd}");
    }
}

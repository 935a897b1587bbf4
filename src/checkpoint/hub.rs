//! Finding a model: a directory, or a repository in the local Hugging Face cache, as huggingface_hub finds it. Nothing
//! is downloaded.

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::error::{Error, Result};

/// The revision of a repository where none is named.
const MAIN: &str = "main";

/// The directory of `model`: itself if it is one, else its snapshot in the Hugging Face cache.
///
/// The cache is `$HF_HUB_CACHE`, else `$HUGGINGFACE_HUB_CACHE`, else `$HF_HOME/hub`, else
/// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`, with `~`, `$NAME` and `${NAME}` expanded in
/// each. `revision` is a branch, a tag, another name below `refs` in the repository's folder, or a full commit; `main`
/// where it is `None`; of a directory it is not looked at. `env` looks up an environment variable:
/// [`variable`] outside tests.
///
/// # Errors
///
/// [`Error::NotADirectory`], [`Error::NoSuchModel`], [`Error::NoCache`], [`Error::NotInCache`] and
/// [`Error::NoRevision`], each with what to do about it.
pub fn resolve(
    model: &str,
    revision: Option<&str>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.into());
    }
    if path.exists() {
        return Err(Error::NotADirectory { path: path.into() });
    }
    if !is_repository_id(model) {
        return Err(Error::NoSuchModel {
            model: model.into(),
        });
    }
    let Some(cache) = cache_dir(env) else {
        return Err(Error::NoCache {
            model: model.into(),
        });
    };
    snapshot(model, revision.unwrap_or(MAIN), &cache)
}

/// An environment variable; `HOME` is the user's home also where it is not set.
pub fn variable(name: &str) -> Option<OsString> {
    let home = || std::env::home_dir().map(PathBuf::into_os_string);
    std::env::var_os(name).or_else(|| if name == "HOME" { home() } else { None })
}

/// The directory that holds the cached repositories. As in huggingface_hub an empty variable is one that is set, and
/// means the working directory.
fn cache_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(cache) = env("HF_HUB_CACHE").or_else(|| env("HUGGINGFACE_HUB_CACHE")) {
        return Some(expanded(cache, &env).into());
    }
    let home = match env("HF_HOME") {
        Some(home) => home.into(),
        None => match env("XDG_CACHE_HOME") {
            Some(cache) => PathBuf::from(cache).join("huggingface"),
            None => home_dir(&env)?.join(".cache/huggingface"),
        },
    };
    Some(expanded(home.join("hub").into(), &env).into())
}

fn home_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let home = env("HOME")?;
    Some(if home.is_empty() {
        "/".into()
    } else {
        home.into()
    })
}

/// A path with a `~` at its beginning and the variables in it replaced; what is not set stays as it is.
fn expanded(path: OsString, env: impl Fn(&str) -> Option<OsString>) -> OsString {
    let Some(text) = path.to_str() else {
        return path;
    };
    let mut out = OsString::new();
    let mut rest = text;
    if (text == "~" || text.starts_with("~/"))
        && let Some(home) = home_dir(&env)
    {
        out.push(home.as_os_str());
        rest = &text[1..];
    }
    while let Some((before, after)) = rest.split_once('$') {
        out.push(before);
        let (name, tail) = match after
            .strip_prefix('{')
            .and_then(|braced| braced.split_once('}'))
        {
            Some(braced) => braced,
            None => {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                after.split_at(after.find(|c| !word(c)).unwrap_or(after.len()))
            }
        };
        match env(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push(value),
            None => {
                out.push("$");
                out.push(&after[..after.len() - tail.len()]);
            }
        }
        rest = tail;
    }
    out.push(rest);
    out
}

/// The snapshot of a repository's revision.
fn snapshot(model: &str, revision: &str, cache: &Path) -> Result<PathBuf> {
    let repository = cache.join(format!("models--{}", model.replace('/', "--")));
    if !repository.is_dir() {
        return Err(Error::NotInCache {
            model: model.into(),
            looked: cache.into(),
        });
    }
    let snapshots = repository.join("snapshots");
    let commit =
        is_relative(revision).then(|| fs::read_to_string(repository.join("refs").join(revision)));
    let commit = match commit {
        Some(Ok(commit)) => commit.trim().to_owned(),
        // A commit.
        _ => revision.to_owned(),
    };
    let snapshot = snapshots.join(&commit);
    if !commit.is_empty() && is_relative(&commit) && !commit.contains('/') && snapshot.is_dir() {
        return Ok(snapshot);
    }
    Err(Error::NoRevision {
        model: model.into(),
        revision: revision.into(),
        commits: names(&snapshots),
    })
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Whether `path` leads nowhere but further down.
fn is_relative(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Whether `model` has the form `name` or `org/name`.
fn is_repository_id(model: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let part = |part: &str| {
        let plain = |c: char| word(c) || "-.".contains(c);
        part.starts_with(word)
            && part.ends_with(word)
            && part.chars().all(plain)
            && part.len() <= 96
    };
    let forbidden = model.contains("--") || model.contains("..") || model.ends_with(".git");
    !forbidden && model.split('/').count() <= 2 && model.split('/').all(part)
}

/// What names a model from any folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The id of a repository, or the whole path of a directory.
    pub(crate) name: String,
    /// The commit of a repository.
    pub(crate) revision: Option<String>,
}

/// The repository and commit of `dir` where that is a snapshot in a cache, else its path from the root.
pub(crate) fn origin(dir: &Path) -> Origin {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.into());
    let parts: Vec<_> = dir
        .iter()
        .rev()
        .take(3)
        .filter_map(|part| part.to_str())
        .collect();
    if let [commit, "snapshots", repository] = parts[..]
        && let Some(id) = repository.strip_prefix("models--")
    {
        return Origin {
            name: id.replacen("--", "/", 1),
            revision: Some(commit.into()),
        };
    }
    Origin {
        name: dir.to_string_lossy().into_owned(),
        revision: None,
    }
}

#[cfg(test)]
mod tests;

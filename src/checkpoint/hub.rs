//! Finding a model: a directory, or a repository in the local Hugging Face cache. Nothing is
//! downloaded.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// The directory of `model`: itself if it is one, else its snapshot in the Hugging Face cache.
///
/// The cache is `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else
/// `~/.cache/huggingface/hub`; in it `models--org--name/refs/main` names the revision under
/// `snapshots`. `env` looks up an environment variable: [`std::env::var_os`] outside tests.
///
/// # Errors
///
/// [`Error::NotADirectory`], [`Error::NoSuchModel`], [`Error::NoCache`], [`Error::NotInCache`] and
/// [`Error::NoRevision`], each with what to do about it.
pub fn resolve(model: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
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
    snapshot(model, &cache)
}

/// The directory that holds the cached repositories.
fn cache_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let var = |name| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(hub) = var("HF_HUB_CACHE") {
        return Some(hub);
    }
    let home = var("HF_HOME")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("huggingface")))
        .or_else(|| {
            let user = var("HOME").or_else(|| var("USERPROFILE"))?;
            Some(user.join(".cache/huggingface"))
        })?;
    Some(home.join("hub"))
}

/// The snapshot of a repository's main revision.
fn snapshot(model: &str, cache: &Path) -> Result<PathBuf> {
    let repository = cache.join(format!("models--{}", model.replace('/', "--")));
    if !repository.is_dir() {
        return Err(Error::NotInCache {
            model: model.into(),
            looked: cache.into(),
        });
    }
    let missing = |missing: PathBuf| Error::NoRevision {
        model: model.into(),
        missing,
    };
    let reference = repository.join("refs").join("main");
    let revision = fs::read_to_string(&reference).unwrap_or_default();
    let revision = revision.trim();
    if revision.is_empty() || !revision.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(missing(reference));
    }
    let snapshot = repository.join("snapshots").join(revision);
    match snapshot.is_dir() {
        true => Ok(snapshot),
        false => Err(missing(snapshot)),
    }
}

/// Whether `model` has the form `name` or `org/name`.
fn is_repository_id(model: &str) -> bool {
    let part = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.bytes().all(plain)
    };
    model.split('/').count() <= 2 && model.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REVISION: &str = "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1";

    /// A cache in a temporary directory with the repository `org/name`.
    fn cache() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("hub/models--org--name");
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::create_dir_all(repository.join("snapshots").join(REVISION)).unwrap();
        fs::write(repository.join("refs/main"), format!("{REVISION}\n")).unwrap();
        dir
    }

    fn with(name: &'static str, value: PathBuf) -> impl Fn(&str) -> Option<OsString> {
        move |asked| (asked == name).then(|| value.clone().into())
    }

    #[test]
    fn a_directory_is_itself() {
        let dir = tempfile::tempdir().unwrap();
        let found = resolve(dir.path().to_str().unwrap(), |_| None).unwrap();
        assert_eq!(found, dir.path());
    }

    #[test]
    fn a_repository_is_found_through_each_variable() {
        let dir = cache();
        let root = dir.path();
        let snapshot = root.join("hub/models--org--name/snapshots").join(REVISION);
        for (name, value) in [("HF_HUB_CACHE", root.join("hub")), ("HF_HOME", root.into())] {
            assert_eq!(resolve("org/name", with(name, value)).unwrap(), snapshot);
        }
        for (name, sub) in [
            ("XDG_CACHE_HOME", "huggingface"),
            ("HOME", ".cache/huggingface"),
        ] {
            let home = tempfile::tempdir().unwrap();
            let hub = home.path().join(sub);
            fs::create_dir_all(hub.parent().unwrap()).unwrap();
            fs::rename(cache().keep(), &hub).unwrap();
            let found = resolve("org/name", with(name, home.path().into())).unwrap();
            assert!(found.starts_with(&hub), "{name}");
        }
    }

    #[test]
    fn the_more_particular_variable_wins() {
        let dir = cache();
        let env = |name: &str| match name {
            "HF_HUB_CACHE" => Some(dir.path().join("hub").into()),
            _ => Some("/nowhere".into()),
        };
        assert!(resolve("org/name", env).is_ok());
    }

    #[test]
    fn a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(
            resolve(path, |_| None).unwrap_err().to_string(),
            format!(
                "{path} is a file; give the directory that holds config.json, or a repository id such as google/gemma-3-270m"
            )
        );
    }

    #[test]
    fn what_is_neither_a_path_nor_an_id_is_refused() {
        for model in [
            "./missing",
            "/no/where/at all",
            "a/b/c",
            "..",
            "org/..",
            "~/x",
            "",
            "a/",
        ] {
            if Path::new(model).exists() {
                continue;
            }
            assert_eq!(
                resolve(model, |_| Some("/cache".into()))
                    .unwrap_err()
                    .to_string(),
                format!(
                    "no directory {model}; give a directory that holds config.json, or a repository id such as google/gemma-3-270m"
                )
            );
        }
    }

    #[test]
    fn an_unknown_repository_says_where_it_was_sought() {
        assert_eq!(
            resolve("org/other", with("HF_HUB_CACHE", "/no/cache".into()))
                .unwrap_err()
                .to_string(),
            "no directory org/other, and no such repository in the cache /no/cache; fetch it with `hf download org/other`, or set HF_HUB_CACHE or HF_HOME to where it is"
        );
        assert_eq!(
            resolve("org/other", |_| None).unwrap_err().to_string(),
            "no directory org/other, and no Hugging Face cache to look it up in; set HF_HUB_CACHE, HF_HOME or HOME"
        );
    }

    #[test]
    fn a_broken_cache_is_named() {
        let dir = cache();
        let repository = dir.path().join("hub/models--org--name");
        let env = || with("HF_HOME", dir.path().into());
        let message = |missing: &Path| {
            format!(
                "the cache has org/name without its main revision ({} is missing or malformed); fetch it again with `hf download org/name`",
                missing.display()
            )
        };
        fs::write(repository.join("refs/main"), "deadbeef").unwrap();
        let missing = repository.join("snapshots/deadbeef");
        assert_eq!(
            resolve("org/name", env()).unwrap_err().to_string(),
            message(&missing)
        );
        let reference = repository.join("refs/main");
        fs::write(&reference, "../../..").unwrap();
        assert_eq!(
            resolve("org/name", env()).unwrap_err().to_string(),
            message(&reference)
        );
        fs::remove_file(&reference).unwrap();
        assert_eq!(
            resolve("org/name", env()).unwrap_err().to_string(),
            message(&reference)
        );
    }
}

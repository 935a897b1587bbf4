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
    let found = resolve(dir.path().to_str().unwrap(), None, |_| None).unwrap();
    assert_eq!(found, dir.path());
}

#[test]
fn a_repository_is_found_through_each_variable() {
    let dir = cache();
    let root = dir.path();
    let snapshot = root.join("hub/models--org--name/snapshots").join(REVISION);
    for (name, value) in [("HF_HUB_CACHE", root.join("hub")), ("HF_HOME", root.into())] {
        assert_eq!(
            resolve("org/name", None, with(name, value)).unwrap(),
            snapshot
        );
    }
    for (name, sub) in [
        ("XDG_CACHE_HOME", "huggingface"),
        ("HOME", ".cache/huggingface"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let hub = home.path().join(sub);
        fs::create_dir_all(hub.parent().unwrap()).unwrap();
        fs::rename(cache().keep(), &hub).unwrap();
        let found = resolve("org/name", None, with(name, home.path().into())).unwrap();
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
    assert!(resolve("org/name", None, env).is_ok());
}

#[test]
fn a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(
        resolve(path, None, |_| None).unwrap_err().to_string(),
        format!(
            "{path} is a file, and no GGUF one; give a GGUF file, the directory that holds config.json, or a repository id such as google/gemma-3-270m"
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
            resolve(model, None, |_| Some("/cache".into()))
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
        resolve("org/other", None, with("HF_HUB_CACHE", "/no/cache".into()))
            .unwrap_err()
            .to_string(),
        "no directory org/other, and no such repository in the cache /no/cache; fetch it with `hf download org/other`, or set HF_HUB_CACHE or HF_HOME to where it is"
    );
    assert_eq!(
        resolve("org/other", None, |_| None)
            .unwrap_err()
            .to_string(),
        "no directory org/other, and no Hugging Face cache to look it up in; set HF_HUB_CACHE, HF_HOME or HOME"
    );
}

#[test]
fn a_broken_cache_says_what_there_is() {
    let dir = cache();
    let repository = dir.path().join("hub/models--org--name");
    let message = || {
        let error = resolve("org/name", None, with("HF_HOME", dir.path().into()));
        error.unwrap_err().to_string()
    };
    let reference = repository.join("refs/main");
    let with_commit = format!(
        "the cache has org/name, but not its revision main; choose one with --revision {REVISION}, or fetch it with `hf download org/name --revision main`"
    );
    // What main names is not there, or no name; a repository that was fetched by commit has no main.
    for content in ["deadbeef", "../../..", "", "/"] {
        fs::write(&reference, content).unwrap();
        assert_eq!(message(), with_commit, "{content:?}");
    }
    fs::remove_file(&reference).unwrap();
    assert_eq!(message(), with_commit);
    let other = repository.join("snapshots/0aaa");
    fs::create_dir(&other).unwrap();
    assert_eq!(
        message(),
        with_commit.replace(REVISION, &format!("0aaa (or {REVISION})"))
    );
    fs::remove_dir_all(repository.join("snapshots")).unwrap();
    assert_eq!(
        message(),
        "the cache has org/name, but not its revision main; fetch it with `hf download org/name --revision main`"
    );
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let dir = cache();
    let repository = dir.path().join("hub/models--org--name");
    let other = "0000000000000000000000000000000000000001";
    fs::create_dir(repository.join("snapshots").join(other)).unwrap();
    fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
    fs::write(repository.join("refs/refs/pr/1"), other).unwrap();
    fs::write(repository.join("refs/v1.0"), other).unwrap();
    fs::create_dir(repository.join("refs/feature")).unwrap();
    fs::write(repository.join("refs/feature/x"), other).unwrap();
    let find = |revision| {
        resolve(
            "org/name",
            Some(revision),
            with("HF_HOME", dir.path().into()),
        )
    };
    for revision in ["refs/pr/1", "v1.0", "feature/x", other] {
        assert!(find(revision).unwrap().ends_with(other), "{revision}");
    }
    for revision in ["main", REVISION] {
        assert!(find(revision).unwrap().ends_with(REVISION), "{revision}");
    }
    // As in huggingface_hub a commit is whole, and in small letters.
    let capitals = REVISION.to_uppercase();
    for revision in [
        &REVISION[..7],
        &capitals,
        "refs",
        "feature",
        "none",
        "",
        ".",
        "..",
        "../snapshots",
        "/etc",
        "v1.0/x",
    ] {
        assert!(
            matches!(find(revision), Err(Error::NoRevision { .. })),
            "{revision}"
        );
    }
    assert_eq!(
        find("none").unwrap_err().to_string(),
        format!(
            "the cache has org/name, but not its revision none; choose one with --revision {other} (or {REVISION}), or fetch it with `hf download org/name --revision none`"
        )
    );
}

#[test]
fn an_old_name_counts_after_the_new_one() {
    let dir = cache();
    let env = |old: &str, new: Option<&str>| {
        let (old, new) = (dir.path().join(old), new.map(|new| dir.path().join(new)));
        move |asked: &str| match asked {
            "HUGGINGFACE_HUB_CACHE" => Some(old.clone().into()),
            "HF_HUB_CACHE" => new.clone().map(Into::into),
            "HF_HOME" => Some("/nowhere".into()),
            _ => None,
        }
    };
    assert!(resolve("org/name", None, env("hub", None)).is_ok());
    assert!(resolve("org/name", None, env("none", Some("hub"))).is_ok());
    assert!(resolve("org/name", None, env("hub", Some("none"))).is_err());
    // Not read by transformers 5.
    let old = with("TRANSFORMERS_CACHE", dir.path().join("hub"));
    assert!(matches!(
        resolve("org/name", None, old),
        Err(Error::NoCache { .. })
    ));
}

#[test]
fn variables_are_expanded() {
    let expand = |path: &str| {
        let env = |name: &str| match name {
            "HOME" => Some("/h".into()),
            "A" => Some("x".into()),
            "A_1" => Some("y".into()),
            _ => None,
        };
        expanded(path.into(), env).into_string().unwrap()
    };
    for (path, expected) in [
        ("~", "/h"),
        ("~/a", "/h/a"),
        ("~user/a", "~user/a"),
        ("a/~", "a/~"),
        ("$A/b", "x/b"),
        ("${A}b$A_1", "xby"),
        ("$NONE/${NONE}", "$NONE/${NONE}"),
        ("$/$$A/${", "$/$x/${"),
        ("", ""),
    ] {
        assert_eq!(expand(path), expected, "{path}");
    }
}

#[test]
fn the_cache_is_where_huggingface_hub_has_it() {
    // Each as huggingface_hub 2.4 prints it.
    for (variables, expected) in [
        (&[("HF_HOME", "~/hf")][..], "/h/hf/hub"),
        (
            &[
                ("HF_HUB_CACHE", "$XDG_CACHE_HOME/hub"),
                ("XDG_CACHE_HOME", "/x"),
            ],
            "/x/hub",
        ),
        (&[("HUGGINGFACE_HUB_CACHE", "~/old")], "/h/old"),
        (&[("XDG_CACHE_HOME", "~/x")], "/h/x/huggingface/hub"),
        (&[("HF_HUB_CACHE", "")], ""),
        (&[("HF_HOME", "")], "hub"),
        (&[("XDG_CACHE_HOME", "")], "huggingface/hub"),
        (&[("HOME", "")], "/.cache/huggingface/hub"),
        (&[], "/h/.cache/huggingface/hub"),
    ] {
        let env = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            let home = (name == "HOME").then_some("/h");
            found.map(|(_, value)| *value).or(home).map(OsString::from)
        };
        assert_eq!(
            cache_dir(env).unwrap(),
            Path::new(expected),
            "{variables:?}"
        );
    }
}

#[test]
fn ids_are_those_of_huggingface_hub() {
    for id in ["a", "org/name", "org_/_name", "a.b/c-d_e", "0/1"] {
        assert!(is_repository_id(id), "{id}");
    }
    let long = "a".repeat(97);
    for id in [
        "", "/", "a/", "/a", "a/b/c", "-a", "a-", ".a", "a.", "a--b", "a..b", "a.git", "a b", "ä",
        "a\\b", &long,
    ] {
        assert!(!is_repository_id(id), "{id}");
    }
}

#[test]
fn a_snapshot_has_the_name_of_its_repository() {
    let dir = cache();
    let snapshot = dir
        .path()
        .join("hub/models--org--name/snapshots")
        .join(REVISION);
    let expected = Origin {
        name: "org/name".into(),
        revision: Some(REVISION.into()),
    };
    assert_eq!(origin(&snapshot), expected);
    assert_eq!(origin(&snapshot.join("../").join(REVISION)), expected);
    let plain = dir.path().join("hub");
    let path = plain.canonicalize().unwrap().to_str().unwrap().to_owned();
    assert_eq!(
        origin(&plain),
        Origin {
            name: path,
            revision: None
        }
    );
}

//! How the source is laid out: every file belongs to a module, and modules are built on one another without circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// For each module those that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All Rust files under `dir`.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.insert(path);
        }
    }
    found
}

/// The names that a file declares by `mod name;`.
fn declared(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let name = line.trim().strip_suffix(';')?;
        let (before, name) = name.rsplit_once(' ').unwrap_or(("", name));
        matches!(
            before,
            "mod" | "pub mod" | "pub(crate) mod" | "pub(super) mod"
        )
        .then_some(name)
    })
}

/// Adds `file` and the files of the modules that it declares.
fn reach(file: &Path, reached: &mut BTreeSet<PathBuf>) {
    let (folder, stem) = (file.parent().unwrap(), file.file_stem().unwrap());
    let is_root = ["lib", "main", "mod"].iter().any(|root| stem == *root);
    let folder = if is_root {
        folder.to_owned()
    } else {
        folder.join(stem)
    };
    for name in declared(&fs::read_to_string(file).unwrap()) {
        let places = [format!("{name}.rs"), format!("{name}/mod.rs")];
        let place = places
            .iter()
            .map(|place| folder.join(place))
            .find(|place| place.exists());
        reach(
            &place.unwrap_or_else(|| panic!("{name} of {}", file.display())),
            reached,
        );
    }
    reached.insert(file.to_owned());
}

/// The files under `dir` that no module is.
fn strays(dir: &Path) -> Vec<PathBuf> {
    let mut reached = BTreeSet::new();
    for root in ["lib.rs", "main.rs"].map(|root| dir.join(root)) {
        if root.exists() {
            reach(&root, &mut reached);
        }
    }
    files(dir).difference(&reached).cloned().collect()
}

#[test]
fn every_file_belongs_to_a_module() {
    assert_eq!(strays(&src()), [] as [PathBuf; 0]);
}

#[test]
fn a_file_of_no_module_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    write("lib.rs", "pub mod a;\nmod tests {}\n");
    write("a/mod.rs", "mod b;\n// mod c;\n");
    write("a/b.rs", "");
    write("a/c.rs", "");
    assert_eq!(strays(dir.path()), [dir.path().join("a/c.rs")]);
}

/// The code of a file, without comments and its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The names that follow `prefix` in some code, also in braces: `a` and `b` in `use crate::{a, b::C};`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let name = |text: &str| -> String {
        let end = |c: char| !c.is_alphanumeric() && c != '_';
        text.trim_start().split(end).next().unwrap().to_owned()
    };
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$' || c == ':') {
            continue;
        }
        let Some(braces) = code[at + prefix.len()..].strip_prefix('{') else {
            names.insert(name(&code[at + prefix.len()..]));
            continue;
        };
        // Names at the first level.
        let (mut depth, mut begins) = (0, true);
        for (i, c) in braces.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && !c.is_whitespace() => {
                    names.insert(name(&braces[i..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    names
}

/// For each name that `root` re-exports of a module declared there, that module: `a` for `B` in `pub use a::B;`.
fn reexports(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let code = code(&fs::read_to_string(root).unwrap());
    for statement in code.split("use ").skip(1) {
        let (path, _) = statement.split_once(';').unwrap();
        let (module, _) = path.split_once("::").unwrap_or((path, ""));
        for name in names_after(path, &format!("{module}::")) {
            found.insert(name, module.to_owned());
        }
    }
    found
}

/// Which of the modules in `dir` use which, by paths that begin with `prefix`. A name that `root` re-exports stands for
/// its module.
fn uses(dir: &Path, prefix: &str, root: &str) -> Uses {
    let mut uses = Uses::new();
    let reexports = reexports(&dir.join(root));
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if ["lib", "main", "mod", "tests", "cli"].contains(&&*module) {
            continue;
        }
        let files = if path.is_dir() {
            files(&path)
        } else {
            [path].into()
        };
        let used = uses.entry(module.clone()).or_default();
        for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
            let names = names_after(&code(&fs::read_to_string(file).unwrap()), prefix);
            used.extend(
                names
                    .into_iter()
                    .map(|name| reexports.get(&name).cloned().unwrap_or(name)),
            );
        }
        used.remove(&module);
    }
    let modules: BTreeSet<_> = uses.keys().cloned().collect();
    for used in uses.values_mut() {
        used.retain(|name| modules.contains(name));
    }
    uses
}

/// The modules that are left when, again and again, those are taken away that use none that is left: those in a circle
/// and those that use one.
fn circles(mut uses: Uses) -> Uses {
    loop {
        let left: BTreeSet<_> = uses.keys().cloned().collect();
        uses.values_mut()
            .for_each(|used| used.retain(|name| left.contains(name)));
        uses.retain(|_, used| !used.is_empty());
        if uses.len() == left.len() {
            return uses;
        }
    }
}

#[test]
fn modules_form_no_circle() {
    let modules = uses(&src(), "crate::", "lib.rs");
    // The control: that paths are found at all.
    assert!(modules["error"].contains("verify") && modules["patch"].contains("model"));
    assert_eq!(circles(modules), Uses::new());
}

#[test]
fn files_of_a_folder_form_no_circle() {
    let mut folders = 0;
    for folder in fs::read_dir(src()).unwrap() {
        let folder = folder.unwrap().path();
        // The kernels of `cuda` are no Rust.
        if folder.join("mod.rs").exists() {
            let files = uses(&folder, "super::", "mod.rs");
            assert_eq!(circles(files), Uses::new(), "{}", folder.display());
            folders += 1;
        }
    }
    assert!(folders > 10);
}

#[test]
fn a_circle_is_found() {
    let uses = |pairs: &[(&str, &str)]| {
        let mut uses = Uses::new();
        for (module, used) in pairs {
            uses.entry((*module).into())
                .or_default()
                .insert((*used).into());
        }
        uses
    };
    assert_eq!(
        circles(uses(&[("a", "b"), ("b", "c"), ("a", "c")])),
        Uses::new()
    );
    let circle = uses(&[("b", "c"), ("c", "b")]);
    assert_eq!(circles(uses(&[("b", "c"), ("c", "b"), ("c", "d")])), circle);
    let code = "use crate::{a::{self, x}, b};\nuse crate::c::d;\nlet e = super::crate::f;";
    let names = names_after(code, "crate::");
    assert_eq!(names, ["a", "b", "c"].map(String::from).into());
}

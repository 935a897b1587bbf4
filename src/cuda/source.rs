//! The kernels' source, and what a device runs of it.

use std::fs;
use std::path::PathBuf;

use cudarc::nvrtc;
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use crate::message::hex;

/// Every file, under the name that others include it by.
const FILES: &[(&str, &str)] = &[
    ("activation.cu", include_str!("activation.cu")),
    ("attention.cu", include_str!("attention.cu")),
    ("elementwise.cu", include_str!("elementwise.cu")),
    ("exp.cuh", include_str!("exp.cuh")),
    ("heads.cu", include_str!("heads.cu")),
    ("kernels.cu", include_str!("kernels.cu")),
    ("lanes.cuh", include_str!("lanes.cuh")),
    ("async.cuh", include_str!("matmul/async.cuh")),
    ("few.cuh", include_str!("matmul/few.cuh")),
    ("tiles.cuh", include_str!("matmul/tiles.cuh")),
    ("units.cuh", include_str!("matmul/units.cuh")),
    ("matmul.cu", include_str!("matmul.cu")),
    ("norm.cu", include_str!("norm.cu")),
    ("norm.cuh", include_str!("norm.cuh")),
    ("normal.cuh", include_str!("normal.cuh")),
    ("order.cuh", include_str!("order.cuh")),
    ("rows.cu", include_str!("rows.cu")),
    ("softmax.cuh", include_str!("softmax.cuh")),
    ("tanh.cuh", include_str!("tanh.cuh")),
    ("types.cuh", include_str!("types.cuh")),
    ("weighted_sum.cu", include_str!("weighted_sum.cu")),
];

/// The kernels as one file, each file it includes in its first place.
fn source() -> String {
    fn expand(name: &str, seen: &mut Vec<&'static str>, out: &mut String) {
        let file = FILES.iter().find(|(known, _)| *known == name);
        let Some(&(name, text)) = file.filter(|(known, _)| !seen.contains(known)) else {
            return;
        };
        seen.push(name);
        for line in text.lines() {
            let included = line.strip_prefix("#include \"");
            match included.and_then(|rest| rest.split('"').next()) {
                Some(path) => expand(path.rsplit('/').next().unwrap_or(path), seen, out),
                None if line == "#pragma once" => {}
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            }
        }
    }
    let mut out = String::new();
    expand("kernels.cu", &mut Vec::new(), &mut out);
    out
}

/// What decides bits: no multiply-add that is not written.
const OPTIONS: [&str; 2] = ["--fmad=false", "--std=c++17"];

/// The kernels in PTX for an architecture such as `compute_90`, compiled by NVRTC or kept from another time. `device` is
/// what errors call it.
pub(super) fn ptx(architecture: &str, device: &str) -> Result<String> {
    let source = source();
    let kept = kept_file(&source, architecture);
    if let Some(ptx) = kept.as_ref().and_then(|file| fs::read_to_string(file).ok()) {
        return Ok(ptx);
    }
    let ptx = compile(&source, architecture, device)?;
    // Without a cache they are compiled again the next time.
    if let Some(file) = kept
        && let Some(folder) = file.parent()
        && fs::create_dir_all(folder).is_ok()
        && let Ok(beside) = tempfile::NamedTempFile::new_in(folder)
        && fs::write(beside.path(), &ptx).is_ok()
    {
        let _ = beside.persist(file);
    }
    Ok(ptx)
}

/// `~/.cache/context-patch/HASH.ptx`: the hash is of everything that the outcome depends on.
fn kept_file(source: &str, architecture: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache.map(PathBuf::from).or_else(home)?;
    let mut hash = Sha256::new();
    for part in [source, architecture].iter().chain(&OPTIONS) {
        hash.update(part);
        hash.update([0]);
    }
    let hash = hex(&hash.finalize()[..16]);
    Some(cache.join("context-patch").join(format!("{hash}.ptx")))
}

fn compile(source: &str, architecture: &str, device: &str) -> Result<String> {
    // SAFETY: it only looks whether the library can be loaded.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(Error::NoCompiler);
    }
    let mut options: Vec<String> = OPTIONS.map(String::from).into();
    options.push(format!("--gpu-architecture={architecture}"));
    let options = nvrtc::CompileOptions {
        options,
        ..nvrtc::CompileOptions::default()
    };
    let failed = |message: String| Error::Compile {
        device: device.into(),
        message,
    };
    match nvrtc::compile_ptx_with_opts(source, options) {
        Ok(ptx) => Ok(ptx.to_src()),
        Err(nvrtc::CompileError::CompileError { log, .. }) => {
            let log = log.to_string_lossy();
            Err(failed(log.lines().next().unwrap_or_default().into()))
        }
        Err(other) => Err(failed(format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_every_file_once() {
        let source = source();
        assert!(!source.contains("#include"));
        for (name, text) in FILES {
            let says_what_it_is = text.lines().next().unwrap();
            assert!(says_what_it_is.starts_with("// "), "{name}");
            assert_eq!(source.matches(says_what_it_is).count(), 1, "{name}");
        }
    }
}

//! The ways in which one sequence can go through a model, and a hash of what comes out, which must not know them.

use std::iter::once;
use std::thread;

use context_patch::kernels::Level;
use context_patch::model::{Images, Inputs, Recorder, Tokens};
use context_patch::tensor::{Element, Matrix};
use context_patch::trace::names;
use context_patch::{Model, Session};
use half::bf16;
use rayon::ThreadPoolBuilder;
use sha2::{Digest, Sha256};

/// The names of all levels, whether this machine has them or not.
pub const LEVELS: [&str; 4] = ["scalar", "avx2", "avx512", "avx512bf16"];

/// Which levels the tests run at, and which they leave out, by name.
pub fn levels_here() -> String {
    let (here, missing): (Vec<_>, Vec<_>) = LEVELS
        .into_iter()
        .partition(|name| name.parse::<Level>().is_ok());
    let missing = match missing[..] {
        [] => "none".to_owned(),
        _ => missing.join(", "),
    };
    format!("levels: {}; missing: {missing}", here.join(", "))
}

/// How a sequence goes through a model.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub threads: usize,
    /// Tokens that go through the layers together.
    pub chunk: usize,
    /// Tokens at the end that come one by one; the first token never does, nor those up to the last image.
    pub decoded: usize,
    /// Whether three more sessions of the model run at the same time, in the same pool.
    pub company: bool,
}

/// All tokens at once, by two threads, alone.
pub const AT_ONCE: Way = Way {
    threads: 2,
    chunk: usize::MAX,
    decoded: 0,
    company: false,
};

/// Ways through kernels that [`AT_ONCE`] does not reach, by name: those of one token, and of few.
pub const FEW_TOKENS: [(&str, Way); 2] = [
    (
        "token_by_token",
        Way {
            decoded: usize::MAX,
            ..AT_ONCE
        },
    ),
    (
        "chunks_of_7_and_decoding_by_three_threads",
        Way {
            threads: 3,
            chunk: 7,
            decoded: 30,
            ..AT_ONCE
        },
    ),
];

/// Every other way: each changes one thing, the last one several.
pub const OTHERS: [(&str, Way); 9] = [
    (
        "one_thread",
        Way {
            threads: 1,
            ..AT_ONCE
        },
    ),
    (
        "three_threads",
        Way {
            threads: 3,
            ..AT_ONCE
        },
    ),
    (
        "seven_threads",
        Way {
            threads: 7,
            ..AT_ONCE
        },
    ),
    (
        "chunks_of_511",
        Way {
            chunk: 511,
            ..AT_ONCE
        },
    ),
    (
        "chunks_of_64",
        Way {
            chunk: 64,
            ..AT_ONCE
        },
    ),
    (
        "chunks_of_7",
        Way {
            chunk: 7,
            ..AT_ONCE
        },
    ),
    (
        "chunks_of_1",
        Way {
            chunk: 1,
            ..AT_ONCE
        },
    ),
    (
        "beside_three_sessions",
        Way {
            company: true,
            ..AT_ONCE
        },
    ),
    (
        "chunks_of_64_by_seven_threads_beside_three_sessions",
        Way {
            threads: 7,
            chunk: 64,
            company: true,
            ..AT_ONCE
        },
    ),
];

/// One line: what the sequence is, its length, and a hash for each compute type.
pub fn hashes<'i>(
    name: &str,
    model: &Model,
    inputs: impl Into<Inputs<'i>>,
    last: usize,
    way: Way,
) -> String {
    let inputs = inputs.into();
    let tokens = inputs.ids.len();
    let line = |dtype: &str, hash: String| format!("{name} {tokens} {dtype} {hash}\n");
    [
        line("f64", hash::<f64>(model, inputs, last, way)),
        line("f32", hash::<f32>(model, inputs, last, way)),
        line("bf16", hash::<bf16>(model, inputs, last, way)),
    ]
    .concat()
}

/// SHA-256 of the last block's output for every token and then the logits of the last `last` tokens, all as
/// little-endian f64, which every compute type widens to exactly.
pub fn hash<'i, E: Element>(
    model: &Model,
    inputs: impl Into<Inputs<'i>>,
    last: usize,
    way: Way,
) -> String {
    let inputs = inputs.into();
    let pool = ThreadPoolBuilder::new().num_threads(way.threads);
    let pool = &pool.build().unwrap();
    let run = |way| pool.install(|| pass::<E>(model, inputs, last, way));
    if !way.company {
        return run(way);
    }
    thread::scope(|scope| {
        let others = [1, 7, 64].map(|chunk| scope.spawn(move || run(Way { chunk, ..way })));
        let ours = run(way);
        for other in others {
            assert_eq!(other.join().unwrap(), ours, "one of the other sessions");
        }
        ours
    })
}

fn pass<E: Element>(model: &Model, inputs: Inputs<'_>, last: usize, way: Way) -> String {
    let mut seen = Seen {
        block: last_block(model),
        hash: Sha256::new(),
        logits: Vec::new(),
    };
    let mut session = Session::<E>::new(model).with_chunk(way.chunk);
    let images = Images::of(model, inputs, None).unwrap();
    let ids = inputs.ids;
    let decoded_from = ids.len().saturating_sub(way.decoded).max(1);
    let (prompt, rest) = ids.split_at(decoded_from.max(end_of_images(model, inputs)));
    let pieces = rest.chunks(1).map(|piece| (piece, None));
    let mut left = ids.len();
    for (piece, images) in once((prompt, images.as_ref())).chain(pieces) {
        left -= piece.len();
        let rows = last.saturating_sub(left);
        let piece = Tokens::new(piece, images);
        session.forward_recorded(piece, rows, &mut seen).unwrap();
    }
    let hash = seen.hash.chain_update(&seen.logits).finalize();
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// The tokens up to the last one of an image.
fn end_of_images(model: &Model, inputs: Inputs<'_>) -> usize {
    if inputs.pixel_values.is_empty() {
        return 0;
    }
    let id = model
        .checkpoint()
        .vision_config()
        .unwrap()
        .image_token_index;
    inputs.ids.iter().rposition(|&token| token == id).unwrap() + 1
}

/// What the last block's output is called: `model.layers.L` or `transformer.h.L`.
fn last_block(model: &Model) -> String {
    let end = format!(".{}", model.layers().len() - 1);
    let mut names = names(model).into_iter();
    names.find(|name| name.ends_with(&end)).unwrap()
}

/// Keeps logits back, so that the order of the hashed numbers does not depend on the chunks.
struct Seen {
    block: String,
    hash: Sha256,
    logits: Vec<u8>,
}

impl Recorder for Seen {
    fn wants(&self, name: &str) -> bool {
        name == self.block || name == "lm_head"
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let bytes = rows.as_slice().iter().flat_map(|x| x.to_le_bytes());
        match name {
            "lm_head" => self.logits.extend(bytes),
            _ => self.hash.update(bytes.collect::<Vec<_>>()),
        }
    }
}

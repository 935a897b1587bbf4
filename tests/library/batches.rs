//! What a sequence says in a batch is what it says alone, to the bit: whoever is beside it, comes and goes, or had the same
//! beginning. `tests/bits.rs` pins what it says alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::{all_models, open, reference};
use bytes::Bytes;
use context_patch::checkpoint::Checkpoint;
use context_patch::kernels::Backend;
use context_patch::model::batch::{Batch, BatchOptions, Entry, SequenceId};
use context_patch::model::{Error, ModelOptions, Overlay};
use context_patch::patch::{ApplyMode, Method, Query, Solver, solve};
use context_patch::tensor::{Element, Matrix};
use context_patch::{Model, Session};
use half::bf16;
use rand_core::Rng;
use rand_pcg::Pcg64;
use safetensors::SafeTensors;

/// How many others there are beside a sequence.
const COMPANY: [usize; 5] = [1, 2, 7, 16, 33];

/// A sequence as a client has it: what it begins with, and what is pushed, whatever the logits say.
struct Script<E: Element> {
    tokens: Vec<u32>,
    prompt: usize,
    overlay: Option<Arc<Overlay<E>>>,
    every_logits: bool,
    /// The logits after every token, alone.
    alone: Matrix<E>,
}

/// Two patches, as they are applied in either way.
fn overlays<E: Element>(model: &Model) -> [Arc<Overlay<E>>; 2] {
    let of = |(form, context): (_, &[u32])| {
        let mut session = Session::<E>::new(model);
        session.forward(context, 0).unwrap();
        let method = Method {
            form,
            ..Method::new(Solver::ClosedForm)
        };
        let solution = solve(&mut session, Query::alone(7), &method, &[]).unwrap();
        Arc::new(Overlay::new(model, &solution.patch, form))
    };
    [
        (ApplyMode::Overlay, [3, 9, 27].as_slice()),
        (ApplyMode::Materialise, &[40, 5]),
    ]
    .map(of)
}

/// Sequences of which some begin alike, under no patch, under one and under another.
fn scripts<E: Element>(model: &Model) -> Vec<Script<E>> {
    let config = model.config();
    let most = config.max_position_embeddings.min(76);
    let [first, second] = overlays::<E>(model);
    let script = |i: usize| {
        // Three of them begin alike for 39 tokens, three for 32.
        let alike = [39, 32, 0][i % 3].min(most - 1);
        let tokens = most - 7 * i % 11;
        let token = |at: usize| {
            let which = if at < alike { alike } else { 50 + i };
            ((at * at * 7 + which * 3 + 3) % config.vocab_size) as u32
        };
        let tokens: Vec<u32> = (0..tokens).map(token).collect();
        let overlay = [None, Some(first.clone()), Some(second.clone())][i / 3 % 3].clone();
        let mut session = Session::<E>::new(model);
        if let Some(overlay) = &overlay {
            session = session.with_overlay(overlay);
        }
        let alone = session.forward(&tokens, tokens.len()).unwrap();
        Script {
            prompt: [1, 40, tokens.len() / 2, tokens.len() - 3][i % 4].min(tokens.len()),
            every_logits: i % 5 == 4,
            overlay,
            tokens,
            alone,
        }
    };
    (0..9).map(script).collect()
}

/// A batch under random load.
struct Load<'m, 's, E: Element> {
    batch: Batch<'m, E>,
    scripts: &'s [Script<E>],
    /// Which script each sequence follows.
    running: BTreeMap<SequenceId, usize>,
    random: Pcg64,
    seen: Seen,
}

/// What happened.
#[derive(Debug, Default)]
struct Seen {
    rows: usize,
    differing: usize,
    cached: usize,
    forks: usize,
    left_early: usize,
}

impl<'m, 's, E: Element> Load<'m, 's, E> {
    fn new(model: &'m Model, options: BatchOptions, scripts: &'s [Script<E>]) -> Self {
        Self {
            batch: Batch::new(model, options),
            scripts,
            running: BTreeMap::new(),
            random: Pcg64::new(7, 0),
            seen: Seen::default(),
        }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.random.next_u64().is_multiple_of(n)
    }

    /// Lets every script run `times`, beside up to `company` others, each joined at a step of its own.
    fn run(mut self, company: usize, times: usize) -> Seen {
        let count = self.scripts.len();
        let mut waiting = (0..count * times).map(|i| i * 5 % count);
        loop {
            while self.running.len() <= company && !self.one_in(3) {
                let Some(script) = waiting.next() else { break };
                self.join(script);
            }
            if self.running.is_empty() && waiting.len() == 0 {
                return self.seen;
            }
            self.step();
        }
    }

    fn join(&mut self, script: usize) {
        let Script {
            tokens,
            prompt,
            overlay,
            every_logits,
            ..
        } = &self.scripts[script];
        let entry = Entry {
            overlay: overlay.clone(),
            every_logits: *every_logits,
            ..Entry::new(tokens[..*prompt].to_vec(), tokens.len() - prompt)
        };
        let id = self.batch.join(entry).unwrap();
        self.running.insert(id, script);
    }

    fn step(&mut self) {
        let step = self.batch.step().unwrap();
        assert!(step.failed.is_empty());
        for said in step.said() {
            let script = &self.scripts[self.running[&said.id]];
            self.seen.rows += 1;
            self.seen.differing += usize::from(said.logits != script.alone.row(said.position));
            if said.position + 1 < script.prompt {
                continue;
            }
            if let Some(&token) = script.tokens.get(said.position + 1) {
                self.batch.push(said.id, token).unwrap();
                self.fork_or_leave(said.id);
            } else {
                self.leave(said.id);
            }
        }
    }

    fn fork_or_leave(&mut self, id: SequenceId) {
        if self.one_in(60) {
            let fork = self.batch.fork(id).unwrap();
            self.running.insert(fork, self.running[&id]);
            self.seen.forks += 1;
        } else if self.one_in(100) {
            self.leave(id);
            self.seen.left_early += 1;
        }
    }

    fn leave(&mut self, id: SequenceId) {
        self.seen.cached += self.batch.cached_tokens(id);
        assert!(self.batch.leave(id) && !self.batch.leave(id));
        self.running.remove(&id);
    }
}

/// What `model` says under load, with `prefix_cache` bytes for beginnings.
fn under_load<E: Element>(
    model: &Model,
    scripts: &[Script<E>],
    company: usize,
    prefix_cache: usize,
) -> Seen {
    let options = BatchOptions {
        prefill_tokens: [5, 64, 128][company % 3],
        prefix_cache,
        ..BatchOptions::default()
    };
    Load::new(model, options, scripts).run(company, 2)
}

/// Every second model from the one at `first` on, each beside another number of others.
fn is_what_it_is_alone<E: Element>(first: usize) {
    let mut all = Seen::default();
    for (i, (dir, name)) in all_models().iter().enumerate().skip(first).step_by(2) {
        let model = open(dir);
        let scripts = scripts::<E>(&model);
        let company = COMPANY[i % COMPANY.len()];
        let seen = under_load(&model, &scripts, company, 1 << 20);
        assert_eq!(seen.differing, 0, "{name} beside {company}: {seen:?}");
        // Learned positions of which there are few leave no room for a beginning and a rest.
        assert!(seen.rows > 500 || name == "gpt2", "{name}: {seen:?}");
        all.cached += seen.cached;
        all.forks += seen.forks;
        all.left_early += seen.left_early;
    }
    assert!(
        all.cached > 1000 && all.forks > 20 && all.left_early > 20,
        "{all:?}"
    );
}

#[test]
fn a_sequence_says_the_same_in_any_company_f32() {
    is_what_it_is_alone::<f32>(0);
}

#[test]
fn a_sequence_says_the_same_in_any_company_bf16() {
    is_what_it_is_alone::<bf16>(1);
}

/// Models with sliding windows, with experts, and with learned positions.
#[test]
fn a_sequence_says_the_same_beside_any_number() {
    for dir in ["window-3", "mixtral", "gpt2"] {
        let model = open(&format!("checkpoints/{dir}"));
        let scripts = scripts::<f32>(&model);
        for company in COMPANY {
            let seen = under_load(&model, &scripts, company, 0);
            assert_eq!((seen.differing, seen.cached), (0, 0), "{dir} {company}");
        }
    }
}

/// The control: the backend whose order of sums depends on how many tokens are multiplied at once.
#[test]
fn an_order_that_depends_on_the_batch_is_noticed() {
    let model = open("tiny").on(Backend::Gemm).unwrap();
    let scripts = scripts::<f32>(&model);
    let seen = under_load(&model, &scripts, 7, 0);
    assert!(seen.differing > seen.rows / 20, "{seen:?}");
}

/// The other control: what is compared differs between scripts, with the patch and with the tokens.
#[test]
fn scripts_say_different_things() {
    let model = open("tiny");
    let scripts = scripts::<f32>(&model);
    // The same first 39 tokens, under no patch and under each of the two.
    let [plain, first, second] = [0, 3, 6].map(|i| &scripts[i]);
    assert_eq!(plain.tokens[..39], first.tokens[..39]);
    assert_eq!(plain.tokens[..39], second.tokens[..39]);
    for row in 1..39 {
        assert_ne!(plain.alone.row(row), first.alone.row(row));
        assert_ne!(plain.alone.row(row), second.alone.row(row));
        assert_ne!(first.alone.row(row), second.alone.row(row));
    }
    assert_ne!(scripts[1].alone.row(60), scripts[0].alone.row(60));
}

/// Beginnings are found whoever computed them, dropped for want of memory, and those of a patch go with it.
#[test]
fn beginnings_are_shared_within_a_bound() {
    let model = open("tiny");
    let [first, second] = overlays::<f32>(&model);
    let tokens: Vec<u32> = (0..200).map(|i| i * 11 % 700).collect();
    let ask = |batch: &mut Batch<'_, f32>, tokens: &[u32], overlay: Option<&Arc<_>>| {
        let entry = Entry {
            overlay: overlay.cloned(),
            ..Entry::new(tokens.to_vec(), 0)
        };
        let id = batch.join(entry).unwrap();
        let said = loop {
            let step = batch.step().unwrap();
            if let Some(said) = step.said().next() {
                break said.logits.to_vec();
            }
        };
        let cached = batch.cached_tokens(id);
        batch.leave(id);
        (said, cached)
    };
    let options = BatchOptions::default();
    let mut batch = Batch::<f32>::new(&model, options);
    let (want, cached) = ask(&mut batch, &tokens, None);
    assert_eq!(cached, 0);
    let whole = batch.memory().prefixes;
    // The last token is computed, so of 193 six blocks of 32 come from there, and of 192 five.
    assert_eq!(ask(&mut batch, &tokens, None), (want.clone(), 192));
    assert_eq!(ask(&mut batch, &tokens[..193], None).1, 192);
    assert_eq!(ask(&mut batch, &tokens[..192], None).1, 160);
    assert_eq!(batch.memory().prefixes, whole);
    // Another token before a block makes another block of it.
    let others = [&[5], &tokens[1..]].concat();
    assert_eq!(ask(&mut batch, &others, None).1, 0);
    assert_eq!(batch.memory().prefixes, 2 * whole);
    // A patch has beginnings of its own.
    assert_eq!(ask(&mut batch, &tokens, Some(&first)).1, 0);
    assert_eq!(ask(&mut batch, &tokens, Some(&second)).1, 0);
    assert_eq!(ask(&mut batch, &tokens, Some(&second)).1, 192);
    assert_eq!(batch.memory().prefixes, 4 * whole);
    drop([first, second]);
    // Forgotten when the next one is stored.
    assert_eq!(ask(&mut batch, &tokens[..7].repeat(5), None).1, 0);
    assert_eq!(batch.memory().prefixes, 2 * whole + whole / 6);

    // With room for four blocks, and for none.
    let bounded = |prefix_cache| {
        let options = BatchOptions {
            prefix_cache,
            ..options
        };
        let mut batch = Batch::<f32>::new(&model, options);
        ask(&mut batch, &tokens, None);
        assert!(batch.memory().prefixes <= prefix_cache);
        let (said, cached) = ask(&mut batch, &tokens, None);
        assert_eq!(said, want);
        cached
    };
    assert_eq!(bounded(whole / 6 * 4), 128);
    assert_eq!(bounded(whole / 6 * 4 - 1), 96);
    assert_eq!(bounded(0), 0);
}

/// A long prompt goes in piece by piece, while another sequence writes a token at each step.
#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let model = open("tiny");
    let options = BatchOptions {
        prefill_tokens: 50,
        ..BatchOptions::default()
    };
    let mut batch = Batch::<f32>::new(&model, options);
    let writing = batch.join(Entry::new(vec![2], 20)).unwrap();
    let long = batch.join(Entry::new(vec![3; 300], 0)).unwrap();
    for step in 1..=6 {
        let said = batch.step().unwrap();
        let ids: Vec<_> = said.said().map(|said| said.id).collect();
        let want = if step == 6 {
            vec![writing, long]
        } else {
            vec![writing]
        };
        assert_eq!(ids, want, "step {step}");
        batch.push(writing, 20).unwrap();
    }
}

#[test]
fn what_has_no_room_is_refused() {
    let model = open("tiny");
    let one = model.cache_bytes::<f32>(64);
    let options = BatchOptions {
        cache_limit: 2 * one,
        ..BatchOptions::default()
    };
    let mut batch = Batch::<f32>::new(&model, options);
    let mut join = |prompt: &[u32], max_tokens| batch.join(Entry::new(prompt.to_vec(), max_tokens));
    assert!(matches!(join(&[], 5), Err(Error::EmptyPrompt)));
    assert!(matches!(join(&[99_999], 5), Err(Error::TokenId { .. })));
    assert!(matches!(
        join(&[2], 512),
        Err(Error::PromptTooLong { tokens: 513, .. })
    ));
    assert!(matches!(
        join(&[2], usize::MAX),
        Err(Error::PromptTooLong { .. })
    ));
    assert!(matches!(
        join(&[2], 511),
        Err(Error::CacheLimit { tokens: 512, .. })
    ));
    let first = join(&[2; 60], 4).unwrap();
    join(&[3; 60], 4).unwrap();
    let full = join(&[4; 60], 4).unwrap_err();
    assert!(matches!(full, Error::BatchFull { needed, free: 0, .. } if needed == one));
    let reserved = |batch: &Batch<'_, f32>| batch.memory().reserved;
    assert_eq!((batch.len(), reserved(&batch)), (2, 2 * one));
    assert!(matches!(batch.fork(first), Err(Error::BatchFull { .. })));

    // As many tokens as were asked for, and then no more; what is refused changes nothing.
    assert!(matches!(
        batch.push(first, 99_999),
        Err(Error::TokenId { position: 60, .. })
    ));
    for _ in 0..4 {
        batch.push(first, 9).unwrap();
    }
    assert!(matches!(
        batch.push(first, 9),
        Err(Error::CacheLimit { tokens: 65, .. })
    ));
    let step = batch.step().unwrap();
    let said = step.said().next().unwrap();
    let want = Session::<f32>::new(&model);
    let want = want
        .clone()
        .forward(&[[2; 60].as_slice(), &[9; 4]].concat(), 1)
        .unwrap();
    assert_eq!(
        (said.id, said.position, said.logits),
        (first, 63, want.row(0))
    );
    batch.leave(first);
    batch.join(Entry::new(vec![4; 60], 4)).unwrap();
    assert!(!batch.is_idle() && !batch.is_empty());
}

/// A model one row of whose embedding, or head, is too large to compute with.
fn overflowing(tensor: &str, row: usize) -> Model {
    let file = |name: &str| std::fs::read(reference("checkpoints/untied-head").join(name)).unwrap();
    let mut weights = file("model.safetensors");
    let (start, length) = {
        let tensors = SafeTensors::deserialize(&weights).unwrap();
        let tensor = tensors.tensor(tensor).unwrap();
        let row_length = tensor.data().len() / tensor.shape()[0];
        let start = tensor.data().as_ptr() as usize - weights.as_ptr() as usize;
        (start + row * row_length, row_length)
    };
    for number in weights[start..start + length].chunks_exact_mut(2) {
        number.copy_from_slice(&bf16::from_f32(1e38).to_le_bytes());
    }
    let files = [
        ("config.json", Bytes::from(file("config.json"))),
        ("model.safetensors", Bytes::from(weights)),
    ];
    let checkpoint = Checkpoint::from_files("overflowing", files).unwrap();
    Model::from_checkpoint(checkpoint, ModelOptions::default()).unwrap()
}

/// Runs prompts together, and says for each whether it failed; what each says or fails with is what it does alone.
fn failures(model: &Model, prompts: &[&[u32]]) -> Vec<bool> {
    let mut batch = Batch::<f32>::new(model, BatchOptions::default());
    let ids: Vec<_> = prompts
        .iter()
        .map(|prompt| batch.join(Entry::new(prompt.to_vec(), 1)).unwrap())
        .collect();
    let step = batch.step().unwrap();
    assert_eq!(step.failed.len() + step.said().len(), prompts.len());
    assert_eq!(batch.len(), step.said().len());
    let failed = |(id, prompt): (&SequenceId, &&[u32])| {
        let alone = Session::<f32>::new(model).forward(*prompt, 1);
        match step.failed.iter().find(|(failed, _)| failed == id) {
            Some((_, error)) => {
                assert_eq!(error.to_string(), alone.unwrap_err().to_string());
                true
            }
            None => {
                let said = step.said().find(|said| said.id == *id).unwrap();
                assert_eq!(said.logits, alone.unwrap().row(0));
                false
            }
        }
    };
    ids.iter().zip(prompts).map(failed).collect()
}

#[test]
fn a_sequence_that_fails_leaves_the_others_alone() {
    // A few tokens, which go through the layers with the others, and an end that reads 5 as what it is.
    let prompts: [&[u32]; 4] = [&[2, 3, 4], &[2, 5, 4], &[7, 8, 9, 10, 5], &[11]];
    let model = overflowing("model.embed_tokens.weight", 5);
    assert_eq!(failures(&model, &prompts), [false, true, true, false]);
    // All of them where it is the head, whose logits are of every sequence.
    let model = overflowing("lm_head.weight", 5);
    assert_eq!(failures(&model, &prompts), [true; 4]);
}

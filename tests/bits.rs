//! The same bits, however a sequence is computed.

mod common;

use common::{open, reference, small_models};
use context_patch::checkpoint::Access;
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use context_patch::tensor::Element;
use context_patch::{Model, Session};
use half::bf16;

fn ids(model: &Model) -> Vec<u32> {
    // Longer than any window, each model's own vocabulary.
    (0..40)
        .map(|i| (i * i * 7 + 3) % model.config().vocab_size as u32)
        .collect()
}

fn bits<E: Element>(model: &Model, pieces: &[&[u32]], chunk: usize) -> Vec<u64> {
    let mut session = Session::<E>::new(model).with_chunk(chunk);
    let forward = |piece: &&[u32]| session.forward(piece, piece.len()).unwrap().into_vec();
    let logits = pieces.iter().flat_map(forward);
    logits.map(|x| x.to_f64().to_bits()).collect()
}

/// Runs `check` for every small model and compute type.
macro_rules! for_all {
    ($model:ident, $element:ident => $check:block) => {
        for (dir, _) in small_models() {
            let $model = &open(&dir);
            {
                type $element = f64;
                $check
            }
            {
                type $element = f32;
                $check
            }
            {
                type $element = bf16;
                $check
            }
        }
    };
}

#[test]
fn chunks_and_single_tokens_give_the_bits_of_one_piece() {
    for_all!(model, E => {
        let ids = ids(model);
        let want = bits::<E>(model, &[&ids], 1000);
        for chunk in [1, 2, 3, 7, 39] {
            assert_eq!(bits::<E>(model, &[&ids], chunk), want, "chunks of {chunk}");
        }
        let single: Vec<_> = ids.chunks(1).collect();
        assert_eq!(bits::<E>(model, &single, 1000), want, "token by token");
        let (prompt, rest) = ids.split_at(23);
        let mut pieces = vec![prompt];
        pieces.extend(rest.chunks(1));
        assert_eq!(bits::<E>(model, &pieces, 5), want, "prompt and decode");
    });
}

#[test]
fn threads_do_not_change_bits() {
    for_all!(model, E => {
        let ids = ids(model);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bits::<E>(model, &[&ids], 1000))
        };
        let want = with(1);
        for threads in [2, 3, 7] {
            assert_eq!(with(threads), want, "{threads} threads");
        }
    });
}

#[test]
fn levels_and_access_do_not_change_bits() {
    println!("levels of this machine: {:?}", Level::available());
    for (dir, _) in small_models() {
        let path = reference(&dir);
        let with = |level: Option<Level>, access| {
            let options = ModelOptions {
                level,
                access,
                ..ModelOptions::default()
            };
            let model = Model::open_with(path.to_str().unwrap(), options).unwrap();
            let ids = ids(&model);
            [
                bits::<f64>(&model, &[&ids], 1000),
                bits::<f32>(&model, &[&ids], 1000),
                bits::<bf16>(&model, &[&ids], 1000),
            ]
        };
        let want = with(Some(Level::Scalar), Access::Read);
        for level in Level::available() {
            assert!(with(Some(level), Access::Mapped) == want, "{dir} {level}");
        }
    }
}

#[test]
fn another_token_changes_the_bits() {
    for_all!(model, E => {
        let mut ids = ids(model);
        let before = bits::<E>(model, &[&ids], 1000);
        ids[0] = (ids[0] + 1) % model.config().vocab_size as u32;
        assert_ne!(bits::<E>(model, &[&ids], 1000), before);
    });
}

#[test]
fn a_patch_leaves_the_model_alone() {
    use context_patch::patch::{Form, Method, Overlay, Query, Solver, solve};
    let model = &open("checkpoints/window-3");
    let ids = ids(model);
    let before = bits::<f32>(model, &[&ids], 1000);
    let (&last, context) = ids.split_last().unwrap();
    for (form, solver) in [
        (Form::Overlay, Solver::Theorem1),
        (Form::Materialise, Solver::Theorem1),
        (Form::Overlay, Solver::AppendixB),
        (Form::Materialise, Solver::AppendixB),
        (Form::Overlay, Solver::ClosedForm),
        (Form::Materialise, Solver::ClosedForm),
    ] {
        let mut session = Session::<f32>::new(model);
        session.forward(context, 0).unwrap();
        let method = Method {
            form,
            ..Method::new(solver)
        };
        let solution = solve(&mut session, Query::alone(last), &method, &[]).unwrap();
        // The overlay of the patch, lent to a fresh session, says what the solver saw.
        let overlay = Overlay::<f32>::new(model, &solution.patch, form);
        let mut patched = Session::new(model).at(context.len()).with_overlay(&overlay);
        let logits = patched.forward(&[last], 1).unwrap();
        assert_eq!(logits.as_slice(), solution.reduced.as_slice(), "{form}");
        // And the contextual pass beside it is the plain one.
        let plain = Session::<f32>::new(model).forward(&ids, 1).unwrap();
        assert_eq!(plain.as_slice(), solution.contextual, "{form}");
    }
    assert_eq!(bits::<f32>(model, &[&ids], 1000), before);
}

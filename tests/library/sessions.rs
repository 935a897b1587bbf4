//! Sessions and the protocol where things do not go well, and many prompts where they do.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::common::open;
use context_patch::model::Error;
use context_patch::model::generate::{Sampler, Sampling, Stop, generate};
use context_patch::patch::{
    self, ApplyMode, Method, Positions, Query, Solver, Variant, solve, solve_batch,
};
use context_patch::tensor::Element;
use context_patch::verify::{self, Keep, Summary, Verification};
use context_patch::{Model, Session};
use half::bf16;

#[test]
fn a_cancelled_session_stops_and_is_spent() {
    let model = open("tiny");
    let cancel = Arc::new(AtomicBool::new(true));
    let mut session = Session::<f32>::new(&model).with_cancel(cancel);
    let stop = generate(&mut session, &[2, 20], 5, &mut Sampler::default(), |_| {
        Ok::<_, Error>(())
    })
    .unwrap();
    assert_eq!(stop, Stop::Cancelled);
    assert!(matches!(
        session.forward(&[20], 1),
        Err(Error::SpentSession)
    ));
    let method = Method::new(Solver::ClosedForm);
    let refused = solve(&mut session, Query::alone(20), &method, &[]);
    assert!(matches!(
        refused,
        Err(patch::Error::Model(Error::SpentSession))
    ));
}

#[test]
fn refused_tokens_leave_a_session_as_it_was() {
    let model = open("tiny");
    let mut session = Session::<f32>::new(&model);
    let want = Session::<f32>::new(&model).forward(&[2, 20], 1).unwrap();
    assert!(matches!(
        session.forward(&[2, 99_999], 1),
        Err(Error::TokenId { position: 1, .. })
    ));
    assert!(matches!(session.forward(&[], 1), Err(Error::EmptyPrompt)));
    assert_eq!(session.forward(&[2, 20], 1).unwrap(), want);
}

#[test]
fn a_cache_limit_refuses_before_anything_is_computed() {
    let model = open("tiny");
    let limit = model.cache_bytes::<f32>(64);
    let bounded = || Session::<f32>::new(&model).with_cache_limit(limit);
    let mut session = bounded();
    session.forward(&[20; 60], 0).unwrap();
    let refused = session.forward(&[20; 5], 1).unwrap_err();
    assert!(matches!(
        refused,
        Error::CacheLimit { tokens: 65, needed, allowed, fit: 64 }
            if needed == model.cache_bytes::<f32>(65) && allowed == limit
    ));
    let gaps: Vec<usize> = (100..400).step_by(2).collect();
    let refused = session.forward_at(&[20; 150], &gaps, 1);
    assert!(matches!(refused, Err(Error::CacheLimit { .. })));
    // As it was: the four that fit give what they give without the attempts.
    let want = Session::<f32>::new(&model).forward(&[20; 64], 1).unwrap();
    assert_eq!(session.forward(&[20; 4], 1).unwrap(), want);
    // A patch's query counts like any token.
    let method = Method::new(Solver::ClosedForm);
    let refused = solve(&mut session, Query::alone(20), &method, &[]);
    assert!(matches!(
        refused,
        Err(patch::Error::Model(Error::CacheLimit { .. }))
    ));
}

#[test]
fn a_generation_ends_where_the_cache_does() {
    let model = open("tiny");
    let mut session = Session::<f32>::new(&model).with_cache_limit(model.cache_bytes::<f32>(64));
    let sampling = Sampling {
        temperature: 5.0,
        seed: 1,
        ..Sampling::default()
    };
    let mut written = 0;
    let stop = generate(
        &mut session,
        &[20; 50],
        100,
        &mut Sampler::new(sampling),
        |_| {
            written += 1;
            Ok::<_, Error>(())
        },
    );
    // 64 tokens taken in, and one more that the last of them gave.
    assert_eq!((stop.unwrap(), written), (Stop::Length, 15));
}

#[test]
fn kept_tokens_must_ascend_to_the_query() {
    let model = open("tiny");
    for kept in [vec![(2, 1), (2, 0)], vec![(2, 0), (2, 0)], vec![(2, 3)]] {
        let mut session = Session::<f32>::new(&model);
        session.forward(&[2, 20, 21], 0).unwrap();
        let query = Query {
            kept: &kept,
            ..Query::alone(22)
        };
        let method = Method::new(Solver::ClosedForm);
        let refused = solve(&mut session, query, &method, &[]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the kept tokens' positions must ascend and be below the query's, 3"
        );
    }
}

#[test]
fn a_sequence_that_fails_does_not_stop_its_batch() {
    let model = open("tiny");
    let method = Method::new(Solver::ClosedForm);
    let contexts = [&[2, 20, 21][..], &[2, 30], &[2, 40, 41, 42], &[2, 50]];
    let sessions = contexts.map(|context| {
        let mut session = Session::<f32>::new(&model);
        session.forward(context, 0).unwrap();
        session
    });
    let alone = sessions.clone().map(|mut session| {
        let query = Query::alone(22);
        solve(&mut session, query, &method, &[Variant::NoPatch]).unwrap()
    });
    let [mut a, b, mut c, mut d] = sessions;
    let mut cancelled = b.with_cancel(Arc::new(AtomicBool::new(true)));
    let queries = vec![
        (&mut a, Query::alone(22)),
        (&mut cancelled, Query::alone(22)),
        (&mut c, Query::alone(99_999)),
        (&mut d, Query::alone(22)),
    ];
    let together = solve_batch(queries, &method, &[Variant::NoPatch]);
    assert!(matches!(
        together[1],
        Err(patch::Error::Model(Error::Cancelled))
    ));
    assert!(matches!(
        together[2],
        Err(patch::Error::Model(Error::TokenId { .. }))
    ));
    for i in [0, 3] {
        let (alone, together) = (&alone[i], together[i].as_ref().unwrap());
        assert_eq!(together.contextual, alone.contextual);
        assert_eq!(together.reduced, alone.reduced);
        assert_eq!(together.patch, alone.patch);
    }
    assert_ne!(alone[0].contextual, alone[3].contextual);
    assert!(solve_batch::<f32>(Vec::new(), &method, &[]).is_empty());
    // Those that were solved go on.
    for (session, context) in [(&mut a, contexts[0]), (&mut d, contexts[3])] {
        let all = [context, &[22, 23]].concat();
        let want = Session::<f32>::new(&model).forward(&all, 1).unwrap();
        assert_eq!(session.forward(&[23], 1).unwrap(), want);
    }
}

#[test]
fn a_prompt_of_one_token_has_no_context() {
    let model = open("tiny");
    let verification = Verification {
        model: &model,
        tokens: 1,
        method: Method::new(Solver::ClosedForm),
        keep: Keep::Nothing,
        positions: Positions::Absolute,
    };
    assert!(matches!(
        verification.check(&[2]),
        Err(verify::Error::Patch(patch::Error::NoContext))
    ));
    let endless = Verification {
        tokens: usize::MAX,
        ..verification
    };
    assert!(matches!(
        endless.check(&[2, 20]),
        Err(verify::Error::Model(Error::PromptTooLong { .. }))
    ));
}

/// Recall sentences of two to four facts.
fn sentences() -> Vec<String> {
    let names = ["Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"];
    let things = [
        "plums", "figs", "pears", "apples", "grapes", "dates", "limes",
    ];
    let sentence = |i: usize| {
        let fact = |k: usize| format!("{} likes {}.", names[(i + k) % 8], things[(3 * i + k) % 7]);
        let facts: Vec<_> = (0..2 + i % 3).map(fact).collect();
        format!("{} {} likes", facts.join(" "), names[(i + i % 2) % 8])
    };
    (0..40).map(sentence).collect()
}

fn sweep<E: Element>(model: &Model) -> Summary {
    let tokenizer = model.checkpoint().tokenizer().unwrap();
    let mut steps = Vec::new();
    for form in [ApplyMode::Overlay, ApplyMode::Materialise] {
        let verification = Verification {
            model,
            tokens: 3,
            method: Method {
                form,
                ..Method::new(Solver::Theorem1)
            },
            keep: Keep::Nothing,
            positions: Positions::Absolute,
        };
        for (i, sentence) in sentences().iter().enumerate() {
            let ids = tokenizer.encode(sentence).unwrap();
            let on_step = |step| {
                steps.push(step);
                Ok(())
            };
            verification.prompt::<E>(i, &ids, on_step).unwrap();
        }
    }
    let summary = Summary::new(&steps);
    println!("{}: {summary:?}", E::DTYPE);
    summary
}

/// The bounds hold on many prompts, and are not idle: at least a third of them is used.
#[test]
fn the_protocol_holds_on_many_prompts() {
    let model = open("tiny");
    let f32_summary = sweep::<f32>(&model);
    for summary in [&sweep::<f64>(&model), &f32_summary, &sweep::<bf16>(&model)] {
        assert_eq!(summary.tokens, 240);
        assert!(summary.holds && summary.controls_fail);
    }
    assert!(f32_summary.worst_share_of_bound > 0.33);
}

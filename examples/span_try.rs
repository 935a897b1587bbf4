#![allow(missing_docs, non_snake_case)]
use context_patch::model::generate::greedy;
use context_patch::patch::*;
use context_patch::tensor::*;
use context_patch::verify::*;
use context_patch::*;
use half::bf16;
fn run<E: Element>(model: &Model, prompt: usize, n: usize, positions: Positions, method: &Method) {
    let ids = model
        .checkpoint()
        .tokenizer()
        .unwrap()
        .encode(PROMPTS[prompt])
        .unwrap();
    let mut s = Session::<E>::new(model);
    let mut tokens = ids.clone();
    let mut next = greedy(s.forward(&ids, 1).unwrap().row(0));
    for _ in 0..n {
        tokens.push(next);
        next = greedy(s.forward(&[next], 1).unwrap().row(0));
    }
    let keep = if positions == Positions::Natural {
        vec![0]
    } else {
        vec![]
    };
    let split = Split::new(tokens.clone(), keep, n + 1, positions).unwrap();
    let t0 = std::time::Instant::now();
    let (patch, report) = match span::solve::<E>(model, &split, method, |_| {}) {
        Ok(x) => x,
        Err(e) => {
            println!("{e}");
            return;
        }
    };
    let secs = t0.elapsed().as_secs_f64();
    let overlay = Overlay::<E>::new(model, &patch, method.form);
    let want = Session::<E>::new(model).forward(&tokens, n + 1).unwrap();
    let got = span_reduced::<E>(model, &split, Some(&overlay)).unwrap();
    let mut worst = 0.0f64;
    let mut top = 0;
    let mut first = None;
    for i in 0..=n {
        let c = Comparison::new(got.row(i), want.row(i));
        worst = worst.max(c.linf);
        top += usize::from(c.same_top);
        if !c.same_top && first.is_none() {
            first = Some(i)
        }
    }
    let L: Vec<_> = report.layers.iter().filter(|l| l.rank > 0).collect();
    println!(
        "{} p{} N{} {} {} layers {} gain {}: Linf {:.2e} top {}/{} first off {:?} passes {} errors {:?}.. best {:.2e} dW {:.3} cond {:.0} ulps {:.1} {:.1}s",
        E::DTYPE,
        prompt + 1,
        n,
        positions,
        method.form,
        method.layers,
        method.gain,
        worst,
        top,
        n + 1,
        first,
        report.passes.len(),
        report
            .passes
            .iter()
            .take(12)
            .map(|e| format!("{e:.1e}"))
            .collect::<Vec<_>>()
            .join(" "),
        report.passes.iter().cloned().fold(1.0, f64::min),
        L.iter().map(|l| l.delta_down).fold(0.0, f64::max),
        L.iter().map(|l| l.condition).fold(0.0, f64::max),
        L.last().unwrap().hidden_ulps,
        secs
    );
}
fn main() {
    let model = Model::open("models/gemma-3-270m").unwrap();
    let a: Vec<String> = std::env::args().collect();
    let dts = &a[1];
    let n: usize = a[2].parse().unwrap();
    let pos: Positions = a[3].parse().unwrap();
    let layers: Vec<usize> = a[4].split(',').map(|x| x.parse().unwrap()).collect();
    let gains: Vec<f64> = a[5].split(',').map(|x| x.parse().unwrap()).collect();
    let form: Form = a[6].parse().unwrap();
    let prompts: Vec<usize> = a[7]
        .split(',')
        .map(|x| x.parse::<usize>().unwrap() - 1)
        .collect();
    for &p in &prompts {
        for &l in &layers {
            for &g in &gains {
                for dt in dts.split(',') {
                    let m = Method {
                        layers: l,
                        gain: g,
                        form,
                        ..Method::new(Solver::Span)
                    };
                    match dt {
                        "f64" => run::<f64>(&model, p, n, pos, &m),
                        "f32" => run::<f32>(&model, p, n, pos, &m),
                        _ => run::<bf16>(&model, p, n, pos, &m),
                    }
                }
            }
        }
    }
}

//! x
use context_patch::kernels::{Level, matmul, softmax};
use context_patch::tensor::{Matrix, Storage, Tensor};
use std::time::Instant;
fn main() {
    let threads: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let rows: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        for n in [640usize, 2048] {
            let rows = rows / n;
            let w: Vec<f64> = (0..rows * n)
                .map(|i| ((i * 7919) % 1000) as f64 * 0.001 - 0.5)
                .collect();
            let t = Tensor::from_f64(Storage::Bf16, vec![rows, n], &w).unwrap();
            for tokens in [1usize, 2, 3, 4, 5, 6, 8] {
                let x = Matrix::from_vec(
                    n,
                    (0..tokens * n)
                        .map(|i| ((i * 31) % 100) as f32 * 0.01)
                        .collect(),
                );
                let mut best = f64::MAX;
                let mut all = vec![];
                for _ in 0..30 {
                    let s = Instant::now();
                    let y = matmul(Level::best(), &x, &t);
                    drop(y);
                    let e = s.elapsed().as_secs_f64();
                    best = best.min(e);
                    all.push(e);
                }
                all.sort_by(f64::total_cmp);
                let e = all[15];
                println!(
                    "{rows}x{n} T={tokens}: {:.1} GB/s, {:.0} GFLOP/s",
                    (rows * n * 2) as f64 / e / 1e9,
                    (2 * rows * n * tokens) as f64 / e / 1e9
                );
            }
        }
        let x: Vec<f64> = (0..262144)
            .map(|i| ((i * 7919) % 1000) as f64 * -0.03)
            .collect();
        for level in Level::available() {
            let mut best = f64::MAX;
            for _ in 0..20 {
                let mut y = x.clone();
                let t = Instant::now();
                softmax(level, &mut y);
                best = best.min(t.elapsed().as_secs_f64());
            }
            println!(
                "{level}: {:.3} ms, {:.2} ns",
                best * 1e3,
                best * 1e9 / 262144.0
            );
        }
    });
}

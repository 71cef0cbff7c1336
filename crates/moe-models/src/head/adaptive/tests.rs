//! The adaptive softmax against one table of all its probabilities in plain `f64`.

use super::*;
use moe_routers::ParamStore;
use moe_routers::tolerance::tolerance;
use tch::Device;

const VOCAB: i64 = 23;
const WIDTH: i64 = 8;

fn config() -> SoftmaxConfig {
    SoftmaxConfig { adaptive: vec![5, 9], div_value: 2 }
}

fn build(kind: Kind) -> (ParamStore, Adaptive) {
    let store = ParamStore::new(4, Device::Cpu, kind);
    let root = store.root().child("head");
    let table = ClusteredTable::new(&root, &config(), (VOCAB, WIDTH), 0.7);
    let layer = Adaptive::new(&root, table, WIDTH, 0.7);
    (store, layer)
}

fn input(kind: Kind, n: i64) -> Tensor {
    let store = ParamStore::new(8, Device::Cpu, kind);
    store.root().matrix("x", &[n, WIDTH], 1.0)
}

type Rows = Vec<Vec<f64>>;

fn rows(tensor: &Tensor) -> Rows {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(score: &[f64]) -> Vec<f64> {
    let total: f64 = score.iter().map(|s| s.exp()).sum();
    score.iter().map(|s| s.exp() / total).collect()
}

/// Every probability of one token, in the order of the equations.
fn probabilities(layer: &Adaptive, x_d: &[f64]) -> Vec<f64> {
    let scores = |weight: &Tensor, x: &[f64]| -> Vec<f64> {
        rows(weight).iter().map(|row| dot(row, x)).collect()
    };
    let mut head = scores(&layer.table.clusters[0].weight_ri, x_d);
    head.extend(scores(&layer.score_kd, x_d));
    let head = softmax(&head);
    let words = config().adaptive[0] as usize;
    let mut all = head[..words].to_vec();
    for (index, cluster) in layer.table.clusters[1..].iter().enumerate() {
        let low = scores(cluster.projection_id.as_ref().unwrap(), x_d);
        let inside = softmax(&scores(&cluster.weight_ri, &low));
        all.extend(inside.iter().map(|p| p * head[words + index]));
    }
    all
}

#[test]
fn probabilities_are_those_of_the_equations_and_sum_to_one() {
    let (_, layer) = build(Kind::Double);
    let x_nd = input(Kind::Double, 6);
    let found = rows(&layer.log_prob(&x_nd, Precision::Fp32));
    let limit = tolerance(Kind::Double).value;
    for (x_d, found_v) in rows(&x_nd).iter().zip(found) {
        let want_v = probabilities(&layer, x_d);
        assert_eq!(want_v.len(), VOCAB as usize);
        assert!((want_v.iter().sum::<f64>() - 1.0).abs() < limit);
        for (found, want) in found_v.iter().zip(&want_v) {
            assert!((found - want.ln()).abs() < limit, "{found} and {}", want.ln());
        }
    }
}

/// Loss and gradients of everything against `-mean ln p[y]` with `p` written out as a full table.
#[test]
fn loss_and_gradients_are_those_of_the_full_table() {
    let (store, layer) = build(Kind::Double);
    // Every id once, so that every boundary is on either side of a target.
    let y_n = Tensor::arange(VOCAB, (Kind::Int64, Device::Cpu));
    let x_nd = input(Kind::Double, VOCAB);
    let run = |loss: Tensor| {
        (&loss * 3.0).backward();
        let mut grads = vec![x_nd.grad().copy()];
        grads.extend(store.entries().iter().map(|p| p.tensor.grad().copy()));
        store.zero_grad();
        x_nd.shallow_clone().zero_grad();
        (loss.double_value(&[]), grads)
    };
    let (mine, my_grads) = run(layer.loss(&x_nd, &y_n, Precision::Fp32));
    let log_nv = layer.log_prob(&x_nd, Precision::Fp32);
    let full = -log_nv.gather(1, &y_n.unsqueeze(1), false).mean(Kind::Double);
    let (theirs, their_grads) = run(full);
    let by_hand = rows(&x_nd);
    let by_hand = by_hand.iter().enumerate().map(|(n, x_d)| probabilities(&layer, x_d)[n].ln());
    let by_hand = -by_hand.sum::<f64>() / VOCAB as f64;
    let limits = tolerance(Kind::Double);
    assert!((mine - theirs).abs() < limits.value && (mine - by_hand).abs() < limits.value);
    assert_eq!(my_grads.len(), 7, "x, three tables, two projections, the tails' scores");
    for (mine, theirs) in my_grads.iter().zip(&their_grads) {
        let off = (mine - theirs).abs().max().double_value(&[]);
        assert!(off < limits.gradient, "{off}");
        assert!(mine.abs().max().double_value(&[]) > 0.0);
    }
}

/// The gradient by `x` against differences of the plain table, which shares no code with it.
#[test]
fn the_gradient_is_that_of_differences() {
    let (_, layer) = build(Kind::Double);
    let (x_nd, y) = (input(Kind::Double, 1), 11);
    layer.loss(&x_nd, &Tensor::from_slice(&[y]), Precision::Fp32).backward();
    let (x_d, grad_d) = (rows(&x_nd).remove(0), rows(&x_nd.grad()).remove(0));
    let step = 1e-5;
    for axis in 0..WIDTH as usize {
        let at = |by: f64| {
            let mut x_d = x_d.clone();
            x_d[axis] += by;
            -probabilities(&layer, &x_d)[y as usize].ln()
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!((slope - grad_d[axis]).abs() < tolerance(Kind::Float).gradient, "axis {axis}");
    }
}

#[test]
fn a_batch_without_a_rare_word_computes_the_head_alone() {
    let (_, layer) = build(Kind::Float);
    let x_nd = input(Kind::Float, 3);
    let y_n = Tensor::from_slice(&[0i64, 4, 2]);
    let loss = layer.loss(&x_nd, &y_n, Precision::Fp32).double_value(&[]);
    let log_nv = layer.log_prob(&x_nd, Precision::Fp32);
    let want = -log_nv.gather(1, &y_n.unsqueeze(1), false).mean(Kind::Float).double_value(&[]);
    assert!((loss - want).abs() < tolerance(Kind::Float).value);
    // (5 + 2) * 8 in the head; 8 * 4 + 4 * 4 in the first tail, 8 * 2 + 14 * 2 in the second.
    let products = |y: &[i64]| layer.products(&Tensor::from_slice(y)).double_value(&[]);
    assert_eq!(products(&[0, 4, 2]), 56.0);
    assert_eq!(products(&[5, 4]), 56.0 + 48.0 / 2.0);
    assert_eq!(products(&[22]), 56.0 + 44.0);
}

#[test]
fn the_embedding_is_row_times_projection() {
    let store = ParamStore::new(4, Device::Cpu, Kind::Double);
    let table = ClusteredTable::new(&store.root(), &config(), (VOCAB, WIDTH), 0.7);
    let id = Tensor::arange(VOCAB, (Kind::Int64, Device::Cpu));
    let found = table.embed(&id);
    let whole = table.clusters.iter().map(|cluster| match &cluster.projection_id {
        Some(projection_id) => cluster.weight_ri.matmul(projection_id),
        None => cluster.weight_ri.shallow_clone(),
    });
    let want = Tensor::cat(&whole.collect::<Vec<_>>(), 0);
    let off = (found - want).abs().max().double_value(&[]);
    assert!(off < tolerance(Kind::Double).value, "{off}");
}

#[test]
fn clusters_that_are_none_are_refused() {
    let refused = |adaptive: &[i64], div_value| {
        let config = SoftmaxConfig { adaptive: adaptive.to_vec(), div_value };
        config.check(64).unwrap_err().to_string()
    };
    assert_eq!(refused(&[], 4), "softmax: adaptive needs the first id of at least one tail");
    assert_eq!(refused(&[0, 3], 4), "softmax: adaptive = [0, 3] must rise from at least 1");
    assert_eq!(refused(&[3, 3], 4), "softmax: adaptive = [3, 3] must rise from at least 1");
    assert_eq!(refused(&[3], 0), "softmax: div_value = 0 must be at least 1");
    assert_eq!(refused(&[1, 2, 3, 4], 4), "softmax: width 64 / 4^4 is below 1");
    assert_eq!(refused(&[1], i64::MAX), "softmax: width 64 / 9223372036854775807^1 is below 1");
    let error = config().check_vocab(9).unwrap_err().to_string();
    assert_eq!(error, "softmax: adaptive cuts at 9, and the vocabulary has 9 ids");
    assert!(config().check(8).is_ok() && config().check_vocab(10).is_ok());
}

//! Arguments that do not fit are named, and nothing panics.

use moe_kernels::{
    Activation, BackwardInput, BackwardOutput, Dtype, Isa, KernelError, Packed, Plan, Saved, Shape,
    WeightGrads, Weights, Workspace, backward, decode, forward,
};

const SHAPE: Shape =
    Shape { experts: 2, width: 3, hidden: 4, activation: Activation::Swiglu, bias: false };
const W: [f32; 24] = [0.5; 24];
const WEIGHTS: Weights<'_> =
    Weights { w1_ehd: &W, gate_ehd: Some(&W), w2_edh: &W, b1_eh: None, b2_ed: None };

fn packed() -> Packed {
    let mut packed = Packed::new(SHAPE, Dtype::F32, Isa::detect()).unwrap();
    packed.repack(&WEIGHTS).unwrap();
    packed
}

fn plan() -> Plan<'static> {
    Plan::new(2, &[0, 2, 3], &[0, 1, 1], &[1.0; 3]).unwrap()
}

#[test]
fn plans() {
    let refused = |offset_e: &[usize], token_n: &[u32], weights: usize| {
        Plan::new(2, offset_e, token_n, &[1.0; 9][..weights]).unwrap_err()
    };
    assert_eq!(refused(&[], &[], 0), KernelError::Empty { axis: "experts" });
    assert_eq!(refused(&[0], &[], 0), KernelError::Empty { axis: "experts" });
    assert_eq!(refused(&[1, 1], &[0], 1), KernelError::OffsetStart { start: 1 });
    let falls = KernelError::OffsetFalls { expert: 1, start: 2, end: 1 };
    assert_eq!(refused(&[0, 2, 1, 2], &[0, 1], 2), falls);
    let length = |what, expected, got| KernelError::Length { what, expected, got };
    assert_eq!(refused(&[0, 3], &[0, 1], 2), length("token_n", 3, 2));
    assert_eq!(refused(&[0, 2], &[0, 1], 1), length("weight_n", 2, 1));
    let token = KernelError::Token { row: 1, token: 2, tokens: 2 };
    assert_eq!(refused(&[0, 2], &[0, 2], 2), token);
    assert_eq!(token.to_string(), "row 1 reads token 2, out of range: there are 2");
}

#[test]
fn shapes() {
    let refused = |shape| Packed::new(shape, Dtype::F32, Isa::detect()).unwrap_err();
    for (shape, axis) in [
        (Shape { experts: 0, ..SHAPE }, "experts"),
        (Shape { width: 0, ..SHAPE }, "columns"),
        (Shape { hidden: 0, ..SHAPE }, "hidden"),
    ] {
        assert_eq!(refused(shape), KernelError::Empty { axis });
    }
    for length in [usize::MAX, usize::MAX - 100, 1 << 31] {
        let shape = Shape { experts: length, width: length, ..SHAPE };
        assert!(matches!(refused(shape), KernelError::Overflow { .. }), "{length}");
    }
    // It can be addressed, and is more than any machine has.
    let shape = Shape { experts: 1 << 30, width: 1 << 12, hidden: 1 << 10, ..SHAPE };
    assert!(matches!(refused(shape), KernelError::Memory { .. }));
}

#[test]
fn weights() {
    let mut packed = Packed::new(SHAPE, Dtype::F32, Isa::detect()).unwrap();
    let length = |what| KernelError::Length { what, expected: 24, got: 23 };
    let short = Weights { w1_ehd: &W[1..], ..WEIGHTS };
    assert_eq!(packed.repack(&short), Err(length("w1_ehd")));
    let short = Weights { gate_ehd: Some(&W[1..]), ..WEIGHTS };
    assert_eq!(packed.repack(&short), Err(length("gate_ehd")));
    assert_eq!(packed.repack(&Weights { w2_edh: &W[1..], ..WEIGHTS }), Err(length("w2_edh")));
    let presence = |what, given| Err(KernelError::Presence { what, given });
    let without = Weights { gate_ehd: None, ..WEIGHTS };
    assert_eq!(packed.repack(&without), presence("gate_ehd", false));
    let with = Weights { b2_ed: Some(&W[..6]), ..WEIGHTS };
    assert_eq!(packed.repack(&with), presence("b2_ed", true));
    let (x_td, mut y_td) = ([0.0; 6], [0.0; 6]);
    let run = forward(&packed, &plan(), &x_td, &mut y_td, None, &mut Workspace::new());
    assert_eq!(run, Err(KernelError::NotPacked));
}

#[test]
fn inputs_and_outputs() {
    let (packed, mut workspace) = (packed(), Workspace::new());
    let mut run = |plan: &Plan<'_>, x: usize, y: usize| {
        forward(&packed, plan, &[0.0; 9][..x], &mut [0.0; 9][..y], None, &mut workspace)
    };
    let length = |what, expected, got| Err(KernelError::Length { what, expected, got });
    assert_eq!(run(&plan(), 6, 6), Ok(()));
    assert_eq!(run(&plan(), 5, 6), length("x_td", 6, 5));
    assert_eq!(run(&plan(), 6, 9), length("y_td", 6, 9));
    let three = Plan::new(2, &[0, 1, 1, 1], &[0], &[1.0]).unwrap();
    assert_eq!(run(&three, 6, 6), length("offset_e", 3, 4));
    let many = Plan::new(usize::MAX, &[0, 0, 0], &[], &[]).unwrap();
    assert!(matches!(run(&many, 6, 6), Err(KernelError::Overflow { .. })));
    let none = Plan::new(0, &[0, 0, 0], &[], &[]).unwrap();
    assert_eq!(run(&none, 0, 0), Ok(()));
}

/// A backward pass with these lengths and this saved hidden layer.
fn back(lengths: [usize; 4], saved: Option<&mut Saved>) -> Result<(), KernelError> {
    let (mut dx, mut dweight) = ([0.0; 9], [0.0; 9]);
    let mut grads = [W; 3];
    let [w1_ehd, gate_ehd, w2_edh] = &mut grads;
    let mut output = BackwardOutput {
        dx_td: &mut dx[..lengths[1]],
        dweight_n: &mut dweight[..lengths[2]],
        weights: WeightGrads {
            w1_ehd: &mut w1_ehd[..lengths[3]],
            gate_ehd: Some(gate_ehd),
            w2_edh,
            b1_eh: None,
            b2_ed: None,
        },
    };
    let (plan, dy) = (plan(), [0.0; 9]);
    let input =
        BackwardInput { weights: &WEIGHTS, plan: &plan, x_td: &[0.0; 6], dy_td: &dy[..lengths[0]] };
    backward(&packed(), input, &mut output, saved, &mut Workspace::new())
}

#[test]
fn gradients() {
    let length = |what, expected, got| Err(KernelError::Length { what, expected, got });
    assert_eq!(back([6, 6, 3, 24], None), Ok(()));
    assert_eq!(back([7, 6, 3, 24], None), length("dy_td", 6, 7));
    assert_eq!(back([6, 7, 3, 24], None), length("dx_td", 6, 7));
    assert_eq!(back([6, 6, 4, 24], None), length("dweight_n", 3, 4));
    assert_eq!(back([6, 6, 3, 23], None), length("w1_ehd", 24, 23));
}

#[test]
fn a_saved_hidden_layer_serves_once_and_its_own_shape_only() {
    let mut saved = Saved::new();
    let missing = Err(KernelError::Saved { expected: 3, got: 0 });
    assert_eq!(back([6, 6, 3, 24], Some(&mut saved)), missing);
    let (x_td, mut y_td) = ([0.0; 6], [0.0; 6]);
    let mut workspace = Workspace::new();
    forward(&packed(), &plan(), &x_td, &mut y_td, Some(&mut saved), &mut workspace).unwrap();
    assert_eq!(saved.rows(), Some(3));
    assert_eq!(back([6, 6, 3, 24], Some(&mut saved)), Ok(()));
    assert_eq!(back([6, 6, 3, 24], Some(&mut saved)), missing);
    // As many rows, of another bank.
    let shape = Shape { hidden: 400, ..SHAPE };
    let w = [0.5; 2 * 400 * 3];
    let weights = Weights { w1_ehd: &w, gate_ehd: Some(&w), w2_edh: &w, ..WEIGHTS };
    let mut other = Packed::new(shape, Dtype::F32, Isa::detect()).unwrap();
    other.repack(&weights).unwrap();
    forward(&other, &plan(), &x_td, &mut y_td, Some(&mut saved), &mut workspace).unwrap();
    let error = back([6, 6, 3, 24], Some(&mut saved));
    assert_eq!(error, Err(KernelError::Saved { expected: 3, got: 0 }));
}

#[test]
fn decoding() {
    let (packed, mut workspace) = (packed(), Workspace::new());
    let mut run = |tokens: usize, expert_tk: &[u32], weights: usize, y: usize| {
        let (x_td, weight_tk, mut y_td) = (vec![0.0; tokens * 3], vec![0.0; weights], vec![0.0; y]);
        decode(&packed, &x_td, expert_tk, &weight_tk, &mut y_td, &mut workspace)
    };
    let length = |what, expected, got| Err(KernelError::Length { what, expected, got });
    assert_eq!(run(2, &[0, 1], 2, 6), Ok(()));
    assert_eq!(run(0, &[], 0, 0), Ok(()));
    assert_eq!(run(2, &[], 0, 6), Ok(()));
    assert_eq!(run(17, &[0; 17], 17, 51), Err(KernelError::Tokens { got: 17, most: 16 }));
    assert_eq!(run(2, &[0; 3], 3, 6), length("expert_tk", 2, 3));
    assert_eq!(run(0, &[0], 1, 0), length("expert_tk", 0, 1));
    assert_eq!(run(2, &[0, 1], 3, 6), length("weight_tk", 2, 3));
    assert_eq!(run(2, &[0, 1], 2, 5), length("y_td", 6, 5));
    let expert = KernelError::Expert { choice: 1, expert: 2, experts: 2 };
    assert_eq!(run(2, &[0, 2], 2, 6), Err(expert));
}

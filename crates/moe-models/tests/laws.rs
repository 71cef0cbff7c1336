//! Laws of experts, layers and the language model.

use moe_models::{
    Activation, DecoderLm, ExpertExec, ExpertShape, Experts, LmConfig, Norm, RoutingGroup, Rules,
};
use moe_routers::TensorPlan;
use moe_routers::plan::SparseRows;
use moe_routers::tolerance::tolerance;
use moe_routers::{
    ParamStore, Phase, Role, RouteCx, SeededNoise, Settings, router_config, routers,
};
use tch::{Device, Kind, Tensor};

const ACTIVATIONS: [Activation; 4] =
    [Activation::Relu, Activation::Gelu, Activation::Swiglu, Activation::Geglu];

fn shape(activation: Activation, bias: bool) -> ExpertShape {
    ExpertShape { experts: 5, width: 16, hidden: 32, activation, bias, output_scale: 1.0 }
}

fn values(name: &str, size: &[i64]) -> Tensor {
    let store = ParamStore::new(3, Device::Cpu, Kind::Float);
    store.root().matrix(name, size, 1.0).detach()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// Forty rows of 24 tokens; expert 2 gets nothing, the edge case.
fn plan() -> TensorPlan {
    TensorPlan::Sparse(SparseRows {
        token_n: (Tensor::arange(40, (Kind::Int64, Device::Cpu)) * 7).remainder(24),
        weight_n: values("weights", &[40]).set_requires_grad(true),
        load_e: Tensor::from_slice(&[7i64, 20, 0, 1, 12]),
        groups: 2,
        tokens: 12,
    })
}

/// Output and all gradients of one way to run the experts.
fn run(exec: ExpertExec, shape: ExpertShape) -> Vec<Tensor> {
    let store = ParamStore::new(1, Device::Cpu, Kind::Float);
    let experts = Experts::new(&store.root(), shape, exec);
    let (x_gtd, plan) = (values("x", &[2, 12, 16]).set_requires_grad(true), plan());
    let y_gtd = experts.execute(&x_gtd, &plan);
    y_gtd.sin().square().sum(Kind::Float).backward();
    let TensorPlan::Sparse(rows) = plan else { unreachable!("made above") };
    let mut found = vec![y_gtd.detach(), x_gtd.grad(), rows.weight_n.grad()];
    found.extend(store.entries().iter().map(|p| p.tensor.grad()));
    found
}

/// Largest difference over the largest value.
fn worst_share(a: &Tensor, b: &Tensor) -> f64 {
    worst(a, b) / a.abs().max().double_value(&[])
}

#[test]
fn every_way_of_running_experts_gives_the_same_numbers() {
    for (activation, bias) in ACTIVATIONS.into_iter().flat_map(|a| [(a, true), (a, false)]) {
        let shape = shape(activation, bias);
        let wanted = run(ExpertExec::Loop, shape);
        for exec in ExpertExec::ALL {
            let kind = if exec == ExpertExec::FusedBf16 { Kind::BFloat16 } else { Kind::Float };
            for (i, (a, b)) in wanted.iter().zip(run(exec, shape)).enumerate() {
                let (off, limit) = (worst_share(a, &b), tolerance(kind).gradient);
                assert!(off < limit, "{exec:?} {activation:?} bias {bias}, tensor {i}: {off}");
            }
        }
    }
}

/// `E(x) = relu(x W1^T + b1) W2^T + b2` with `x = (1, 2)`, `W1 = [[1, 1], [-1, 0]]`, `b1 = (0, 5)`,
/// `W2 = [[1, 10], [0, 1]]`, `b2 = (0, 100)`: hidden `relu(3, -1 + 5) = (3, 4)`, out `(43, 104)`.
#[test]
fn two_matrices_by_hand() {
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let shape = ExpertShape { experts: 1, width: 2, hidden: 2, ..shape(Activation::Relu, true) };
    let experts = Experts::new(&store.root(), shape, ExpertExec::Loop);
    for param in store.entries().iter() {
        let value: &[f32] = match param.name.as_str() {
            "w1" => &[1.0, 1.0, -1.0, 0.0],
            "b1" => &[0.0, 5.0],
            "w2" => &[1.0, 10.0, 0.0, 1.0],
            _ => &[0.0, 100.0],
        };
        let value = Tensor::from_slice(value).view_as(&param.tensor);
        tch::no_grad(|| param.tensor.shallow_clone().copy_(&value));
    }
    let y = experts
        .forward(&Tensor::from_slice(&[1f32, 2.0]).view([1, 2]), &Tensor::from_slice(&[1i64]));
    assert_eq!(Vec::<f32>::try_from(y.view([-1])).unwrap(), [43.0, 104.0]);
}

#[test]
fn fused_experts_see_new_weights_and_add_to_gradients_that_are_there() {
    let store = ParamStore::new(1, Device::Cpu, Kind::Float);
    let (shape, rows) = (shape(Activation::Swiglu, true), plan());
    let by_loop = Experts::new(&store.root(), shape, ExpertExec::Loop);
    let fused = by_loop.with_exec(ExpertExec::Fused);
    let x_gtd = values("x", &[2, 12, 16]);
    let step = |experts: &Experts| {
        experts.execute(&x_gtd, &rows).square().sum(Kind::Float).backward();
    };
    step(&by_loop);
    step(&fused);
    let twice: Vec<Tensor> = store.entries().iter().map(|p| p.tensor.grad().copy()).collect();
    store.zero_grad();
    step(&by_loop);
    for (param, twice) in store.entries().iter().zip(twice) {
        let off = worst_share(&twice, &(param.tensor.grad() * 2.0));
        assert!(off < tolerance(Kind::Float).gradient, "{}: {off}", param.name);
    }
    for param in store.entries().iter() {
        let _ = tch::no_grad(|| param.tensor.shallow_clone().g_mul_scalar_(0.5));
    }
    let [a, b] = [&by_loop, &fused].map(|e| tch::no_grad(|| e.execute(&x_gtd, &rows)));
    assert!(worst_share(&a, &b) < tolerance(Kind::Float).value);
}

/// One to three tokens with two experts each: without a graph they take the path of decoding.
#[test]
fn a_few_tokens_give_the_same_numbers_without_a_graph() {
    for tokens in 1..=3 {
        let store = ParamStore::new(1, Device::Cpu, Kind::Float);
        let by_loop =
            Experts::new(&store.root(), shape(Activation::Swiglu, true), ExpertExec::Loop);
        let rows = TensorPlan::Sparse(SparseRows {
            token_n: Tensor::arange(tokens, (Kind::Int64, Device::Cpu)).repeat([2]),
            weight_n: values("few weights", &[2 * tokens]),
            load_e: Tensor::from_slice(&[0, tokens, 0, 0, tokens]),
            groups: 1,
            tokens,
        });
        let x_gtd = values("few", &[1, tokens, 16]);
        let run = |experts: &Experts| tch::no_grad(|| experts.execute(&x_gtd, &rows));
        let off = worst_share(&run(&by_loop), &run(&by_loop.with_exec(ExpertExec::Fused)));
        assert!(off < tolerance(Kind::Float).value, "{tokens} tokens: {off}");
    }
}

fn tiny(norm: Norm, group: RoutingGroup) -> LmConfig {
    LmConfig {
        width: 16,
        layers: 2,
        heads: 2,
        context: 8,
        experts: 4,
        active_hidden: 32,
        norm,
        routing_group: group,
        ..LmConfig::default()
    }
}

fn model(router: &str, config: &LmConfig) -> (ParamStore, DecoderLm) {
    let store = ParamStore::new(2, Device::Cpu, Kind::Float);
    let router = router_config(router, &Settings::new()).unwrap();
    let model = DecoderLm::new(&store, config, &Rules::new(router.as_ref()), 11).unwrap();
    (store, model)
}

fn tokens() -> Tensor {
    (values("tokens", &[3, 8]) * 4.0).abs().floor().remainder(11.0).to_kind(Kind::Int64)
}

#[test]
fn every_parameter_of_every_model_gets_a_gradient() {
    for paper in routers() {
        for norm in [Norm::Pre, Norm::Post] {
            let (store, model) = model(paper.id, &tiny(norm, RoutingGroup::Batch));
            let noise = SeededNoise::train(0, 0);
            let cx = RouteCx::new(Phase::Train { step: 0 }, &noise);
            let (loss, traces) = model.loss(&tokens(), &tokens(), &cx).unwrap();
            let aux = traces.iter().flat_map(|t| &t.routing.aux);
            aux.fold(loss, |sum, a| sum + &a.value).backward();
            for param in store.entries().iter().filter(|p| p.role != Role::Buffer) {
                let grad = param.tensor.grad();
                let reached = grad.defined() && grad.abs().max().double_value(&[]) > 0.0;
                assert!(reached, "{} {norm:?}: no gradient reaches {}", paper.id, param.name);
            }
        }
    }
}

#[test]
fn causal_routers_make_causal_models() {
    for paper in routers() {
        let config = tiny(Norm::Pre, RoutingGroup::Sequence);
        let causal = router_config(paper.id, &Settings::new()).unwrap().causal();
        let (_, model) = model(paper.id, &config);
        let noise = SeededNoise::eval(0, 0);
        let logits =
            |x: &Tensor| model.forward(x, &RouteCx::new(Phase::Eval, &noise)).unwrap().logits_btv;
        let (x, half) = (tokens(), 4);
        let late = x.narrow(1, half, half).remainder(5) + 5;
        let other = Tensor::cat(&[x.narrow(1, 0, half), late], 1);
        let same = worst(&logits(&x).narrow(1, 0, half), &logits(&other).narrow(1, 0, half))
            < tolerance(Kind::Float).value;
        assert!(same || !causal, "{}: the model sees the future", paper.id);
    }
}

#[test]
fn active_parameters_by_hand() {
    let config = tiny(Norm::Pre, RoutingGroup::Batch);
    // One sparse layer of four experts of width 32 / 2 = 16: 16*16 + 16 + 16*16 + 16 = 544 values
    // each, of which a token uses two.
    let (store, smoe) = model("smoe", &config);
    assert_eq!(store.trainable_count() - smoe.active_params(&store), 2 * 544);
    let (store, dense) = model("dense", &config);
    assert_eq!(store.trainable_count(), dense.active_params(&store));
}

#[test]
fn sizes_that_do_not_go_together_name_their_key() {
    let refused = |change: fn(&mut LmConfig)| {
        let mut config = LmConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert_eq!(refused(|c| c.heads = 3), "heads: 3 does not divide width 128");
    assert_eq!(refused(|c| c.experts = 0), "experts: 0 is outside 1..=16777216");
    assert_eq!(refused(|c| c.moe_every = 9), "moe_every: 9 leaves no sparse layer among 4");
}

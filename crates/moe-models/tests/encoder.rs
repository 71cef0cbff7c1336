//! Laws of the masked language model.
//!
//! Axis letters: `b` batch, `t` tokens, `n` targets, `v` vocabulary.

use moe_models::encoder::Rows;
use moe_models::{LmConfig, MaskedLm, RoutingGroup, Rules};
use moe_routers::residual::LN_EPS;
use moe_routers::tolerance::tolerance;
use moe_routers::{
    ParamStore, Phase, Role, RouteCx, RouterConfig, SeededNoise, Settings, router_config, routers,
};
use tch::{Device, Kind, Tensor};

const VOCAB: i64 = 11;
/// As many tokens as BASE can share among four experts.
const SHAPE: [i64; 2] = [4, 6];

fn config() -> LmConfig {
    LmConfig {
        width: 8,
        layers: 2,
        heads: 2,
        context: 6,
        experts: 4,
        active_hidden: 16,
        ..LmConfig::default()
    }
}

fn plain(name: &str) -> Box<dyn RouterConfig> {
    router_config(name, &Settings::new()).unwrap()
}

fn build(kind: Kind, config: &LmConfig, router: &str) -> (ParamStore, MaskedLm) {
    let store = ParamStore::new(3, Device::Cpu, kind);
    let router = plain(router);
    let model = MaskedLm::new(&store, config, &Rules::new(router.as_ref()), VOCAB).unwrap();
    (store, model)
}

/// Four rows of six ids, and positions that begin again in the middle.
fn rows() -> (Tensor, Tensor) {
    let x: Vec<i64> = (0..24).map(|i| i * 7 % VOCAB).collect();
    let position = [0, 1, 2, 0, 1, 2].repeat(4);
    (Tensor::from_slice(&x).view(SHAPE), Tensor::from_slice(&position).view(SHAPE))
}

fn eval<T>(run: impl FnOnce(&RouteCx<'_>) -> T) -> T {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    run(&RouteCx::new(Phase::Eval, &noise))
}

/// Scores of all tokens, `[b, t, v]`.
fn scores(model: &MaskedLm, x_bt: &Tensor, position_bt: &Tensor) -> Tensor {
    let place_n = Tensor::arange(x_bt.numel() as i64, (Kind::Int64, Device::Cpu));
    let rows = Rows { x_bt, position_bt };
    let (logits_nv, _) = eval(|cx| model.forward(rows, &place_n, cx)).unwrap();
    let (b, t) = x_bt.size2().unwrap();
    logits_nv.view([b, t, VOCAB])
}

#[test]
fn every_parameter_of_every_router_receives_a_gradient() {
    let noise = SeededNoise::train(0, 0);
    let cx = RouteCx::new(Phase::Train { step: 0 }, &noise);
    let (x_bt, position_bt) = rows();
    let (place_n, y_n) =
        (Tensor::from_slice(&[1i64, 4, 9, 16]), Tensor::from_slice(&[2i64, 0, 1, 5]));
    let mut checked = 0;
    for paper in routers().filter(|paper| paper.id != "hash" && paper.id != "stable-moe") {
        let (store, model) = build(Kind::Float, &config(), paper.id);
        let rows = Rows { x_bt: &x_bt, position_bt: &position_bt };
        let (loss, traces) = model.loss(rows, (&place_n, &y_n), &cx).unwrap();
        let aux = traces.iter().flat_map(|trace| &trace.routing.aux);
        aux.fold(loss, |sum, aux| sum + &aux.value * aux.weight).backward();
        let outer = |name: &str| !name.contains(".router.") && !name.contains(".experts.");
        for param in store.entries().iter().filter(|p| p.role != Role::Buffer && outer(&p.name)) {
            let grad = param.tensor.grad();
            let reached = grad.defined() && grad.abs().max().double_value(&[]) > 0.0;
            assert!(reached, "{}: {}", paper.id, param.name);
        }
        checked += 1;
    }
    assert!(checked > 15, "{checked}");
}

/// Both sides of a token, in its row alone, and the order of the others by their positions.
#[test]
fn a_token_sees_its_whole_row_and_no_other() {
    let (_store, model) = build(Kind::Double, &config(), "dense");
    let (x_bt, position_bt) = rows();
    let base_btv = scores(&model, &x_bt, &position_bt);
    let moved_bt = |other_btv: Tensor| (other_btv - &base_btv).abs().amax([-1], false).gt(0.0);
    for t in 0..SHAPE[1] {
        let changed = x_bt.copy();
        let _ = changed.get(1).get(t).fill_(10);
        let moved = moved_bt(scores(&model, &changed, &position_bt));
        let of_row = |b: i64| moved.get(b).sum(Kind::Int64).int64_value(&[]);
        assert_eq!([0, 1, 2, 3].map(of_row), [0, SHAPE[1], 0, 0], "{t}");
    }
    let straight = Tensor::arange(6, (Kind::Int64, Device::Cpu)).expand(SHAPE, false);
    assert!(bool::try_from(moved_bt(scores(&model, &x_bt, &straight)).all()).unwrap());
}

/// The loss is the mean of `-ln softmax` of the scores at the targets, in both widths.
#[test]
fn the_loss_is_the_cross_entropy_of_the_scores() {
    let (x_bt, position_bt) = rows();
    let targets = [(1, 2), (7, 0), (17, 4)];
    let place_n = Tensor::from_slice(&targets.map(|(place, _)| place));
    let y_n = Tensor::from_slice(&targets.map(|(_, id)| id));
    for kind in [Kind::Float, Kind::Double] {
        let (_store, model) = build(kind, &config(), "x-moe");
        let rows = Rows { x_bt: &x_bt, position_bt: &position_bt };
        let (loss, _) = eval(|cx| model.loss(rows, (&place_n, &y_n), cx)).unwrap();
        let log_nv = scores(&model, &x_bt, &position_bt).view([24, VOCAB]).log_softmax(-1, kind);
        let want: f64 =
            targets.iter().map(|(place, id)| -log_nv.double_value(&[*place, *id]) / 3.0).sum();
        let off = (loss.double_value(&[]) - want).abs();
        assert!(off < tolerance(kind).value, "{kind:?}: {off}");
    }
}

/// Rows of one length in one batch give each what it gives alone, where its group is its own.
#[test]
fn pooled_embeddings_are_means_without_the_separator() {
    let config = LmConfig { routing_group: RoutingGroup::Sequence, ..config() };
    let (store, model) = build(Kind::Double, &config, "x-moe");
    let (x_bt, position_bt) = rows();
    let pooled = |x_bt: &Tensor, position_bt: &Tensor| {
        eval(|cx| model.pooled(Rows { x_bt, position_bt }, cx)).unwrap()
    };
    let all = pooled(&x_bt, &position_bt);
    assert_eq!(all.len(), 3);
    let limit = tolerance(Kind::Double).value;
    for (layer, all_bd) in all.iter().enumerate() {
        let alone = &pooled(&x_bt.narrow(0, 2, 1), &position_bt.narrow(0, 2, 1))[layer];
        assert!(alone.allclose(&all_bd.narrow(0, 2, 1), limit, limit, false), "{layer}");
    }
    let entries = store.entries();
    let table =
        |name: &str| entries.iter().find(|p| p.name == name).unwrap().tensor.shallow_clone();
    let (x_t, position_t) = (x_bt.get(0).narrow(0, 1, 5), position_bt.get(0).narrow(0, 1, 5));
    let embedded_td =
        table("embedding").index_select(0, &x_t) + table("position").index_select(0, &position_t);
    // The norm is fresh: no weight, no bias.
    let normed_td = embedded_td.layer_norm([8], None::<&Tensor>, None::<&Tensor>, LN_EPS, false);
    let want_d = normed_td.mean_dim(0, false, Kind::Double);
    assert!(all[0].get(0).allclose(&want_d, limit, limit, false));
}

#[test]
fn a_span_is_refused() {
    let (store, router) = (ParamStore::new(0, Device::Cpu, Kind::Float), plain("x-moe"));
    let config = LmConfig { span: Some(4), ..config() };
    let error = MaskedLm::new(&store, &config, &Rules::new(router.as_ref()), VOCAB).unwrap_err();
    assert_eq!(error.to_string(), "span: an encoder attends to all tokens of a row");
}

//! SSR: transport, routing, the coin (`moe_routers::ssr`).

use super::{Given, binary, config, host_universal, torch_universal};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::HostInput;
use moe_routers::config::resolve;
use moe_routers::ssr::{
    COIN, Config, NOISE, route_logits, route_logits_host, selects, sinkhorn, sinkhorn_host,
};
use moe_routers::{Phase, RouteCx, Settings};
use ndarray::{Array1, Array2, Axis, array};
use tch::{Kind, Tensor};

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "ssr.sinkhorn",
        config: &["xi", "max_iters", "tol", "order"],
        tensors: &["cost"],
        reference: Some(sinkhorn_reference),
        torch: Some(sinkhorn_torch),
    },
    Op {
        name: "ssr.route",
        config: &[
            "preset",
            "xi",
            "max_iters",
            "tol",
            "order",
            "top_k",
            "cost",
            "p",
            "mode",
            "noise_site",
            "noise_alpha",
            "gate_source",
            "stop_gradient",
        ],
        tensors: &["logits", "draw", "noise", "padding"],
        reference: Some(route_reference),
        torch: Some(route_torch),
    },
    Op {
        name: "ssr.selector",
        config: &["p"],
        tensors: &["draws"],
        reference: Some(selector),
        torch: Some(selector),
    },
];

fn sinkhorn_config(args: &Args<'_>) -> Result<Config, OpError> {
    let config: Config = resolve(&args.settings().collect::<Settings>())?;
    config.check_sinkhorn()?;
    Ok(config)
}

fn sinkhorn_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let cost_te = args.matrix("cost")?;
    let found = sinkhorn_host(&sinkhorn_config(args)?, cost_te.view());
    let plan_te = found.plan_te();
    Ok(vec![
        ("row_sums", plan_te.sum_axis(Axis(1)).into()),
        ("col_sums", plan_te.sum_axis(Axis(0)).into()),
        ("plan", plan_te.into()),
        ("iterations", (found.sweeps as f64).into()),
        ("row_residual", found.residuals.0.into()),
        ("col_residual", found.residuals.1.into()),
        ("converged", binary(found.converged).into()),
    ])
}

fn sinkhorn_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    args.matrix("cost")?;
    let cost_gte = args.torch("cost")?.unsqueeze(0);
    let found = sinkhorn(&sinkhorn_config(args)?, &cost_gte, None);
    let plan_te = found.plan_gte.get(0);
    Ok(vec![
        ("row_sums", plan_te.sum_dim_intlist(1, false, None).into()),
        ("col_sums", plan_te.sum_dim_intlist(0, false, None).into()),
        ("plan", plan_te.into()),
        ("iterations", found.sweeps_g.get(0).into()),
        ("row_residual", found.residuals_g.0.get(0).into()),
        ("col_residual", found.residuals_g.1.get(0).into()),
        ("converged", found.converged_g.get(0).into()),
    ])
}

/// What `ssr.route` reads besides the logits.
struct Input {
    config: Config,
    train: bool,
    /// 1, which no `p` exceeds, where there is no draw.
    coin: f64,
    /// Zero where there is none.
    noise_te: Array2<f64>,
    padding_t: Option<Vec<bool>>,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<(Array2<f64>, Self), OpError> {
        let logits_te = args.matrix("logits")?;
        args.top_k(2, logits_te.ncols())?;
        let config = config(args, &["mode"], logits_te.ncols())?;
        let train = args.word("mode", "train", &["train", "eval"])? == "train";
        let coin = args.optional("draw", Args::scalar)?;
        coin.map_or(Ok(()), |coin| in_range("draw", coin))?;
        let noise_te = args.optional("noise", Args::matrix)?;
        let noise_te = noise_te.unwrap_or_else(|| Array2::zeros(logits_te.dim()));
        expect_shape("noise", noise_te.shape(), logits_te.shape())?;
        let padding_t = args.flags("padding", logits_te.nrows())?;
        Ok((logits_te, Self { config, train, coin: coin.unwrap_or(1.0), noise_te, padding_t }))
    }
}

/// A draw is uniform on `[0, 1)`.
fn in_range(name: &str, draw: f64) -> Result<(), OpError> {
    if (0.0..1.0).contains(&draw) {
        return Ok(());
    }
    Err(OpError::new(format!("{name}: {draw} is out of range [0, 1)")))
}

fn route_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (logits_te, input) = Input::read(args)?;
    let draws = [(COIN, array![[input.coin]]), (NOISE, input.noise_te)];
    let host = HostInput::new(logits_te.view()).train(input.train).draws(&draws);
    let host = host.padding(input.padding_t.as_deref());
    let (routing, transport) = route_logits_host(&input.config, logits_te.view(), &host)?;
    let mut outputs = host_universal(std::slice::from_ref(&routing));
    outputs.push(("branch", binary(transport.is_some()).into()));
    if let (Some(transport), Some(chosen)) = (transport, routing.chosen) {
        outputs.push(("plan", transport.plan_te().into()));
        outputs.push(("kl", transport.divergence(&chosen.choices.expert_tk).into()));
        outputs.push(("iterations", (transport.sweeps as f64).into()));
        outputs.push(("cost", transport.cost_te.into()));
    }
    Ok(outputs)
}

fn route_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (_, input) = Input::read(args)?;
    let logits_gte = args.torch("logits")?.unsqueeze(0);
    let noise_gte = match args.torch_optional("noise")? {
        Some(noise_te) => noise_te.unsqueeze(0),
        None => logits_gte.zeros_like(),
    };
    let noise = Given(vec![(COIN, Tensor::from_slice(&[input.coin])), (NOISE, noise_gte)]);
    let phase = if input.train { Phase::Train { step: 0 } } else { Phase::Eval };
    let padding_gt = input.padding_t.as_ref().map(|flags| Tensor::from_slice(flags).unsqueeze(0));
    let cx = RouteCx { padding_gt: padding_gt.as_ref(), ..RouteCx::new(phase, &noise) };
    let (routing, transport) = route_logits(&input.config, &logits_gte, &cx)?;
    let mut outputs = torch_universal(&routing);
    outputs.push(("branch", binary(transport.is_some()).into()));
    if let (Some(transport), Some(chosen)) = (transport, routing.chosen) {
        outputs.push(("kl", transport.divergence(&chosen.choices.expert_gtk).get(0).into()));
        outputs.push(("plan", transport.plan_gte.get(0).into()));
        outputs.push(("iterations", transport.sweeps_g.get(0).into()));
        outputs.push(("cost", transport.cost_gte.get(0).into()));
    }
    Ok(outputs)
}

/// The product compares on libtorch alone: a coin is one number.
fn selector(args: &Args<'_>) -> Result<Outputs, OpError> {
    let draw_n: Array1<f64> = args.vector("draws")?;
    draw_n.iter().try_for_each(|draw| in_range("draws", *draw))?;
    let config: Config = resolve(&args.settings().collect::<Settings>())?;
    config.check_share()?;
    let branch_n = selects(&args.torch("draws")?, config.p);
    Ok(vec![("count", branch_n.sum(Kind::Int64).into()), ("branch", branch_n.into())])
}

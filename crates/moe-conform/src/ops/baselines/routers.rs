//! Softmax top-k (`moe_routers::smoe`), Switch (`moe_routers::switch`), GShard (`moe_routers::gshard`).

use super::{flags, identity, rule};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use crate::ops::{Route, config, grouped, host_universal, torch_universal, value_of};
use moe_core::{AuxForm, HostRouting, LoadBalance, balance};
use moe_routers::config::resolve;
use moe_routers::{RouterConfig, Routing, Settings, gshard, losses, smoe, switch};
use ndarray::{Array1, s};
use serde_json::Value;
use tch::Tensor;

pub(super) const SOFTMAX_TOPK: Op = Op {
    name: "baselines.softmax_topk",
    config: &["preset", "top_k", "order", "normalize", "scale", "capacity", "drop_policy"],
    tensors: &["logits", "padding"],
    reference: Some(|args| reference(args, softmax_topk)),
    torch: Some(|args| torch(args, softmax_topk)),
};

pub(super) const SWITCH: Op = Op {
    name: "baselines.switch",
    config: &[
        "capacity",
        "capacity_factor",
        "capacity_rule",
        "min_capacity",
        "alpha",
        "z_coefficient",
    ],
    tensors: &["logits", "x", "gate", "jitter", "padding"],
    reference: Some(|args| reference(args, switch)),
    torch: Some(|args| torch(args, switch)),
};

pub(super) const GSHARD: Op = Op {
    name: "baselines.gshard",
    config: &["capacity", "normalize", "second_policy", "threshold"],
    tensors: &["logits", "second_uniform", "gumbel", "padding"],
    reference: Some(|args| reference(args, gshard)),
    torch: Some(|args| torch(args, gshard)),
};

/// What the three operations read.
struct Input {
    config: Box<dyn RouterConfig>,
    gate_ed: Tensor,
    x_gtd: Tensor,
    draws: Vec<(&'static str, Tensor)>,
    padding_t: Option<Vec<bool>>,
    losses: Losses,
}

/// Which losses an operation gives back.
#[derive(Clone, Copy)]
enum Losses {
    /// None.
    None,
    /// The balance loss of first choices, unweighted, and weighted by this.
    Balance(f64),
    /// The same with the z-loss: the weights of both in their sum.
    BalanceAndZ(f64, f64),
}

impl Input {
    /// Logits as tokens.
    fn of_logits(args: &Args<'_>) -> Result<(Tensor, Tensor), OpError> {
        let tokens = args.matrix("logits")?.nrows();
        let logits_te = args.torch("logits")?;
        Ok((identity(&logits_te), grouped(&logits_te, tokens)))
    }

    fn tokens(&self) -> usize {
        self.x_gtd.size()[1] as usize
    }

    fn route(&self) -> Route<'_> {
        Route {
            config: self.config.as_ref(),
            params: vec![("gate", self.gate_ed.shallow_clone())],
            x_gtd: self.x_gtd.shallow_clone(),
            experts: self.gate_ed.size()[0] as usize,
            draws: self.draws.iter().map(|(name, t)| (*name, t.shallow_clone())).collect(),
        }
    }
}

fn softmax_topk(args: &Args<'_>) -> Result<Input, OpError> {
    let (tokens, experts) = args.matrix("logits")?.dim();
    let config: smoe::Config = config(args, &[], experts)?;
    let (gate_ed, x_gtd) = Input::of_logits(args)?;
    let (padding_t, losses) = (args.flags("padding", tokens)?, Losses::None);
    Ok(Input { config: Box::new(config), gate_ed, x_gtd, draws: Vec::new(), padding_t, losses })
}

/// Settings of a router: those of the case that are the router's own, over `defaults`.
fn settings(args: &Args<'_>, keys: &[&str], defaults: &[(&str, Value)]) -> Settings {
    let own = args.settings().filter(|(key, _)| keys.contains(&key.as_str()));
    defaults.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).chain(own).collect()
}

fn switch_config(args: &Args<'_>, weights: (f64, f64)) -> Result<switch::Config, OpError> {
    let (name, _) = rule(args, "capacity_rule")?;
    // The operation has one factor, and none unless it is given.
    let factor = args.key("capacity_factor").cloned().unwrap_or(Value::Null);
    let defaults = [
        ("capacity_factor", factor.clone()),
        ("eval_capacity_factor", factor),
        ("capacity_rule", name.into()),
        ("balance_weight", weights.0.into()),
        ("z_weight", weights.1.into()),
    ];
    Ok(resolve(&settings(args, &["capacity", "min_capacity"], &defaults))?)
}

/// The jitter draw, uniform on `[0, 1)`, that makes these factors.
fn jitter_draw(factor_td: &Tensor, half_width: f64) -> Tensor {
    ((factor_td - 1.0) / half_width + 1.0) * 0.5
}

fn switch(args: &Args<'_>) -> Result<Input, OpError> {
    let weights = (args.f64("alpha", 0.01)?, args.f64("z_coefficient", 0.0)?);
    for (key, weight) in [("alpha", weights.0), ("z_coefficient", weights.1)] {
        moe_routers::config::check_weight(key, weight)?;
    }
    let config = switch_config(args, weights)?;
    let mut draws = Vec::new();
    let (gate_ed, x_gtd) = if args.has("logits") {
        Input::of_logits(args)?
    } else {
        let (x_td, gate_ed) = (args.matrix("x")?, args.matrix("gate")?);
        expect_shape("gate", gate_ed.shape(), &[gate_ed.nrows(), x_td.ncols()])?;
        if let Some(jitter_td) = args.optional("jitter", Args::matrix)? {
            expect_shape("jitter", jitter_td.shape(), x_td.shape())?;
            let draw_td = jitter_draw(&args.torch("jitter")?, config.jitter);
            draws.push((switch::JITTER, draw_td.unsqueeze(0)));
        }
        (args.torch("gate")?, grouped(&args.torch("x")?, x_td.nrows()))
    };
    config.check(gate_ed.size()[0] as usize)?;
    let padding_t = args.flags("padding", x_gtd.size()[1] as usize)?;
    let losses = Losses::BalanceAndZ(weights.0, weights.1);
    Ok(Input { config: Box::new(config), gate_ed, x_gtd, draws, padding_t, losses })
}

fn gshard(args: &Args<'_>) -> Result<Input, OpError> {
    let (tokens, experts) = args.matrix("logits")?.dim();
    let keys = ["capacity", "normalize", "second_policy", "threshold"];
    // The operation has no limit unless it is given, and queues every second choice.
    let defaults = [("capacity_factor", Value::Null), ("second_policy", "all".into())];
    let config: gshard::Config = resolve(&settings(args, &keys, &defaults))?;
    config.check(experts)?;
    let mut draws = Vec::new();
    if let Some(uniform_t) = args.optional("second_uniform", Args::vector)? {
        expect_shape("second_uniform", uniform_t.shape(), &[tokens])?;
        if config.second_policy == gshard::SecondPolicy::Random {
            let draw_gt1 = args.torch("second_uniform")?.view([1, -1, 1]);
            draws.push((gshard::SECOND, draw_gt1));
        }
    }
    if let Some(gumbel_te) = args.optional("gumbel", Args::matrix)? {
        expect_shape("gumbel", gumbel_te.shape(), &[tokens, experts])?;
        if config.second_policy == gshard::SecondPolicy::Sampling {
            draws.push((gshard::GUMBEL, args.torch("gumbel")?.unsqueeze(0)));
        }
    }
    let (gate_ed, x_gtd) = Input::of_logits(args)?;
    let losses = Losses::Balance(config.balance_weight);
    let padding_t = args.flags("padding", tokens)?;
    Ok(Input { config: Box::new(config), gate_ed, x_gtd, draws, padding_t, losses })
}

fn reference(
    args: &Args<'_>,
    read: fn(&Args<'_>) -> Result<Input, OpError>,
) -> Result<Outputs, OpError> {
    let input = read(args)?;
    let routings = input.route().reference_padded(input.padding_t.as_deref())?;
    let mut outputs = host_universal(&routings);
    outputs.extend(dropped(&input, &outputs));
    outputs.extend(host_losses(&input, &routings[0]));
    outputs.push(("probs", routings[0].gate_te.clone().into()));
    outputs.push(("logits", routings[0].logits_te.clone().into()));
    Ok(outputs)
}

/// Tokens that are no padding and got no place, `[T]`.
fn dropped(input: &Input, outputs: &Outputs) -> Outputs {
    let kept = value_of(outputs, "kept");
    let dropped_t = (0..input.tokens()).map(|t| {
        let padded = input.padding_t.as_ref().is_some_and(|padding_t| padding_t[t]);
        let placed = kept.index_axis(ndarray::Axis(0), t).iter().any(|&k| k > 0.0);
        crate::ops::binary(!padded && !placed)
    });
    vec![("dropped", dropped_t.collect::<Array1<f64>>().into())]
}

fn host_losses(input: &Input, routing: &HostRouting) -> Outputs {
    let (Losses::Balance(alpha) | Losses::BalanceAndZ(alpha, _)) = input.losses else {
        return Vec::new();
    };
    let padding_t = input.padding_t.as_deref();
    let choices = &routing.chosen.as_ref().expect("tokens choose").choices;
    let first_t1 = choices.expert_tk.slice(s![.., ..1]);
    let terms = LoadBalance::of_valid(routing.gate_te.view(), first_t1, AuxForm::SumK, padding_t);
    let aux = routing.aux("balance").expect("a balance loss");
    let mut outputs: Outputs = vec![
        ("fraction", terms.fraction_e.into()),
        ("mean_prob", terms.mean_prob_e.into()),
        ("aux", aux.into()),
        ("loss", (alpha * aux).into()),
    ];
    if let Losses::BalanceAndZ(_, coefficient) = input.losses {
        let z = balance::z_loss(balance::valid_rows(routing.logits_te.view(), padding_t).view());
        outputs.push(("z", z.into()));
        outputs.push(("total", (alpha * aux + coefficient * z).into()));
    }
    outputs
}

fn torch(
    args: &Args<'_>,
    read: fn(&Args<'_>) -> Result<Input, OpError>,
) -> Result<Outputs, OpError> {
    let input = read(args)?;
    let routing = input.route().torch_padded(input.padding_t.as_deref())?;
    let mut outputs = torch_universal(&routing);
    outputs.extend(dropped(&input, &outputs));
    outputs.extend(torch_losses(&input, &routing));
    outputs.push(("probs", routing.gate_gte.get(0).into()));
    outputs.push(("logits", routing.logits_gte.get(0).into()));
    Ok(outputs)
}

fn torch_losses(input: &Input, routing: &Routing) -> Outputs {
    let (Losses::Balance(alpha) | Losses::BalanceAndZ(alpha, _)) = input.losses else {
        return Vec::new();
    };
    let padding_gt = flags(input.padding_t.as_deref());
    let choices = &routing.chosen.as_ref().expect("tokens choose").choices;
    let first_gt1 = choices.expert_gtk.narrow(-1, 0, 1);
    let prob_gte = &routing.gate_gte;
    let terms =
        losses::load_balance_of_valid(prob_gte, &first_gt1, AuxForm::SumK, padding_gt.as_ref());
    let aux = &routing.aux[0].value;
    let mut outputs: Outputs = vec![
        ("fraction", terms.fraction_ge.get(0).into()),
        ("mean_prob", terms.mean_prob_ge.get(0).into()),
        ("aux", aux.shallow_clone().into()),
        ("loss", (aux * alpha).into()),
    ];
    if let Losses::BalanceAndZ(_, coefficient) = input.losses {
        let z = losses::z_loss_of_valid(&routing.logits_gte, padding_gt.as_ref());
        outputs.push(("total", (aux * alpha + &z * coefficient).into()));
        outputs.push(("z", z.into()));
    }
    outputs
}

//! Noisy top-k (`moe_routers::noisy_topk`) and expert choice (`moe_routers::expert_choice`).

use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use crate::ops::{Route, config, dense_forms, grouped, host_universal, torch_universal};
use moe_routers::convert::to_host;
use moe_routers::expert_choice::{self, HostPicked};
use moe_routers::losses;
use moe_routers::noisy_topk::{self, NoisyTopk};
use ndarray::{Array2, Axis};
use tch::{Kind, Tensor};

pub(super) const NOISY_TOPK: Op = Op {
    name: "baselines.noisy_topk",
    config: &["top_k", "noise_epsilon", "loss_weight", "mode"],
    tensors: &["x", "gate", "noise_gate", "noise"],
    reference: Some(noisy_reference),
    torch: Some(noisy_torch),
};

pub(super) const EXPERT_CHOICE: Op = Op {
    name: "baselines.expert_choice",
    config: &["capacity", "capacity_factor", "score", "normalize"],
    tensors: &["logits", "probs"],
    reference: Some(choice_reference),
    torch: Some(choice_torch),
};

/// What `baselines.noisy_topk` reads.
struct Noisy {
    router: NoisyTopk,
    x_gtd: Tensor,
    noise_gte: Option<Tensor>,
}

impl Noisy {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (x_td, gate_ed) = (args.matrix("x")?, args.matrix("gate")?);
        let ((tokens, width), experts) = (x_td.dim(), gate_ed.nrows());
        expect_shape("gate", gate_ed.shape(), &[experts, width])?;
        args.top_k(2, experts)?;
        let config = config::<noisy_topk::Config>(args, &["mode"], experts)?;
        let train = args.word("mode", "train", &["train", "eval"])? == "train";
        for (name, shape) in [("noise_gate", [experts, width]), ("noise", [tokens, experts])] {
            if let Some(given) = args.optional(name, Args::matrix)? {
                expect_shape(name, given.shape(), &shape)?;
            }
        }
        let gate_ed = args.torch("gate")?;
        let noisy = train && args.has("noise_gate") && args.has("noise");
        let noise_gate_ed =
            if noisy { args.torch("noise_gate")? } else { gate_ed.detach().zeros_like() };
        let noise_te = if noisy { args.torch_optional("noise")? } else { None };
        Ok(Self {
            router: NoisyTopk { gate_ed, noise_gate_ed, config },
            x_gtd: grouped(&args.torch("x")?, tokens),
            noise_gte: noise_te.map(|noise_te| noise_te.unsqueeze(0)),
        })
    }

    fn route(&self) -> Route<'_> {
        let NoisyTopk { gate_ed, noise_gate_ed, config } = &self.router;
        let noise = self.noise_gte.iter().map(|n| (noisy_topk::NOISE, n.shallow_clone()));
        Route {
            config,
            params: vec![
                ("gate", gate_ed.shallow_clone()),
                ("noise_gate", noise_gate_ed.shallow_clone()),
            ],
            x_gtd: self.x_gtd.shallow_clone(),
            experts: gate_ed.size()[0] as usize,
            draws: noise.collect(),
        }
    }
}

/// The outputs of every routing operation, but for `load`, which here is the paper's.
fn without_load(outputs: Outputs) -> Outputs {
    outputs.into_iter().filter(|(name, _)| *name != "load").collect()
}

fn noisy_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Noisy::read(args)?;
    let host = noisy_topk::Host {
        gate_ed: to_host(&input.router.gate_ed),
        noise_gate_ed: to_host(&input.router.noise_gate_ed),
        config: input.router.config.clone(),
    };
    let noise_te = input.noise_gte.as_ref().map(|n| to_host(&n.get(0)));
    let terms =
        host.terms(to_host(&input.x_gtd.get(0)).view(), noise_te.as_ref().map(|n| n.view()));
    let routings = input.route().reference()?;
    let aux = |name| routings[0].aux(name).expect("a loss of noisy top-k");
    let (importance, load) = (aux("importance"), aux("load"));
    let mut outputs = without_load(host_universal(&routings));
    outputs.extend(terms.prob_te.map(|prob_te| ("prob", prob_te.into())));
    outputs.extend([
        ("clean", terms.clean_te.into()),
        ("std", terms.std_te.into()),
        ("noisy", terms.noisy_te.into()),
        ("importance", terms.importance_e.into()),
        ("load", terms.load_e.into()),
        ("cv2_importance", importance.into()),
        ("cv2_load", load.into()),
        ("loss", (host.config.loss_weight * (importance + load)).into()),
    ]);
    Ok(outputs)
}

fn noisy_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Noisy::read(args)?;
    let terms = input.router.terms(&input.x_gtd, input.noise_gte.as_ref());
    let routing = input.route().torch()?;
    let loss = routing.aux.iter().fold(Tensor::from(0.0), |sum, a| sum + a.weight * &a.value);
    let mut outputs = without_load(torch_universal(&routing));
    outputs.extend(terms.prob_gte.map(|prob_gte| ("prob", prob_gte.get(0).into())));
    let cv = |x_ge: &Tensor| losses::cv_squared_guarded(x_ge, noisy_topk::CV_EPSILON);
    outputs.extend([
        ("clean", terms.clean_gte.get(0).into()),
        ("std", terms.std_gte.get(0).into()),
        ("noisy", terms.noisy_gte.get(0).into()),
        ("cv2_importance", cv(&terms.importance_ge).into()),
        ("cv2_load", cv(&terms.load_ge).into()),
        ("importance", terms.importance_ge.get(0).into()),
        ("load", terms.load_ge.get(0).into()),
        ("loss", loss.into()),
    ]);
    Ok(outputs)
}

/// What `baselines.expert_choice` reads: settings, and the name of its one input.
fn read_choice(args: &Args<'_>) -> Result<(expert_choice::Config, &'static str), OpError> {
    let name = match (args.has("logits"), args.has("probs")) {
        (true, false) => "logits",
        (false, true) => "probs",
        _ => {
            return Err(OpError::new(
                "exactly one of logits and probs is needed; one is missing or too many",
            ));
        }
    };
    let experts = args.matrix(name)?.ncols();
    Ok((config(args, &[], experts)?, name))
}

/// What follows from `mask`: experts of each token, load, tokens that no expert took.
fn counts(mask_te: &Array2<f64>) -> Outputs {
    let experts_t = mask_te.sum_axis(Axis(1));
    let unprocessed = experts_t.iter().filter(|&&n| n == 0.0).count();
    vec![
        ("experts_per_token", experts_t.into()),
        ("load", mask_te.sum_axis(Axis(0)).into()),
        ("unprocessed", (unprocessed as f64).into()),
    ]
}

fn choice_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, name) = read_choice(args)?;
    let given_te = args.matrix(name)?;
    let score_te = match name {
        "probs" => given_te,
        _ => expert_choice::scores_host(&config, given_te.view()),
    };
    let HostPicked { plan, taken } = expert_choice::pick_host(&config, score_te.view())?;
    let capacity = taken[0].len();
    let rows = |of: fn(&(usize, f64)) -> f64| {
        Array2::from_shape_fn((taken.len(), capacity), |(e, c)| of(&taken[e][c]))
    };
    let mut outputs = counts(&plan.mask_te());
    outputs.extend([
        ("scores", score_te.into()),
        ("capacity", (capacity as f64).into()),
        ("tokens", rows(|row| row.0 as f64).into()),
        ("weights", rows(|row| row.1).into()),
        ("mask", plan.mask_te().into()),
        ("combine", plan.combine_te().into()),
    ]);
    Ok(outputs)
}

fn choice_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, name) = read_choice(args)?;
    let given_gte = args.torch(name)?.unsqueeze(0);
    let score_gte = match name {
        "probs" => given_gte,
        _ => expert_choice::scores(&config, &given_gte),
    };
    let picked = expert_choice::pick(&config, &score_gte)?;
    let (mask_te, combine_te) = dense_forms(&picked.plan, score_gte.size()[2]);
    let mut outputs = counts(&to_host(&mask_te));
    outputs.extend([
        ("capacity", (picked.token_egc.size()[2] as f64).into()),
        ("scores", score_gte.get(0).into()),
        ("tokens", picked.token_egc.select(1, 0).to_kind(Kind::Double).into()),
        ("weights", picked.score_egc.select(1, 0).into()),
        ("mask", mask_te.into()),
        ("combine", combine_te.into()),
    ]);
    Ok(outputs)
}

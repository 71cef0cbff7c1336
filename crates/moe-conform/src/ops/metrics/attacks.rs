//! Attacks on `softmax(w h + b)`, with `h = x` or `h = relu(w1 x + b1)`.
//!
//! Axis letters: `n` inputs, `d` width, `i` iterations, `s` samples.

use super::{labels, whole};
use crate::args::Args;
use crate::op::{OpError, Outputs};
use moe_core::metrics::attack::{
    AttackStats, Classifier, DenseNet, Fgsm, Pgd, PixelRange, Spsa, SpsaPoint,
};
use moe_core::metrics::probe::predictions;
use ndarray::{Array2, Array4};

pub(super) const FGSM_KEYS: &[&str] = &["eps", "clip_min", "clip_max"];
pub(super) const PGD_KEYS: &[&str] =
    &["preset", "eps", "step", "iters", "clip_min", "clip_max", "project"];
pub(super) const SPSA_KEYS: &[&str] =
    &["preset", "eps", "iters", "delta", "learning_rate", "clip_min", "clip_max", "gradient_point"];
pub(super) const FGSM_TENSORS: &[&str] = &["x", "w", "b", "w1", "b1", "labels"];
pub(super) const PGD_TENSORS: &[&str] = &["x", "w", "b", "w1", "b1", "labels", "start"];
pub(super) const SPSA_TENSORS: &[&str] = &["x", "w", "b", "w1", "b1", "labels", "signs", "start"];

/// What is attacked, and the labels that the attack uses.
struct Victim {
    network: DenseNet,
    x_nd: Array2<f64>,
    label_n: Vec<usize>,
    start_nd: Option<Array2<f64>>,
}

impl Victim {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let hidden = match args.optional("w1", Args::matrix)? {
            Some(w1_hd) => Some((w1_hd, args.optional("b1", Args::vector)?)),
            None => None,
        };
        let b_c = args.optional("b", Args::vector)?;
        let network = DenseNet::new(args.matrix("w")?, b_c, hidden)?;
        let x_nd = args.matrix("x")?;
        crate::args::expect_shape("x", x_nd.shape(), &[x_nd.nrows(), network.width()])?;
        let given = args.optional("labels", |args, name| labels(args, name, network.classes()))?;
        let label_n = given.unwrap_or_else(|| predictions(network.logits(x_nd.view()).view()));
        let start_nd = args.optional("start", Args::matrix)?;
        Ok(Self { network, x_nd, label_n, start_nd })
    }

    fn outputs(&self, attacked_nd: Array2<f64>) -> Result<Outputs, OpError> {
        let (x_nd, label_n) = (self.x_nd.view(), &self.label_n);
        let got = AttackStats::of(&self.network, x_nd, attacked_nd.view(), label_n)?;
        Ok(vec![
            ("x_adv", attacked_nd.into()),
            ("loss_before", got.loss_before.into()),
            ("loss_after", got.loss_after.into()),
            ("predictions", whole(got.prediction_n).into()),
            ("changed", (got.changed as f64).into()),
            ("robust_accuracy", got.robust_accuracy.into()),
        ])
    }
}

fn clip(args: &Args<'_>) -> Result<PixelRange, OpError> {
    let (min, max) = (args.f64_or_null("clip_min", None)?, args.f64_or_null("clip_max", None)?);
    Ok(PixelRange { min, max })
}

pub(super) fn fgsm(args: &Args<'_>) -> Result<Outputs, OpError> {
    let attack = Fgsm { eps: args.f64("eps", Fgsm::default().eps)?, clip: clip(args)? };
    let victim = Victim::read(args)?;
    victim.outputs(attack.attack(&victim.network, victim.x_nd.view(), &victim.label_n)?)
}

pub(super) fn pgd(args: &Args<'_>) -> Result<Outputs, OpError> {
    let preset = match args.word("preset", "standard", &["standard", "vmoe"])? {
        "vmoe" => Pgd::v_moe(),
        _ => Pgd::default(),
    };
    let attack = Pgd {
        eps: args.f64("eps", preset.eps)?,
        step: args.f64_or_null("step", preset.step)?,
        iters: args.usize("iters", preset.iters)?,
        project: args.bool("project", preset.project)?,
        clip: clip(args)?,
    };
    let victim = Victim::read(args)?;
    let start_nd = victim.start_nd.as_ref().map(|start_nd| start_nd.view());
    let x_nd = victim.x_nd.view();
    victim.outputs(attack.attack(&victim.network, x_nd, &victim.label_n, start_nd)?)
}

pub(super) fn spsa(args: &Args<'_>) -> Result<Outputs, OpError> {
    let default = match args.word("preset", "standard", &["standard", "reference"])? {
        "reference" => "double",
        _ => "current",
    };
    let point = match args.word("gradient_point", default, &["current", "double"])? {
        "double" => SpsaPoint::Double,
        _ => SpsaPoint::Current,
    };
    let preset = Spsa::default();
    let attack = Spsa {
        eps: args.f64("eps", preset.eps)?,
        iters: args.usize("iters", preset.iters)?,
        delta: args.f64("delta", preset.delta)?,
        learning_rate: args.f64("learning_rate", preset.learning_rate)?,
        point,
        clip: clip(args)?,
    };
    let victim = Victim::read(args)?;
    let sign_nisd = signs(args)?;
    let start_nd = victim.start_nd.as_ref().map(|start_nd| start_nd.view());
    let (x_nd, label_n) = (victim.x_nd.view(), &victim.label_n);
    victim.outputs(attack.attack(&victim.network, x_nd, label_n, sign_nisd.view(), start_nd)?)
}

fn signs(args: &Args<'_>) -> Result<Array4<f64>, OpError> {
    let array = args.raw("signs")?.clone();
    if let Some(value) = array.iter().find(|v| !v.is_finite()) {
        return Err(OpError::new(format!("signs: {value} is not finite")));
    }
    super::ranked("signs", array)
}

//! Measures of whole models: probes, perplexity, word swap, ImageNet-C.
//!
//! Axis letters: `n` samples, `m` test samples, `d` width, `c` classes or channels, `p` pixels.

use super::{WHOLE, flags, labels, whole};
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Outputs};
use moe_core::metrics::probe::{
    LogisticOptions, LogisticProbe, RidgeOptions, RidgeProbe, accuracy, predictions,
};
use moe_core::metrics::{
    Corruption, CorruptionDraws, CorruptionError, Perplexity, WordSwap, mean_errors,
};
use ndarray::{Array1, Array2};

pub(super) fn perplexity(args: &Args<'_>) -> Result<Outputs, OpError> {
    let nll = args.raw("nll")?;
    let nll_t: Array1<f64> = nll.iter().copied().collect();
    let padding_t = if args.has("padding") {
        expect_shape("padding", args.raw("padding")?.shape(), nll.shape())?;
        args.indices("padding", 2)?.iter().map(|&flag| flag == 1).collect()
    } else {
        Array1::from_elem(nll_t.len(), false)
    };
    let got = Perplexity::without_padding(nll_t.view(), padding_t.view())?;
    Ok(vec![
        ("mean", got.mean.into()),
        ("perplexity", got.perplexity.into()),
        ("bits", got.bits.into()),
    ])
}

pub(super) const PROBE_TENSORS: &[&str] = &["x", "labels", "test_x", "test_labels"];

/// What both probes read.
struct Probe {
    x_nd: Array2<f64>,
    label_n: Vec<usize>,
    test_md: Array2<f64>,
    test_label_m: Option<Vec<usize>>,
    classes: Option<usize>,
}

impl Probe {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (x_nd, label_n) = (args.matrix("x")?, labels(args, "labels", WHOLE)?);
        let test_md = args.matrix("test_x")?;
        expect_shape("test_x", test_md.shape(), &[test_md.nrows(), x_nd.ncols()])?;
        let classes = args.usize_or_null("classes", None)?;
        let below = classes.or(label_n.iter().max().map(|max| max + 1)).unwrap_or(WHOLE);
        let test_label_m = args.optional("test_labels", |args, name| labels(args, name, below))?;
        if let Some(label_m) = &test_label_m {
            expect_shape("test_labels", &[label_m.len()], &[test_md.nrows()])?;
        }
        Ok(Self { x_nd, label_n, test_md, test_label_m, classes })
    }

    /// `predictions` of the test samples, and `accuracy` if their labels are known.
    fn judge(&self, score_mc: &Array2<f64>) -> Outputs {
        let predicted_m = predictions(score_mc.view());
        let right = self.test_label_m.as_ref().map(|label_m| accuracy(&predicted_m, label_m));
        let mut outputs: Outputs = vec![("predictions", whole(predicted_m).into())];
        outputs.extend(right.map(|right| ("accuracy", right.into())));
        outputs
    }
}

pub(super) fn ridge(args: &Args<'_>) -> Result<Outputs, OpError> {
    let probe = Probe::read(args)?;
    let default = RidgeOptions::default();
    let options = RidgeOptions {
        l2: args.f64("l2", default.l2)?,
        bias: args.f64("bias", default.bias)?,
        classes: probe.classes,
    };
    let fitted = RidgeProbe::fit(probe.x_nd.view(), &probe.label_n, &options)?;
    let score_mc = fitted.scores(probe.test_md.view())?;
    let mut outputs = probe.judge(&score_mc);
    outputs.push(("weights", fitted.weight_pc.into()));
    outputs.push(("scores", score_mc.into()));
    Ok(outputs)
}

pub(super) fn logistic(args: &Args<'_>) -> Result<Outputs, OpError> {
    let probe = Probe::read(args)?;
    let c = args.f64("c", LogisticOptions::default().c)?;
    let options = LogisticOptions { c, classes: probe.classes };
    let fitted = LogisticProbe::fit(probe.x_nd.view(), &probe.label_n, &options)?;
    let prob_mc = fitted.probs(probe.test_md.view())?;
    let train_n = predictions(fitted.probs(probe.x_nd.view())?.view());
    let mut outputs = probe.judge(&prob_mc);
    outputs.push(("objective", fitted.objective.into()));
    outputs.push(("weights", fitted.weight_cd.into()));
    outputs.push(("test_probs", prob_mc.into()));
    outputs.push(("train_accuracy", accuracy(&train_n, &probe.label_n).into()));
    Ok(outputs)
}

pub(super) fn word_swap(args: &Args<'_>) -> Result<Outputs, OpError> {
    let Some(replacement) = args.usize_or_null("replacement", None)? else {
        return Err(OpError::new("replacement is missing"));
    };
    let token_n = labels(args, "tokens", WHOLE)?;
    let protected_n = args.flags("protected", token_n.len())?;
    let draw_n = args.optional("draws", Args::vector)?.map(|draw_n| draw_n.to_vec());
    let fraction = args.f64("fraction", WordSwap::FRACTION)?;
    let got =
        WordSwap::of(&token_n, replacement, fraction, protected_n.as_deref(), draw_n.as_deref())?;
    let count = got.count() as f64;
    Ok(vec![
        ("tokens", whole(got.word_n).into()),
        ("swapped", flags(got.swapped_n).into()),
        ("count", count.into()),
    ])
}

const KINDS: &[(&str, Corruption)] = &[
    ("gaussian_noise", Corruption::GaussianNoise),
    ("speckle_noise", Corruption::SpeckleNoise),
    ("shot_noise", Corruption::ShotNoise),
    ("impulse_noise", Corruption::ImpulseNoise),
    ("contrast", Corruption::Contrast),
    ("brightness", Corruption::Brightness),
];

fn kind(args: &Args<'_>) -> Result<Corruption, OpError> {
    let given = args.key("kind").ok_or_else(|| OpError::new("kind is missing"))?;
    let found = KINDS.iter().find(|(name, _)| given.as_str() == Some(name));
    found.map(|(_, corruption)| *corruption).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        OpError::new(format!("kind: unknown kind {given}; choose one of {}", known.join(", ")))
    })
}

pub(super) fn corrupt(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (corruption, severity) = (kind(args)?, args.usize("severity", 1)?);
    let x_pc = args.matrix("x")?;
    // What this corruption does not draw is ignored, whatever it is.
    let draw = |name: &str, kinds: &[Corruption]| {
        if kinds.contains(&corruption) { args.optional(name, Args::matrix) } else { Ok(None) }
    };
    let normal_pc = draw("noise", &[Corruption::GaussianNoise, Corruption::SpeckleNoise])?;
    let count_pc = draw("counts", &[Corruption::ShotNoise])?;
    let uniform_pc = draw("uniform", &[Corruption::ImpulseNoise])?;
    let salt_pc = draw("uniform2", &[Corruption::ImpulseNoise])?;
    let draws = CorruptionDraws {
        normal_pc: normal_pc.as_ref().map(|draw| draw.view()),
        count_pc: count_pc.as_ref().map(|draw| draw.view()),
        uniform_pc: uniform_pc.as_ref().map(|draw| draw.view()),
        salt_pc: salt_pc.as_ref().map(|draw| draw.view()),
    };
    Ok(vec![("x", corruption.apply(severity, x_pc.view(), &draws)?.into())])
}

pub(super) fn corruption_error(args: &Args<'_>) -> Result<Outputs, OpError> {
    let error_ks = args.matrix("errors")?;
    let (mean_k, mean) = mean_errors(error_ks.view())?;
    let mut outputs: Outputs = vec![("mean_error", mean_k.into()), ("unnormalised", mean.into())];
    let clean = args.optional("clean", Args::scalar)?;
    let baseline_clean = args.optional("baseline_clean", Args::scalar)?;
    let Some(baseline_ks) = args.optional("baseline", Args::matrix)? else { return Ok(outputs) };
    let got = CorruptionError::of(error_ks.view(), baseline_ks.view())?;
    outputs.extend([("ce", got.ce_k.into()), ("mce", got.mce.into())]);
    if let (Some(clean), Some(baseline_clean)) = (clean, baseline_clean) {
        let got =
            CorruptionError::relative(error_ks.view(), baseline_ks.view(), clean, baseline_clean)?;
        outputs.extend([("relative_ce", got.ce_k.into()), ("relative_mce", got.mce.into())]);
    }
    Ok(outputs)
}

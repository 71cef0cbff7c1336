//! Metrics (`moe_core::metrics`): host only. This file holds the measures of routing; those of whole
//! models are in `metrics/models.rs`, attacks in `metrics/attacks.rs`.
//!
//! Axis letters: `n` samples, `t` tokens, `e` experts, `k` choices, `m` runs or features, `d` width.

mod attacks;
mod models;

use super::binary;
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs, Run};
use moe_core::metrics::{
    ChangeOf, ClassWeighting, CodeUsage, Collapse, CollapseOptions, Consistency, DropStats,
    ExpertSimilarity, Fluctuation, GateEntropy, LoadStats, MetricError, Specialisation,
    routing_iou,
};
use ndarray::{Array1, Array2, ArrayD, Axis, Ix1, Ix2};

/// The operations.
pub const OPS: &[Op] = &[
    op("metrics.rc", &["weighting", "divide_by_classes", "rcond"], &["x", "labels"], rc),
    op("metrics.rf", &["mode"], &["prev", "curr", "padding"], rf),
    op("metrics.ic", &[], &["loads"], ic),
    op("metrics.load", &["active_threshold"], &["load", "mask"], load),
    op("metrics.gate_entropy", &[], &["probs", "padding"], gate_entropy),
    op("metrics.success_rate", &[], &["kept", "padding"], success_rate),
    op("metrics.expert_similarity", &[], &["features"], expert_similarity),
    op(
        "metrics.mutual_information",
        &["num_labels", "num_experts"],
        &["labels", "experts"],
        mutual_information,
    ),
    op("metrics.code_usage", &["codes"], &["indices"], code_usage),
    op("metrics.routing_iou", &[], &["a", "b"], iou),
    op("metrics.perplexity", &[], &["nll", "padding"], models::perplexity),
    op("metrics.ridge_probe", &["l2", "bias", "classes"], models::PROBE_TENSORS, models::ridge),
    op("metrics.logistic_probe", &["c", "classes"], models::PROBE_TENSORS, models::logistic),
    op(
        "metrics.word_swap",
        &["fraction", "replacement"],
        &["tokens", "protected", "draws"],
        models::word_swap,
    ),
    op(
        "metrics.corrupt",
        &["kind", "severity"],
        &["x", "noise", "counts", "uniform", "uniform2"],
        models::corrupt,
    ),
    op(
        "metrics.mce",
        &[],
        &["errors", "baseline", "clean", "baseline_clean"],
        models::corruption_error,
    ),
    op("metrics.fgsm", attacks::FGSM_KEYS, attacks::FGSM_TENSORS, attacks::fgsm),
    op("metrics.pgd", attacks::PGD_KEYS, attacks::PGD_TENSORS, attacks::pgd),
    op("metrics.spsa", attacks::SPSA_KEYS, attacks::SPSA_TENSORS, attacks::spsa),
];

/// An operation of the host alone.
const fn op(
    name: &'static str,
    config: &'static [&'static str],
    tensors: &'static [&'static str],
    run: Run,
) -> Op {
    Op { name, config, tensors, reference: Some(run), torch: None }
}

impl From<MetricError> for OpError {
    fn from(error: MetricError) -> Self {
        // The format's word for a fully padded input is the name of the flags.
        Self(match error {
            MetricError::AllPadding => format!("padding: {error}"),
            _ => error.to_string(),
        })
    }
}

/// Whole numbers of at least 0: labels, experts, tokens. `f64` holds no more exactly.
const WHOLE: usize = 1 << 53;

fn whole(values: impl IntoIterator<Item = usize>) -> Array1<f64> {
    values.into_iter().map(|v| v as f64).collect()
}

fn flags(values: impl IntoIterator<Item = bool>) -> Array1<f64> {
    values.into_iter().map(binary).collect()
}

/// A vector of whole numbers below `below`.
fn labels(args: &Args<'_>, name: &str, below: usize) -> Result<Vec<usize>, OpError> {
    Ok(ranked::<Ix1, _>(name, args.indices(name, below)?)?.to_vec())
}

/// A matrix of 0/1 flags.
fn flag_matrix(args: &Args<'_>, name: &str) -> Result<Array2<bool>, OpError> {
    args.matrix(name)?;
    Ok(ranked::<Ix2, _>(name, args.indices(name, 2)?)?.mapv(|v| v == 1))
}

fn ranked<D: ndarray::Dimension, A>(
    name: &str,
    array: ArrayD<A>,
) -> Result<ndarray::Array<A, D>, OpError> {
    let shape = array.shape().to_vec();
    array
        .into_dimensionality()
        .map_err(|_| OpError::new(format!("{name}: shape {shape:?} has another number of axes")))
}

/// The padding of `len` tokens; absent means none.
fn padding(args: &Args<'_>, len: usize) -> Result<Array1<bool>, OpError> {
    Ok(args.flags("padding", len)?.map_or_else(|| Array1::from_elem(len, false), Array1::from_vec))
}

fn rc(args: &Args<'_>) -> Result<Outputs, OpError> {
    let default = CollapseOptions::default();
    let weighting = match args.word("weighting", "uniform", &["uniform", "size"])? {
        "size" => ClassWeighting::Size,
        _ => ClassWeighting::Uniform,
    };
    let options = CollapseOptions {
        weighting,
        divide_by_classes: args.bool("divide_by_classes", default.divide_by_classes)?,
        rcond: args.f64("rcond", default.rcond)?,
    };
    let x_nd = args.matrix("x")?;
    let got = Collapse::of(x_nd.view(), &labels(args, "labels", WHOLE)?, &options)?;
    Ok(vec![
        ("sigma_w", got.sigma_w_dd.into()),
        ("sigma_b", got.sigma_b_dd.into()),
        ("classes", (got.classes as f64).into()),
        ("rc", got.rc.into()),
    ])
}

/// Chosen experts, `[n, k]`; a vector is one choice each.
fn choices(args: &Args<'_>, name: &str) -> Result<Array2<usize>, OpError> {
    let array = args.indices(name, WHOLE)?;
    let array = if array.ndim() == 1 { array.insert_axis(Axis(1)) } else { array };
    ranked::<Ix2, _>(name, array)
}

fn rf(args: &Args<'_>) -> Result<Outputs, OpError> {
    let change = match args.word("mode", "top1", &["top1", "set"])? {
        "set" => ChangeOf::Set,
        _ => ChangeOf::Top1,
    };
    let (prev_nk, curr_nk) = (choices(args, "prev")?, choices(args, "curr")?);
    expect_shape("curr", args.raw("curr")?.shape(), args.raw("prev")?.shape())?;
    let padding_n = padding(args, prev_nk.nrows())?;
    let got =
        Fluctuation::without_padding(prev_nk.view(), curr_nk.view(), change, padding_n.view())?;
    Ok(vec![("changed", flags(got.changed_t).into()), ("rf", got.rate.into())])
}

fn ic(args: &Args<'_>) -> Result<Outputs, OpError> {
    let got = Consistency::of(args.matrix("loads")?.view())?;
    Ok(vec![
        ("pearson", got.pearson_mm.into()),
        ("ic", got.ic.into()),
        ("ic_off_diagonal", got.ic_off_diagonal.into()),
    ])
}

fn load(args: &Args<'_>) -> Result<Outputs, OpError> {
    if args.has("load") == args.has("mask") {
        return Err(OpError::new(
            "exactly one of load and mask is needed; one is missing or too many",
        ));
    }
    let load_e = if args.has("load") {
        args.vector("load")?
    } else {
        flag_matrix(args, "mask")?.mapv(binary).sum_axis(Axis(0))
    };
    let got = LoadStats::with_threshold(load_e.view(), args.f64("active_threshold", 1.0)?)?;
    Ok(vec![
        ("load", load_e.into()),
        ("cv", got.cv.into()),
        ("cv2", got.cv2.into()),
        ("max_over_mean", got.max_over_mean.into()),
        ("violation", got.violation.into()),
        ("min_over_mean", got.min_over_mean.into()),
        ("entropy", got.entropy.into()),
        ("entropy_normalised", got.entropy_normalised.into()),
        ("perplexity", got.perplexity.into()),
        ("unused", (got.unused as f64).into()),
        ("active", (got.active as f64).into()),
    ])
}

fn gate_entropy(args: &Args<'_>) -> Result<Outputs, OpError> {
    let prob_te = args.matrix("probs")?;
    let padding_t = padding(args, prob_te.nrows())?;
    let got = GateEntropy::without_padding(prob_te.view(), padding_t.view())?;
    Ok(vec![
        ("rows", got.rows.into()),
        ("mean", got.mean.into()),
        ("mean_normalised", got.mean_normalised.into()),
        ("marginal", got.marginal.into()),
        ("mutual_information", got.mutual_information.into()),
    ])
}

fn success_rate(args: &Args<'_>) -> Result<Outputs, OpError> {
    let kept_tk = flag_matrix(args, "kept")?;
    let padding_t = padding(args, kept_tk.nrows())?;
    let got = DropStats::without_padding(kept_tk.view(), padding_t.view())?;
    Ok(vec![
        ("success_rate", got.success_rate.into()),
        ("dropped_tokens", (got.dropped_tokens as f64).into()),
        ("token_drop_rate", got.token_drop_rate.into()),
    ])
}

fn expert_similarity(args: &Args<'_>) -> Result<Outputs, OpError> {
    let got = ExpertSimilarity::of(args.matrix("features")?.view())?;
    Ok(vec![
        ("cosine", got.cosine_ee.into()),
        ("mean", got.mean.into()),
        ("max", got.max.into()),
        ("min", got.min.into()),
    ])
}

fn mutual_information(args: &Args<'_>) -> Result<Outputs, OpError> {
    let number = |key: &str| match args.usize_or_null(key, None)? {
        Some(0) => Err(OpError::new(format!("{key}: 0 is out of range"))),
        number => Ok(number),
    };
    let (label_n, expert_n) = (labels(args, "labels", WHOLE)?, labels(args, "experts", WHOLE)?);
    let (num_labels, num_experts) = (number("num_labels")?, number("num_experts")?);
    let got = Specialisation::of(&label_n, &expert_n, num_labels, num_experts)?;
    Ok(vec![
        ("contingency", got.count_le.mapv(|count| count as f64).into()),
        ("mi", got.mi.into()),
        ("h_labels", got.h_labels.into()),
        ("h_experts", got.h_experts.into()),
        ("nmi", got.nmi.into()),
        ("purity", got.purity.into()),
    ])
}

fn code_usage(args: &Args<'_>) -> Result<Outputs, OpError> {
    let Some(codes) = args.usize_or_null("codes", None)? else {
        return Err(OpError::new("codes is missing"));
    };
    let index_n: Vec<usize> = args.indices("indices", WHOLE)?.into_iter().collect();
    let got = CodeUsage::of(&index_n, codes)?;
    Ok(vec![
        ("counts", whole(got.counts).into()),
        ("perplexity", got.perplexity.into()),
        ("used", (got.used as f64).into()),
        ("usage", got.usage.into()),
    ])
}

/// Combine weights of `[t, e]`, or of several layers or groups, as rows.
fn iou(args: &Args<'_>) -> Result<Outputs, OpError> {
    let shape = args.raw("a")?.shape().to_vec();
    let cubes = shape.len() == 3;
    let read = |name: &str| -> Result<ArrayD<f64>, OpError> {
        Ok(if cubes { args.cube(name)?.into_dyn() } else { args.matrix(name)?.into_dyn() })
    };
    let (a, b) = (read("a")?, read("b")?);
    expect_shape("b", b.shape(), &shape)?;
    let (tokens, experts) = (shape[..shape.len() - 1].to_vec(), shape[shape.len() - 1]);
    let rows = |array: ArrayD<f64>| {
        let shape = [tokens.iter().product(), experts];
        array.into_shape_with_order(shape).expect("as many values")
    };
    let iou_t = Array1::from_vec(routing_iou(rows(a).view(), rows(b).view())?);
    let mean = iou_t.mean().unwrap_or(0.0);
    let iou = iou_t.into_shape_with_order(tokens.as_slice()).expect("one per token");
    Ok(vec![("iou", iou.into()), ("mean", mean.into())])
}

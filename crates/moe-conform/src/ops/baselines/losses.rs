//! Balance loss, z-loss, GEGLU.

use super::flags;
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::{AuxForm, Choices, LoadBalance, balance, score};
use moe_routers::glam::{Geglu, Gelu, HostGeglu};
use moe_routers::{convert::to_tensor, losses, plan::ChoicesGtk};
use ndarray::{Array2, Ix2};
use tch::{Kind, Tensor};

pub(super) const AUX_LOSS: Op = Op {
    name: "baselines.aux_loss",
    config: &["top_k", "form", "alpha", "score"],
    tensors: &["logits", "padding", "indices"],
    reference: Some(aux_reference),
    torch: Some(aux_torch),
};

pub(super) const Z_LOSS: Op = Op {
    name: "baselines.z_loss",
    config: &["coefficient"],
    tensors: &["logits", "padding"],
    reference: Some(z_reference),
    torch: Some(z_torch),
};

pub(super) const GEGLU: Op = Op {
    name: "baselines.geglu",
    config: &["gelu"],
    tensors: &["x", "w", "v", "w2"],
    reference: Some(geglu_reference),
    torch: Some(geglu_torch),
};

/// What `baselines.aux_loss` reads.
struct AuxInput {
    logits_te: Array2<f64>,
    padding_t: Option<Vec<bool>>,
    expert_tk: Option<Array2<usize>>,
    top_k: usize,
    form: AuxForm,
    alpha: f64,
    sigmoid: bool,
}

impl AuxInput {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let logits_te = args.matrix("logits")?;
        let (tokens, experts) = logits_te.dim();
        let top_k = args.top_k(1, experts)?;
        let form = match args.word("form", "sum_k", &["sum_k", "div_k", "fastmoe"])? {
            "div_k" => AuxForm::DivK,
            "fastmoe" => AuxForm::Fastmoe,
            _ => AuxForm::SumK,
        };
        let padding_t = args.flags("padding", tokens)?;
        if padding_t.as_ref().is_some_and(|padding_t| padding_t.iter().all(|&p| p)) {
            return Err(OpError::new("padding: every token is padding"));
        }
        let expert_tk = args.optional("indices", |args, name| {
            let expert_tk = args.indices(name, experts)?;
            expect_shape(name, expert_tk.shape(), &[tokens, top_k])?;
            Ok(expert_tk.into_dimensionality::<Ix2>().expect("the shape was checked"))
        })?;
        let alpha = args.f64("alpha", 0.01)?;
        let sigmoid = args.word("score", "softmax", &["softmax", "sigmoid"])? == "sigmoid";
        Ok(Self { logits_te, padding_t, expert_tk, top_k, form, alpha, sigmoid })
    }
}

fn aux_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = AuxInput::read(args)?;
    let logits_te = input.logits_te.view();
    let prob_te = if input.sigmoid {
        score::normalised_sigmoid(logits_te)
    } else {
        score::softmax(logits_te)
    };
    let chosen_tk = || Choices::top_k(logits_te, input.top_k).expert_tk;
    let expert_tk = input.expert_tk.unwrap_or_else(chosen_tk);
    let padding_t = input.padding_t.as_deref();
    let terms = LoadBalance::of_valid(prob_te.view(), expert_tk.view(), input.form, padding_t);
    Ok(vec![
        ("fraction", terms.fraction_e.into()),
        ("mean_prob", terms.mean_prob_e.into()),
        ("aux", terms.loss.into()),
        ("loss", (terms.loss * input.alpha).into()),
    ])
}

fn aux_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = AuxInput::read(args)?;
    let logits_gte = args.torch("logits")?.unsqueeze(0);
    let prob_gte = if input.sigmoid {
        losses::normalised_sigmoid(&logits_gte)
    } else {
        logits_gte.softmax(-1, logits_gte.kind())
    };
    let expert_gtk = match &input.expert_tk {
        Some(expert_tk) => {
            let expert_tk = to_tensor(expert_tk.mapv(|e| e as f64).view(), &logits_gte);
            expert_tk.to_kind(Kind::Int64).unsqueeze(0)
        }
        None => ChoicesGtk::top_k(&logits_gte, input.top_k as i64).expert_gtk,
    };
    let padding_gt = flags(input.padding_t.as_deref());
    let terms =
        losses::load_balance_of_valid(&prob_gte, &expert_gtk, input.form, padding_gt.as_ref());
    Ok(vec![
        ("fraction", terms.fraction_ge.get(0).into()),
        ("mean_prob", terms.mean_prob_ge.get(0).into()),
        ("loss", (&terms.loss * input.alpha).into()),
        ("aux", terms.loss.into()),
    ])
}

fn z_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let logits_te = args.matrix("logits")?;
    let padding_t = args.flags("padding", logits_te.nrows())?;
    let coefficient = args.f64("coefficient", 1e-3)?;
    let z = balance::z_loss(balance::valid_rows(logits_te.view(), padding_t.as_deref()).view());
    Ok(vec![
        ("lse", score::log_sum_exp(logits_te.view()).into()),
        ("z", z.into()),
        ("loss", (z * coefficient).into()),
    ])
}

fn z_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let padding_t = args.flags("padding", args.matrix("logits")?.nrows())?;
    let coefficient = args.f64("coefficient", 1e-3)?;
    let logits_gte = args.torch("logits")?.unsqueeze(0);
    let z = losses::z_loss_of_valid(&logits_gte, flags(padding_t.as_deref()).as_ref());
    Ok(vec![
        ("lse", logits_gte.logsumexp(-1, false).get(0).into()),
        ("loss", (&z * coefficient).into()),
        ("z", z.into()),
    ])
}

fn read_geglu(args: &Args<'_>) -> Result<(Array2<f64>, HostGeglu, Gelu), OpError> {
    let (x_td, w_hd) = (args.matrix("x")?, args.matrix("w")?);
    let (width, hidden) = (x_td.ncols(), w_hd.nrows());
    let (v_hd, w2_dh) = (args.matrix("v")?, args.matrix("w2")?);
    expect_shape("w", w_hd.shape(), &[hidden, width])?;
    expect_shape("v", v_hd.shape(), &[hidden, width])?;
    expect_shape("w2", w2_dh.shape(), &[width, hidden])?;
    let gelu = match args.word("gelu", "erf", &["erf", "tanh"])? {
        "tanh" => Gelu::Tanh,
        _ => Gelu::Erf,
    };
    Ok((x_td, HostGeglu { w_hd, v_hd, w2_dh }, gelu))
}

fn geglu_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (x_td, layer, gelu) = read_geglu(args)?;
    Ok(vec![("y", layer.apply(x_td.view(), gelu).into())])
}

fn geglu_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (_, _, gelu) = read_geglu(args)?;
    let layer = Geglu { w_hd: args.torch("w")?, v_hd: args.torch("v")?, w2_dh: args.torch("w2")? };
    let x_td: Tensor = args.torch("x")?;
    Ok(vec![("y", layer.apply(&x_td, gelu).into())])
}

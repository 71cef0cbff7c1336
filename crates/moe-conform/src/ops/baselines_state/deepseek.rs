//! DeepSeek-V3 (`moe_routers::deepseek_v3`).

use super::serve::{Serve, identity};
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Outputs};
use crate::ops::{host_universal, torch_universal, value_of};
use moe_routers::config::resolve;
use moe_routers::deepseek_v3::{self, Config};
use moe_routers::{RouterConfig, Settings};
use ndarray::{Array1, Ix1};
use tch::Tensor;

/// Every setting of the router, but for whether there is a bias: the tensor says that.
pub(super) const KEYS: &[&str] = &[
    "preset",
    "top_k",
    "n_groups",
    "topk_groups",
    "group_score_k",
    "score",
    "normalize",
    "route_scale",
    "gamma",
    "alpha",
    "sequence_length",
    "f_source",
];

struct Input {
    config: Config,
    experts: usize,
    bias_e: Option<Array1<f64>>,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let experts = args.matrix("logits")?.ncols();
        args.top_k(8, experts)?;
        let bias_e = args.optional("bias", Args::vector)?;
        if let Some(bias_e) = &bias_e {
            expect_shape("bias", bias_e.shape(), &[experts])?;
        }
        let mut settings: Settings = args.settings().collect();
        settings.entry("preset").or_insert_with(|| "paper".into());
        // The router's own default is smaller than the paper's.
        settings.entry("top_k").or_insert_with(|| 8.into());
        let mut config: Config = resolve(&settings)?;
        config.bias = bias_e.is_some();
        config.check(experts)?;
        Ok(Self { config, experts, bias_e })
    }

    /// The bias has no gradient, and a router writes to its own.
    fn serve(&self, args: &Args<'_>) -> Result<Serve<'_>, OpError> {
        let x_td = args.torch("logits")?;
        let mut params = vec![("gate", identity(self.experts, &x_td))];
        params.extend(args.torch_optional("bias")?.map(|bias_e| ("bias", bias_e.detach().copy())));
        let experts = self.experts;
        Ok(Serve { config: &self.config, params, x_td, experts, train: true, token_t: None })
    }
}

pub(super) fn reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let routing = input.serve(args)?.reference()?;
    let config = &input.config;
    let mut outputs = host_universal(&[routing]);
    let bias_e = input.bias_e.as_ref().map(|bias_e| bias_e.view());
    let logits_te = args.matrix("logits")?;
    let selection = deepseek_v3::select_host(config, logits_te.view(), bias_e);
    let balance = deepseek_v3::sequence_balance_host(config, &selection)?;
    let load_e = value_of(&outputs, "load").into_dimensionality::<Ix1>().expect("[E]");
    let bias_e = input.bias_e.unwrap_or_else(|| Array1::zeros(input.experts));
    let new_e = deepseek_v3::updated_bias_host(config, bias_e.view(), load_e.view());
    if config.n_groups > 1 {
        outputs.push(("group_scores", selection.group_score.into()));
        outputs.push(("groups", selection.groups.mapv(|n| n as f64).into()));
    }
    outputs.extend([
        ("scores", selection.score_te.into()),
        ("new_bias", new_e.into()),
        ("fraction", balance.fraction.into()),
        ("mean_prob", balance.mean_prob.into()),
        ("balance", balance.value.into()),
        ("loss", (balance.value * config.alpha).into()),
    ]);
    Ok(outputs)
}

pub(super) fn torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let routing = input.serve(args)?.torch()?;
    let (config, logits_gte) = (&input.config, args.torch("logits")?.unsqueeze(0));
    let bias_e = args.torch_optional("bias")?;
    let selection = deepseek_v3::select(config, &logits_gte, bias_e.as_ref());
    let balance = deepseek_v3::sequence_balance(config, &selection)?;
    let options = (logits_gte.kind(), logits_gte.device());
    let bias_e = bias_e.unwrap_or_else(|| Tensor::zeros([input.experts as i64], options));
    let new_e = deepseek_v3::updated_bias(config, &bias_e.detach(), &routing.plan.load_e());
    let mut outputs = torch_universal(&routing);
    if config.n_groups > 1 {
        outputs.push(("group_scores", selection.group_score.squeeze_dim(0).into()));
        outputs.push(("groups", selection.groups.squeeze_dim(0).into()));
    }
    outputs.extend([
        ("scores", selection.score_gte.squeeze_dim(0).into()),
        ("new_bias", new_e.into()),
        ("fraction", balance.fraction.into()),
        ("mean_prob", balance.mean_prob.into()),
        ("loss", (&balance.value * config.alpha).into()),
        ("balance", balance.value.into()),
    ]);
    Ok(outputs)
}

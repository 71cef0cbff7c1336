//! Soft MoE (`moe_routers::soft_moe`).
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `p` slots of an expert, `s = e p` slots.

use super::serve::Serve;
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Outputs};
use crate::ops::config;
use crate::ops::experts::{HostBank, TorchBank};
use moe_core::Plan;
use moe_routers::TensorPlan;
use moe_routers::soft_moe::{self, Config};
use ndarray::{Array2, Array3};
use tch::Tensor;

struct Input {
    config: Config,
    /// `[t, d]`.
    x_td: Array2<f64>,
    /// `[d, e, p]`.
    phi_dep: Array3<f64>,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (x_td, phi_dep) = (args.matrix("x")?, args.cube("phi")?);
        let (_, e, p) = phi_dep.dim();
        expect_shape("phi", phi_dep.shape(), &[x_td.ncols(), e.max(1), p.max(1)])?;
        let mut config: Config = config(args, &[], e)?;
        config.slots_per_expert = p;
        if let Some(scale_e) = args.optional("expert_scale", Args::vector)? {
            expect_shape("expert_scale", scale_e.shape(), &[e])?;
        }
        Ok(Self { config, x_td, phi_dep })
    }

    fn experts(&self) -> usize {
        self.phi_dep.dim().1
    }

    fn phi_ds(&self, args: &Args<'_>) -> Result<Tensor, OpError> {
        Ok(args.torch("phi")?.flatten(1, 2))
    }

    fn scale(&self, args: &Args<'_>) -> Tensor {
        args.torch_setting("scale", self.config.scale).view([1])
    }

    fn serve(&self, args: &Args<'_>) -> Result<Serve<'_>, OpError> {
        Ok(Serve {
            config: &self.config,
            params: vec![("phi", self.phi_ds(args)?), ("scale", self.scale(args))],
            x_td: args.torch("x")?,
            experts: self.experts(),
            train: false,
            token_t: None,
        })
    }

    /// `[t, s]` or `[s, d]` as `[t, e, p]` or `[e, p, d]`.
    fn cube(&self, matrix: Array2<f64>, shape: (usize, usize, usize)) -> Array3<f64> {
        let values = matrix.iter().copied().collect();
        Array3::from_shape_vec(shape, values).expect("slots are experts times slots of one")
    }
}

pub(super) fn reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let routing = input.serve(args)?.reference()?;
    let Plan::Soft(plan) = &routing.plan else { panic!("a soft plan") };
    let ((t, d), (_, e, p)) = (input.x_td.dim(), input.phi_dep.dim());
    let phi_ds = input.phi_dep.to_shape((d, e * p)).expect("slots of one follow each other");
    let (config, x_td) = (&input.config, input.x_td.view());
    let logits_ts = soft_moe::slot_logits_host(config, x_td, phi_ds.view(), config.scale);
    let mut outputs: Outputs = vec![
        ("logits", input.cube(logits_ts, (t, e, p)).into()),
        ("dispatch", input.cube(plan.dispatch_ts.clone(), (t, e, p)).into()),
        ("combine_slots", input.cube(plan.combine_ts.clone(), (t, e, p)).into()),
        ("slots", input.cube(plan.dispatch(x_td), (e, p, d)).into()),
        ("mask", routing.plan.mask_te().into()),
        ("combine", routing.plan.combine_te().into()),
    ];
    if args.has("W1") {
        outputs.push(("y", HostBank::read(args, e, d)?.apply(&routing.plan, x_td).into()));
    } else if let Some(scale_e) = args.optional("expert_scale", Args::vector)? {
        let y_td = routing.plan.apply(x_td, |e, rows| &rows * scale_e[e]);
        outputs.push(("y", y_td.into()));
    }
    Ok(outputs)
}

pub(super) fn torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let x_gtd = args.torch("x")?.unsqueeze(0);
    let routing = input.serve(args)?.torch()?;
    let TensorPlan::Soft(plan) = &routing.plan else { panic!("a soft plan") };
    let (d, (_, e, p)) = (input.x_td.ncols(), input.phi_dep.dim());
    let per_slot = |x_gts: &Tensor| x_gts.view([-1, e as i64, p as i64]);
    let logits_gts =
        soft_moe::slot_logits(&input.config, &x_gtd, &input.phi_ds(args)?, &input.scale(args));
    let combine_te =
        per_slot(&plan.combine_gts).sum_dim_intlist(-1, false, plan.combine_gts.kind());
    let slots_epd = routing.plan.dispatch(&x_gtd).view([e as i64, p as i64, d as i64]);
    let mut outputs: Outputs = vec![
        ("logits", per_slot(&logits_gts).into()),
        ("dispatch", per_slot(&plan.dispatch_gts).into()),
        ("combine_slots", per_slot(&plan.combine_gts).into()),
        ("slots", slots_epd.into()),
        ("mask", combine_te.ones_like().into()),
        ("combine", combine_te.into()),
    ];
    if args.has("W1") {
        let y_gtd = TorchBank::read(args, e, d)?.apply(&routing.plan, &x_gtd);
        outputs.push(("y", y_gtd.squeeze_dim(0).into()));
    } else if let Some(scale_e) = args.torch_optional("expert_scale")? {
        let y_gtd = routing.plan.apply(&x_gtd, |e, rows| rows * scale_e.get(e as i64));
        outputs.push(("y", y_gtd.squeeze_dim(0).into()));
    }
    Ok(outputs)
}

//! Laws of symmetry and of masks: what may decide besides the values of tokens.
//!
//! - Tokens in another order give the outputs in that order, if no capacity binds.
//! - Experts in another order, parameters and networks alike, give the same outputs.
//! - Evaluation draws nothing.
//! - A padded token visits no expert, and the others and all losses are those of the reference, which
//!   is given the same mask; or the router refuses masks.
//!
//! A router that is meant to break one of the first three says so in [`Symmetry`], and must.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts.

use super::{Case, Constants, GROUPS, TOKENS, aux_error, expert, host_expert, matrix_error, same};
use crate::config::Symmetry;
use crate::convert::to_host;
use crate::noise::{Noise, SeededNoise};
use crate::router::{Phase, RouteCx, Routing};
use crate::tolerance::tolerance;
use moe_core::{CapacityPolicy, RouteError};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// Room for everyone.
const UNLIMITED: CapacityPolicy =
    CapacityPolicy { limit: moe_core::Limit::Unlimited, order: moe_core::DropOrder::Arrival };

/// Tokens of a group before its padding.
const REAL: usize = TOKENS as usize - 3;

/// Which tokens of a group are padding.
static PADDING: [bool; TOKENS as usize] = {
    let mut padding = [true; TOKENS as usize];
    let mut t = 0;
    while t < REAL {
        padding[t] = false;
        t += 1;
    }
    padding
};

impl Case {
    pub(super) fn symmetry_violations(&self) -> Result<Vec<String>, RouteError> {
        let Symmetry { position, number, draws } = self.config.symmetry();
        let found = [
            (position, !self.follows_its_tokens()?, "the order of tokens decides"),
            (number, !self.follows_its_experts()?, "the numbers of experts decide"),
            (draws, !self.is_still_in_evaluation()?, "evaluation draws"),
        ];
        let wrong = found.into_iter().filter(|(claim, found, _)| claim != found);
        Ok(wrong.map(|(claim, _, what)| format!("{what}: claimed {claim}")).collect())
    }

    /// Outputs in evaluation with room for everyone, tokens last first if `reversed`.
    fn unlimited(
        &self,
        reversed: bool,
        noise: &dyn Noise,
        expert: &dyn Fn(usize, &Tensor) -> Tensor,
    ) -> Result<Tensor, RouteError> {
        let turn =
            |x: &Tensor, axes: &[i64]| if reversed { x.flip(axes) } else { x.shallow_clone() };
        let quiet = SeededNoise::eval(8, 0);
        let before_gtd = turn(&self.before.x_gtd, &[1]);
        let previous = self.before.router.route(&before_gtd, &RouteCx::new(Phase::Eval, &quiet))?;
        let attention_gmtt = turn(&self.attention_gmtt, &[2, 3]);
        let token_gt = turn(&self.token_gt, &[1]);
        let cx = RouteCx {
            capacity: Some(&UNLIMITED),
            token_gt: Some(&token_gt),
            previous: Some(&previous),
            attention_gmtt: Some(&attention_gmtt),
            ..RouteCx::new(Phase::Eval, noise)
        };
        let x_gtd = turn(&self.x_gtd.detach(), &[1]);
        let (y_gtd, _) = self.router.forward(&x_gtd, &cx, &|x, plan| plan.apply(x, expert))?;
        Ok(turn(&y_gtd, &[1]))
    }

    fn follows_its_tokens(&self) -> Result<bool, RouteError> {
        let noise = SeededNoise::eval(7, 0);
        let of = |reversed| self.unlimited(reversed, &noise, &expert);
        Ok(same(&of(false)?, &of(true)?))
    }

    fn follows_its_experts(&self) -> Result<bool, RouteError> {
        let (noise, experts) = (SeededNoise::eval(7, 0), self.experts);
        let want = self.unlimited(false, &noise, &expert)?;
        self.reverse_experts();
        let got = self.unlimited(false, &noise, &|e, rows| expert(experts - 1 - e, rows));
        self.reverse_experts();
        Ok(same(&want, &got?))
    }

    /// Turns round, in place, every axis of a parameter that belongs to experts: it is as long as there
    /// are experts or their slots, or it is that of codes, which belong to experts in turn or in blocks.
    fn reverse_experts(&self) {
        for param in self.store.entries().iter() {
            let slots = self.config.settings().get("slots_per_expert").and_then(Value::as_i64);
            let length = self.experts as i64 * slots.unwrap_or(1);
            let axis = param.tensor.size().iter().position(|axis| *axis == length);
            let codes = (param.name == "codebook").then_some(0);
            if let Some(axis) = codes.or(axis) {
                let reversed = param.tensor.detach().flip([axis as i64]);
                tch::no_grad(|| param.tensor.shallow_clone().copy_(&reversed));
            }
        }
    }

    fn is_still_in_evaluation(&self) -> Result<bool, RouteError> {
        let of = |seed| self.unlimited(false, &SeededNoise::train(seed, 0), &expert);
        Ok(same(&of(7)?, &of(8)?))
    }

    pub(super) fn padding_violations(&self) -> Result<Vec<String>, RouteError> {
        let mut violations = Vec::new();
        for phase in [Phase::Train { step: 0 }, Phase::Eval] {
            match self.padded_layer(phase) {
                Err(RouteError::Setting { key: "padding", .. }) if !self.router.takes_padding() => {
                }
                layer => self.check_padded(phase, &layer?, &mut violations)?,
            }
        }
        Ok(violations)
    }

    fn padded_layer(&self, phase: Phase) -> Result<(Tensor, Routing), RouteError> {
        let place_1t = Tensor::arange(TOKENS, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let padding_gt = place_1t.ge(REAL as i64).expand([GROUPS, TOKENS], false);
        let previous = self.before.routing(TOKENS)?;
        let cx = RouteCx {
            token_gt: Some(&self.token_gt),
            previous: Some(&previous),
            attention_gmtt: Some(&self.attention_gmtt),
            padding_gt: Some(&padding_gt),
            ..RouteCx::new(phase, &self.noise)
        };
        self.router.forward(&self.x_gtd, &cx, &|x, plan| plan.apply(x, expert))
    }

    fn check_padded(
        &self,
        phase: Phase,
        (y_gtd, routing): &(Tensor, Routing),
        violations: &mut Vec<String>,
    ) -> Result<(), RouteError> {
        let wanted = self.of_reference(phase, &Constants::new(), |reference, input| {
            reference.forward(&input.padding(Some(&PADDING)), &host_expert)
        })?;
        let mut worst = aux_error(routing, &wanted, violations);
        let plans = routing.plan.to_host().map_err(RouteError::from)?;
        for (g, ((y_td, _), plan)) in wanted.iter().zip(&plans).enumerate() {
            worst = worst.max(matrix_error(&to_host(&y_gtd.get(g as i64)), y_td));
            if plan.mask_te().rows().into_iter().skip(REAL).any(|row| row.sum() != 0.0) {
                violations.push(format!("padding visits an expert in {phase:?}"));
            }
        }
        if worst > tolerance(Kind::Double).value {
            violations.push(format!("with padding, values differ by {worst:.1e} in {phase:?}"));
        }
        Ok(())
    }
}

//! MomentumSMoE: Integrating Momentum in Sparse Mixture of Experts. Teo, Nguyen, 2024 (NeurIPS), arXiv
//! 2410.14574.
//!
//! A stack of sparse layers `x <- x + f(x)` is read as gradient descent; the residual is replaced by
//! the step of an accelerated optimiser. The router is unchanged. With `s` = +1 or -1 (`sign`):
//!
//! ```text
//! plain:     x + s f                                                                       (1)
//! momentum:  p <- mu p + gamma f;  x + s p                                                 (2)
//! adam:      m <- mu m + gamma f;  p <- b1 p + (1-b1) f;  v <- b2 v + (1-b2) f^2;
//!            x + s gamma1 p / sqrt(v + eps) in the first `adam_layers`, else x + s m       (3)
//! robust:    p <- s f + a p, f at (input + e b p);  x + b p                                (4)
//!            a = kappa mu^3/(kappa-1),  b = kappa (1-mu)^2 (1+mu)/L,
//!            e = mu^3/((kappa-1) (1-mu)^2 (1+mu))
//! complex:   p + iq <- (mu + i mu_im)(p + iq) + gamma f;  x + s p                          (5)
//! sharpness: f at u + rho f(u)/|f(u)|, the norm over the whole tensor (`sam_rho`)          (6)
//! ```
//!
//! The state is zero at the start of every forward pass, goes from layer to layer (never from token to
//! token), and stays on the graph. These are rules for the residual, not routers: they wrap whatever
//! computes `f`. [`host::block`] and [`torch::block`] take `f` as a closure, the [`Residual`] of a model
//! calls them.
//!
//! [`Residual`]: crate::Residual
//!
//! Axis letters: `t` tokens, `d` width.

mod config;
pub mod host;
mod residual;
pub mod torch;

pub use config::{Config, NormPlace, Rule, Sign};

use crate::config::{ConfigError, Preset, check_positive, resolve};
use crate::router::{Method, Paper};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "momentum",
    title: "MomentumSMoE: Integrating Momentum in Sparse Mixture of Experts",
    authors: "Teo and Nguyen 2024",
    arxiv: "2410.14574",
    idea: "A stack of sparse layers is read as gradient descent, and its residual as a step of an optimiser with momentum.\n\
        A plain residual stack is plain gradient descent, which is slow and easily thrown off.\n\
        A running sum of the layers' outputs is carried across depth and added in the place of each output.\n\
        Rules are heavy ball, Adam in the first sparse layer, robust momentum and complex momentum; the router is not changed.\n\
        Accelerated steps are meant to make deep stacks more stable and robust at next to no cost.",
    state: "no parameters. Within a pass, per token and carried from sparse layer to sparse layer: p [t, d]; for Adam also v and m [t, d], for complex momentum an imaginary part [t, d]; zero at the start of every pass",
    cost: "a few multiply-adds for each of the d features; with `sam_rho` a second call of the whole layer",
    equations: &[
        ("(1)-(5)", "torch::update"),
        ("(4), a b e", "Robust::new"),
        ("(4), the shift", "torch::block"),
        ("(6)", "torch::evaluate"),
        ("dense layers", "torch::dense"),
    ],
    deviations: &[
        "the presets `model` and `*_model` (the short names) take the norms of the model around them, `norm = \"model\"`: `pre` or `post`, no outer residual, so that a comparison with the plain residual differs in the rule alone; with mu = 0 `model` is the plain residual. All other presets keep the norms they were published with, whatever the model's; `norm` and `outer` may be set beside any preset",
        "paper: p is added and there are no norms (`paper`, `adam_paper`, `robust_paper`); released language models: p is subtracted, every step goes through a LayerNorm, and a second residual adds the input once more (`reference`, `adam`, `robust`, `complex`, `negative`); released vision models: norms before the layer and after the step (`vmoe`)",
        "released Adam acts in the first sparse layer only (`adam_layers` = 1, heavy ball behind it); it also drops the inner x (`cancel_residual`), which returns through the outer residual. `adam_model` keeps x, because a model without an outer residual would lose its stream",
        "robust: the shift e b p is added to what the layer reads, behind a norm if one stands before the layer",
        "sharpness (6) is off in the released code. Its norm runs over all tokens of the batch, so that it is not causal, and it runs every sparse layer twice; the second run decides routes and losses",
        "attention keeps the plain residual of the model; the models here have no dropout for a mask to act on",
        "fewer than 2 sparse layers are refused for every rule but `plain`: nothing would be carried",
    ],
    unverified: &[
        "the sign and the absence of norms in the paper's recurrences",
        "`adam_paper`: Adam in all layers, and without a weight decay that the paper may have",
        "sam_rho = 0.05 in `sharpness_model`: the usual value of sharpness-aware minimisation, not known from this paper",
    ],
    presets: Config::PRESETS,
    compared: &["model", "adam_model", "robust_model"],
    control: false,
    method: Method::Residual(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

fn check_kappa(kappa: f64) -> Result<(), ConfigError> {
    if kappa == 1.0 || !kappa.is_finite() {
        return Err(ConfigError::setting("kappa", format!("{kappa} divides by kappa - 1")));
    }
    Ok(())
}

/// The constants of the robust rule (4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Robust {
    /// Share of `p` that stays.
    pub a: f64,
    /// Step size.
    pub b: f64,
    /// Shift of the point of evaluation, in steps.
    pub e: f64,
}

impl Robust {
    /// From the decay, the condition number and the Lipschitz constant.
    ///
    /// # Errors
    /// `kappa` = 1, `|mu|` = 1, `lipschitz` not above 0: they divide by zero.
    pub fn new(mu: f64, kappa: f64, lipschitz: f64) -> Result<Self, ConfigError> {
        check_kappa(kappa)?;
        check_positive("lipschitz", lipschitz)?;
        if mu.abs() == 1.0 {
            return Err(ConfigError::setting("mu", format!("|{mu}| = 1 leaves no step")));
        }
        let brake = (1.0 - mu).powi(2) * (1.0 + mu);
        Ok(Self {
            a: kappa * mu.powi(3) / (kappa - 1.0),
            b: kappa * brake / lipschitz,
            e: mu.powi(3) / ((kappa - 1.0) * brake),
        })
    }

    /// Factor on the incoming `p` in the shift, `e b`.
    pub fn shift(&self) -> f64 {
        self.e * self.b
    }
}

/// Spectral radius of `p <- mu p + step x, x <- x - p` (the new `p`): the larger root of
/// `z^2 - (1 + mu - step) z + mu`.
pub fn spectral_radius(mu: f64, step: f64) -> f64 {
    let trace = 1.0 + mu - step;
    let discriminant = trace * trace - 4.0 * mu;
    if discriminant < 0.0 {
        return mu.sqrt(); // conjugate roots; their product is mu
    }
    (trace.abs() + discriminant.sqrt()) / 2.0
}

/// Whether that iteration converges.
pub fn is_stable(mu: f64, step: f64) -> bool {
    0.0 < step && step < 2.0 * (1.0 + mu) && mu.abs() < 1.0
}

#[cfg(test)]
mod tests;

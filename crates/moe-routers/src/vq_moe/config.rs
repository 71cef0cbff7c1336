//! Settings, and the trainable form made from them.

use super::torch::VqMoe;
use crate::config::{
    ConfigError, Part, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    to_settings,
};
use crate::convert::to_indices;
use crate::norm::TorchNorm;
use crate::params::{Init, Params, Role};
use crate::router::{Dims, Router};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Deviation of the initial codes and gates.
const INIT_STD: f64 = 0.02;
/// Length of the initial expert embeddings, which are orthogonal.
const EMBEDDING_GAIN: f64 = 0.32;
/// Beyond this no codebook could be allocated.
const MOST_CODES: usize = 1 << 24;

/// What the discrete expert reads (5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Token and code mixed.
    CodeMix,
    /// The code, with the token's gradient.
    Quantized,
}

/// How far a token is from a code (3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Squared Euclidean.
    L2,
    /// One minus the cosine.
    Cos,
}

/// Which expert a code belongs to (6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeMap {
    /// `code mod E`.
    Mod,
    /// The codebook is E equal blocks.
    Block,
}

impl CodeMap {
    /// The expert of every code, `[c]`.
    ///
    /// # Errors
    /// Names the codebook if it cannot be cut into equal blocks.
    pub fn expert_c(self, codes: usize, experts: usize) -> Result<Vec<usize>, ConfigError> {
        let whole = experts > 0 && codes.is_multiple_of(experts);
        match self {
            Self::Mod => Ok((0..codes).map(|code| code % experts).collect()),
            Self::Block if whole => Ok((0..codes).map(|code| code / (codes / experts)).collect()),
            Self::Block => {
                let reason = format!("{codes} codes are not {experts} equal blocks");
                Err(ConfigError::setting("codebook", reason))
            }
        }
    }
}

/// How the continuous branch scores experts (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// By expert embeddings of length 1.
    Embedding,
    /// By a linear map.
    Linear,
}

/// Which branches run (7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Both.
    Pretrain,
    /// The discrete one.
    Discrete,
}

/// The residual around the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// None.
    None,
    /// `LN(x + y)`.
    Post,
    /// `x + y(LN x)`.
    Pre,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the discrete expert reads.
    pub input: Input,
    /// `lambda` of (5).
    pub mix_rate: f64,
    /// Weight of the commitment term (4).
    pub beta: f64,
    /// Distance of token and code.
    pub distance: Distance,
    /// LayerNorm before the discrete expert.
    pub ln_in: bool,
    /// LayerNorm behind it.
    pub ln_out: bool,
    /// Expert of a code.
    pub code_map: CodeMap,
    /// Score of the continuous branch.
    pub score: Score,
    /// Which branches run.
    pub mode: Mode,
    /// The residual around the layer.
    pub block: Block,
    /// Experts per token in the continuous branch.
    pub top_k: usize,
    /// Epsilon of the norm.
    pub ln_eps: f64,
    /// Floor of an embedding's length.
    pub embed_eps: f64,
    /// Codes of the codebook, `K`; as many as the scripts have experts.
    pub codes: usize,
    /// Weight of (4) in the objective.
    pub vq_weight: f64,
    /// Weight of (8) in the objective.
    pub balance_weight: f64,
    /// What (8) divides the scores by.
    pub balance_temperature: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["reference", "paper", "paper_finetune"];

    fn preset(name: &str) -> Self {
        let released = name == "reference";
        Self {
            input: if released { Input::CodeMix } else { Input::Quantized },
            mix_rate: 0.05,
            beta: 0.25,
            distance: Distance::L2,
            ln_in: released,
            ln_out: released,
            code_map: if released { CodeMap::Mod } else { CodeMap::Block },
            score: if released { Score::Embedding } else { Score::Linear },
            mode: if name == "paper_finetune" { Mode::Discrete } else { Mode::Pretrain },
            block: Block::None,
            top_k: 1,
            ln_eps: 1e-5,
            embed_eps: 1e-4,
            codes: 16,
            vq_weight: 0.08,
            balance_weight: if released { 0.0 } else { 0.01 },
            balance_temperature: if released { 0.3 } else { 1.0 },
        }
    }
}

impl Config {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    pub fn check_values(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.mix_rate) {
            let reason = format!("{} is outside 0..=1", self.mix_rate);
            return Err(ConfigError::setting("mix_rate", reason));
        }
        check_weight("beta", self.beta)?;
        check_weight("ln_eps", self.ln_eps)?;
        check_weight("embed_eps", self.embed_eps)?;
        check_weight("vq_weight", self.vq_weight)?;
        check_weight("balance_weight", self.balance_weight)?;
        check_positive("balance_temperature", self.balance_temperature)
    }

    /// Refuses a codebook that leaves an expert without a code.
    fn check_codes(&self, experts: usize) -> Result<(), ConfigError> {
        let codes = self.codes;
        let reason = if !(experts..=MOST_CODES).contains(&codes) {
            format!("{codes} is outside {experts}..={MOST_CODES}: every expert needs a code")
        } else if self.code_map.expert_c(codes, experts).is_err() {
            format!("{codes} is not a multiple of {experts} (experts), as `code_map = block` needs")
        } else {
            return Ok(());
        };
        Err(ConfigError::setting("codes", reason))
    }

    /// `role`, or that of frozen state where the continuous branch is gone.
    fn role(&self, role: Role) -> Role {
        if self.mode == Mode::Discrete { Role::Buffer } else { role }
    }

    /// The continuous branch's router: its matrix, `[e, d]`, and its bias, `[e]`.
    fn router(&self, params: &Params<'_>, dims: Dims) -> (Tensor, Option<Tensor>) {
        let shape = [dims.experts, dims.width];
        let role = self.role(Role::Decayed);
        match self.score {
            Score::Embedding => {
                (params.add("embeddings", &shape, Init::Orthogonal(EMBEDDING_GAIN), role), None)
            }
            Score::Linear => {
                let router_ed = params.add("router", &shape, Init::Normal(INIT_STD), role);
                let zero = Init::Const(0.0);
                let bias_e = params.add("bias", &[dims.experts], zero, self.role(Role::Undecayed));
                (router_ed, Some(bias_e))
            }
        }
    }

    /// The branch gate's matrix, `[2, d]`, and its bias, `[2]`.
    fn gate(&self, params: &Params<'_>, width: i64) -> (Tensor, Tensor) {
        let gate_2d =
            params.add("gate_w", &[2, width], Init::Normal(INIT_STD), self.role(Role::Decayed));
        (gate_2d, params.add("gate_b", &[2], Init::Const(0.0), self.role(Role::Undecayed)))
    }

    /// The norm of (6), where there is one.
    fn norm(&self, params: &Params<'_>, width: i64) -> TorchNorm {
        if !(self.ln_in || self.ln_out) {
            return TorchNorm::default();
        }
        TorchNorm {
            weight_d: Some(params.constant("ln_weight", &[width], 1.0)),
            bias_d: Some(params.constant("ln_bias", &[width], 0.0)),
        }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        self.check_values()?;
        check_top_k(self.top_k, experts)?;
        if self.block != Block::None {
            let reason = "must be `none`: in a model the residual around the layer is the model's \
                          (`residual`, `model.norm`)";
            return Err(ConfigError::setting("block", reason));
        }
        self.check_codes(experts)
    }

    /// The continuous branch's choices and the discrete expert.
    fn active_experts(&self, _: usize) -> f64 {
        match self.mode {
            Mode::Pretrain => self.top_k as f64 + 1.0,
            Mode::Discrete => 1.0,
        }
    }

    fn trained_experts(&self, _: usize) -> f64 {
        self.top_k as f64 + 1.0
    }

    fn causal(&self) -> bool {
        true
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match (self.mode, part) {
            (Mode::Pretrain, _) => None,
            (Mode::Discrete, Part::Capacity) => Some("its codes alone decide, and none is dropped"),
            (Mode::Discrete, Part::Balance | Part::ZLoss) => {
                Some("its codes are frozen; no gradient reaches them")
            }
        }
    }

    /// In discrete mode the router and the gate are registered too, frozen and unread, and the
    /// codebook is frozen: the names are those of pre-training, so that its weights can be loaded.
    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let Dims { width, experts } = dims;
        let expert_c = self.code_map.expert_c(self.codes, experts as usize);
        let expert_c = expert_c.expect("a checked codebook");
        let like = Tensor::zeros([0], (Kind::Int64, params.device()));
        let codes = [self.codes as i64, width];
        // Weight decay would pull codes that no token chooses to zero.
        let role = self.role(Role::Undecayed);
        let (gate_2d, bias_2) = self.gate(params, width);
        Box::new(VqMoe {
            codebook_cd: params.add("codebook", &codes, Init::Normal(INIT_STD), role),
            expert_c: to_indices(&expert_c, &[self.codes as i64], &like),
            router: Some(self.router(params, dims)),
            gate: Some((gate_2d, Some(bias_2))),
            norm: self.norm(params, width),
            experts,
            config: self.clone(),
        })
    }
}

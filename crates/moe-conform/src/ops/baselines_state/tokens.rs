//! Routers that read token ids: hash and StableMoE (`moe_routers::hash`, `moe_routers::stable_moe`).

use super::serve::Serve;
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Out, Outputs};
use crate::ops::{config, dense_forms, host_universal, replace, torch_universal, value_of};
use moe_routers::config::Preset;
use moe_routers::hash::{self, Mode};
use moe_routers::{RouterConfig, base, stable_moe};
use ndarray::Array1;
use tch::{Device, Kind, Tensor};

/// A vector of whole numbers in `0..below`, not empty.
fn whole(args: &Args<'_>, name: &str, below: usize) -> Result<Vec<usize>, OpError> {
    filled(args, name)?;
    Ok(args.indices(name, below)?.into_iter().collect())
}

fn filled(args: &Args<'_>, name: &str) -> Result<Vec<f64>, OpError> {
    let values = args.vector(name)?.to_vec();
    if values.is_empty() {
        return Err(OpError::new(format!("{name}: shape [0] is empty")));
    }
    Ok(values)
}

struct HashInput {
    config: hash::Config,
    experts: usize,
    token_t: Option<Vec<usize>>,
}

impl HashInput {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        if !args.has_key("experts") {
            return Err(OpError::new("experts: missing, a number is needed"));
        }
        let experts = args.usize("experts", 0)?;
        let mut config = hash::Config::preset("modulo");
        // Ids beyond this are no whole numbers in doubles.
        let mut vocab = 1 << 53;
        match args.word("mode", "table", &["table", "balanced", "modulo"])? {
            "table" => {
                config.mode = Mode::Table;
                config.table = whole(args, "table", experts)?;
                vocab = config.table.len();
            }
            "balanced" => {
                config.mode = Mode::Balanced;
                config.frequencies = filled(args, "frequencies")?;
                vocab = config.frequencies.len();
            }
            _ => {}
        }
        config.check(experts)?;
        let token_t = args.optional("tokens", |args, name| whole(args, name, vocab))?;
        Ok(Self { config, experts, token_t })
    }

    /// The router has no use for what the tokens are, only for how many.
    fn serve(&self, token_t: &[usize]) -> Serve<'_> {
        Serve {
            config: &self.config,
            params: Vec::new(),
            x_td: Tensor::zeros([token_t.len() as i64, 1], (Kind::Double, Device::Cpu)),
            experts: self.experts,
            train: false,
            token_t: Some(token_t.to_vec()),
        }
    }

    fn table(&self) -> Outputs {
        if self.config.mode != Mode::Balanced {
            return Vec::new();
        }
        let (table_v, load_e) = hash::balanced_table(&self.config.frequencies, self.experts);
        let table_v: Vec<f64> = table_v.into_iter().map(|e| e as f64).collect();
        vec![("table", table_v.into()), ("expected_load", load_e.into())]
    }
}

pub(super) fn hash_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = HashInput::read(args)?;
    let mut outputs = input.table();
    if let Some(token_t) = &input.token_t {
        outputs.extend(host_universal(&[input.serve(token_t).reference()?]));
    }
    Ok(outputs)
}

pub(super) fn hash_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = HashInput::read(args)?;
    let mut outputs = input.table();
    if let Some(token_t) = &input.token_t {
        outputs.extend(torch_universal(&input.serve(token_t).torch()?));
    }
    Ok(outputs)
}

struct StableInput {
    config: stable_moe::Config,
    tokens: usize,
    experts: usize,
    stage_1: bool,
}

impl StableInput {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (x_td, centroids_ed) = (args.matrix("x")?, args.matrix("centroids")?);
        let (tokens, experts) = (x_td.nrows(), centroids_ed.nrows());
        expect_shape("centroids", centroids_ed.shape(), &[experts, x_td.ncols()])?;
        let stage = args.usize("stage", 1)?;
        if !(1..=2).contains(&stage) {
            return Err(OpError::new(format!("stage: {stage} is neither 1 nor 2")));
        }
        let mut config: stable_moe::Config = config(args, &["stage"], experts)?;
        // Every token is a word of its own, whose embedding is given.
        (config.vocab, config.word_width) = (tokens, Self::word_width(args, (tokens, experts))?);
        (config.stage1_steps, config.capacity_factor) = (1, None);
        if stage == 2 {
            args.raw("word_emb").and(args.raw("distilled"))?;
        }
        Ok(Self { config, tokens, experts, stage_1: stage == 1 })
    }

    /// Width of the word embeddings; 0 where the student is not given.
    fn word_width(args: &Args<'_>, (tokens, experts): (usize, usize)) -> Result<usize, OpError> {
        let word_emb = args.optional("word_emb", Args::matrix)?;
        let distilled = args.optional("distilled", Args::matrix)?;
        let (Some(word_emb), Some(distilled)) = (word_emb, distilled) else { return Ok(0) };
        let width = word_emb.ncols();
        expect_shape("word_emb", word_emb.shape(), &[tokens, width])?;
        expect_shape("distilled", distilled.shape(), &[experts, width])?;
        Ok(width)
    }

    fn has_student(&self) -> bool {
        self.config.word_width > 0
    }

    fn serve(&self, args: &Args<'_>) -> Result<Serve<'_>, OpError> {
        let mut params = vec![("centroids", args.torch("centroids")?)];
        if self.has_student() {
            params.push(("word_emb", args.torch("word_emb")?));
            params.push(("distilled", args.torch("distilled")?));
        }
        let (experts, train) = (self.experts, self.stage_1);
        let token_t = Some((0..self.tokens).collect());
        Ok(Serve { config: &self.config, params, x_td: args.torch("x")?, experts, train, token_t })
    }

    /// Weight of the loss of this name beside a summed task loss.
    fn weight(&self, name: &str) -> f64 {
        if name == "balance" { self.config.balance_weight } else { self.config.distill_weight }
    }
}

/// How many tokens chose each expert, before capacity.
fn chosen_load(outputs: &Outputs, experts: usize) -> Out {
    let mut load_e = Array1::zeros(experts);
    value_of(outputs, "indices").iter().for_each(|&e| load_e[e as usize] += 1.0);
    load_e.into()
}

pub(super) fn stable_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = StableInput::read(args)?;
    let routing = input.serve(args)?.reference()?;
    let mut outputs = host_universal(std::slice::from_ref(&routing));
    let load = chosen_load(&outputs, input.experts);
    replace(&mut outputs, "load", load);
    let combine_te = routing.plan.combine_te();
    outputs.push(("residual_weight", base::residual_weight_host(combine_te.view()).into()));
    if input.has_student() {
        let student_te = args.matrix("word_emb")?.dot(&args.matrix("distilled")?.t());
        outputs.push(("student_scores", student_te.into()));
    }
    if input.stage_1 {
        let total: f64 = routing.aux.iter().map(|(name, v)| input.weight(name) * v).sum();
        outputs.extend(routing.aux.iter().map(|(name, v)| (*name, (*v).into())));
        outputs.push(("total", total.into()));
    }
    outputs.push(("scores", routing.logits_te.into()));
    Ok(outputs)
}

pub(super) fn stable_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = StableInput::read(args)?;
    let routing = input.serve(args)?.torch()?;
    let mut outputs = torch_universal(&routing);
    let load = chosen_load(&outputs, input.experts);
    replace(&mut outputs, "load", load);
    let (_, combine_te) = dense_forms(&routing.plan, input.experts as i64);
    outputs.push(("residual_weight", base::residual_weight(&combine_te).into()));
    if input.has_student() {
        let student_te = args.torch("word_emb")?.matmul(&args.torch("distilled")?.tr());
        outputs.push(("student_scores", student_te.into()));
    }
    if input.stage_1 {
        let zero = Tensor::zeros([], (combine_te.kind(), Device::Cpu));
        let total = routing.aux.iter().fold(zero, |sum, a| sum + &a.value * input.weight(a.name));
        outputs.extend(routing.aux.iter().map(|a| (a.name, a.value.shallow_clone().into())));
        outputs.push(("total", total.into()));
    }
    outputs.push(("scores", routing.logits_gte.squeeze_dim(0).into()));
    Ok(outputs)
}

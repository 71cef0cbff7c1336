//! The layer in every way it can be run, and its bounds.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `h` hidden width, `n` routed rows.

use super::rounds::Candidate;
use super::size::Size;
use super::{Dtype, Pass};
use anyhow::Result;
use moe_core::RouteError;
use moe_models::{Activation, ExpertExec, ExpertShape, Experts, LossWeights, MoeLayer};
use moe_routers::{Dims, ParamStore, Phase, RouteCx, SeededNoise, Settings, router_config};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Name of the default path.
pub const DEFAULT: &str = "moe";

/// Weights and tokens of one size and dtype, shared by all candidates.
#[derive(Debug)]
pub struct Bank {
    /// The size.
    pub size: Size,
    /// The element type.
    pub dtype: Dtype,
    store: Rc<ParamStore>,
    experts: Experts,
    /// The parameters in `f32` that kernels with products in `bf16` take.
    wide: Option<(Rc<ParamStore>, Experts)>,
    x_gtd: Tensor,
}

/// What a candidate is compared with.
#[derive(Debug)]
pub enum Bound {
    /// The dense products, timed in turn.
    Products(Candidate),
    /// A time that memory sets.
    Seconds(f64),
    /// The first candidate.
    First,
}

impl Bank {
    /// Random weights and tokens.
    pub fn new(size: &Size, dtype: Dtype, device: Device) -> Self {
        let store = ParamStore::new(0, device, dtype.kind());
        let shape = ExpertShape {
            experts: size.experts,
            width: size.width,
            hidden: size.hidden,
            activation: Activation::Swiglu,
            bias: false,
            output_scale: 1.0,
        };
        let experts = Experts::new(&store.root().child("experts"), shape, ExpertExec::Loop);
        let wide = (device == Device::Cpu && dtype == Dtype::Bf16).then(|| {
            let store = ParamStore::new(0, device, Kind::Float);
            let experts = Experts::new(&store.root().child("experts"), shape, ExpertExec::Loop);
            (Rc::new(store), experts)
        });
        let like = Tensor::zeros([1, size.tokens, size.width], (Kind::Float, device));
        let x_gtd = like.randn_like().to_kind(dtype.kind());
        Self { size: size.clone(), dtype, store: Rc::new(store), experts, wide, x_gtd }
    }

    /// The way that training takes with this element type.
    fn default_exec(&self) -> ExpertExec {
        match &self.wide {
            Some(_) => ExpertExec::FusedBf16,
            None => ExpertExec::best(self.x_gtd.device(), self.dtype.kind()),
        }
    }

    /// Whether parameters of this element type can be run this way: the kernels take `f32` parameters on
    /// a CPU, and with `bf16` there is no point in products of `f32`.
    fn offers(&self, exec: ExpertExec) -> bool {
        match exec {
            ExpertExec::Fused => self.x_gtd.kind() == Kind::Float && self.on_cpu(),
            ExpertExec::FusedBf16 => self.on_cpu(),
            ExpertExec::Cuda => self.x_gtd.kind() == Kind::BFloat16,
            ExpertExec::Loop | ExpertExec::Grouped | ExpertExec::Padded => true,
        }
    }

    /// The tokens as routers read them.
    fn wide_tokens(&self) -> Tensor {
        self.x_gtd.to_kind(Kind::Float)
    }

    fn on_cpu(&self) -> bool {
        self.x_gtd.device() == Device::Cpu
    }

    /// Parameters for this way of running them.
    fn of(&self, exec: ExpertExec) -> (&Rc<ParamStore>, &Experts) {
        let wide = self.wide.as_ref().filter(|_| exec == ExpertExec::FusedBf16);
        wide.map_or((&self.store, &self.experts), |(store, experts)| (store, experts))
    }

    /// A layer over the shared experts with a softmax top-k router of its own.
    fn layer(&self, exec: ExpertExec) -> Result<MoeLayer> {
        let settings = Settings::from_iter([("top_k".to_owned(), self.size.top_k.into())]);
        let router = router_config("smoe", &settings)?;
        let dims = Dims { width: self.size.width, experts: self.size.experts };
        // Every layer draws the same router: names decide, and the names are the same.
        let store = ParamStore::new(0, self.x_gtd.device(), self.dtype.kind());
        Ok(MoeLayer {
            index: 0,
            router: router.build(&store.root().child("router").wide(), dims),
            experts: self.of(exec).1.with_exec(exec),
            capacity: None,
            losses: LossWeights::default(),
        })
    }

    /// Bytes of expert weights that a decoding step reads: those of the experts that its tokens visit,
    /// each once.
    pub fn decode_bytes(&self) -> Option<f64> {
        if !self.size.decode() {
            return None;
        }
        let layer = self.layer(ExpertExec::Loop).ok()?;
        let noise = SeededNoise::eval(0, 0);
        let routing =
            layer.router.route(&self.wide_tokens(), &RouteCx::new(Phase::Eval, &noise)).ok()?;
        let visited = routing.plan.load_e().gt(0).sum(Kind::Int64).int64_value(&[]);
        let weights = visited * 3 * self.size.width * self.size.hidden;
        Some(weights as f64 * self.dtype.bytes() as f64)
    }
}

/// The bound of one pass; `gbps` is the measured read bandwidth.
pub fn bound(bank: &Bank, pass: Pass, gbps: f64) -> Bound {
    match (pass, bank.decode_bytes()) {
        (Pass::Route, _) => Bound::First,
        (Pass::Forward, Some(bytes)) => Bound::Seconds(bytes / gbps / 1e9),
        _ => Bound::Products(dense(bank, pass)),
    }
}

/// The experts' products with all rows at one expert: two for gate and up together and down, and
/// twice as many again for the gradients.
fn dense(bank: &Bank, pass: Pass) -> Candidate {
    let (n, d, h) = (bank.size.rows(), bank.size.width, bank.size.hidden);
    let random = |rows, columns| {
        let options = (Kind::Float, bank.x_gtd.device());
        Tensor::randn([rows, columns], options).to_kind(bank.dtype.kind())
    };
    let (x_nd, up_fd, h_nh, down_dh) = (random(n, d), random(2 * h, d), random(n, h), random(d, h));
    let (dy_nd, dup_nf) = (random(n, d), random(n, 2 * h));
    let device = bank.x_gtd.device();
    Candidate::new("dense", move || {
        let _guard = tch::no_grad_guard();
        let _ = x_nd.matmul(&up_fd.tr());
        let _ = h_nh.matmul(&down_dh.tr());
        if pass == Pass::ForwardBackward {
            let _ = dy_nd.matmul(&down_dh);
            let _ = dy_nd.tr().matmul(&h_nh);
            let _ = dup_nf.matmul(&up_fd);
            let _ = dup_nf.tr().matmul(&x_nd);
        }
        wait_for(device);
    })
}

/// Every way to run the layer in this pass; those that refuse this dtype are left out by rule.
///
/// # Errors
/// A router that does not fit the size.
pub fn candidates(bank: &Bank, pass: Pass) -> Result<Vec<Candidate>> {
    if pass == Pass::Route {
        return Ok(vec![route(bank)?]);
    }
    let mut found = Vec::new();
    let default = bank.default_exec();
    for exec in ExpertExec::on(bank.x_gtd.device()) {
        let name = if exec == default { DEFAULT } else { exec.name() };
        if bank.offers(exec) {
            found.push(candidate(bank, pass, exec, name)?);
        }
    }
    Ok(found)
}

/// Work on a GPU is done when the device says so. What is outside the experts there is the host's time to
/// put it on the stream.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

fn route(bank: &Bank) -> Result<Candidate> {
    let (layer, x_gtd) = (bank.layer(ExpertExec::Loop)?, bank.wide_tokens());
    Ok(Candidate::new("smoe", move || {
        let _guard = tch::no_grad_guard();
        let noise = SeededNoise::eval(0, 0);
        let routing = layer.router.route(&x_gtd, &RouteCx::new(Phase::Eval, &noise));
        drop(routing.expect("a router without limits"));
        wait_for(x_gtd.device());
    }))
}

fn candidate(bank: &Bank, pass: Pass, exec: ExpertExec, name: &str) -> Result<Candidate> {
    let layer = bank.layer(exec)?;
    let (x_gtd, store) = (bank.x_gtd.shallow_clone(), Rc::clone(bank.of(exec).0));
    let shares = Rc::new(Cell::new([0.0; 2]));
    let sums = Rc::clone(&shares);
    let run = move || {
        let start = Instant::now();
        let outside = match pass {
            Pass::ForwardBackward => forward_backward(&layer, &x_gtd, &store),
            _ => tch::no_grad(|| forward(&layer, &x_gtd).map(|(_, seconds)| seconds)),
        };
        wait_for(x_gtd.device());
        let [a, b] = sums.get();
        let outside = outside.expect("a router without limits");
        sums.set([a + outside, b + start.elapsed().as_secs_f64()]);
    };
    let narrower = exec == ExpertExec::FusedBf16 && bank.dtype == Dtype::F32;
    let weight_share = if narrower { 0.5 } else { 1.0 };
    Ok(Candidate::new(name, run).with_shares(shares).with_weight_share(weight_share))
}

/// The output, and the seconds spent outside the experts.
fn forward(layer: &MoeLayer, x_gtd: &Tensor) -> Result<(Tensor, f64), RouteError> {
    let noise = SeededNoise::eval(0, 0);
    let (y_gtd, trace) = layer.forward(x_gtd, &RouteCx::new(Phase::Eval, &noise))?;
    Ok((y_gtd, trace.route_time.as_secs_f64()))
}

fn forward_backward(
    layer: &MoeLayer,
    x_gtd: &Tensor,
    store: &ParamStore,
) -> Result<f64, RouteError> {
    store.zero_grad();
    let x_gtd = x_gtd.detach().set_requires_grad(true);
    let (y_gtd, seconds) = forward(layer, &x_gtd)?;
    // The product makes the gradient contiguous, as a layer above would hand it down.
    (&y_gtd * y_gtd.ones_like()).sum(None::<Kind>).backward();
    Ok(seconds)
}

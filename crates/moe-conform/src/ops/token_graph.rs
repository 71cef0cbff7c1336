//! Token graphs: similarity, pooling, routing, layers, bounds, fluctuation
//! (`moe_routers::token_graph`).
//!
//! Axis letters: `t` tokens, `m` cached tokens, `n = m + t` columns, `d` width, `e` experts, `h` heads.

use super::experts::{HostBank, TorchBank};
use super::{Given, host_universal, torch_universal};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::HostInput;
use moe_routers::config::resolve;
use moe_routers::token_graph::{
    self, Cache, Config, Decision, Graph, HostDecision, HostSources, HostTokenGraph, Mix, Pool,
    Sources, TokenGraph, check_stochastic, row_entropy,
};
use moe_routers::{Phase, RouteCx, RouterConfig, Settings};
use ndarray::{Array2, Array3, Axis, Ix3};
use tch::Tensor;

const ROUTE_KEYS: &[&str] = &[
    "preset",
    "graph",
    "tau",
    "causal",
    "pool",
    "head",
    "sigma",
    "cache",
    "self_edge",
    "detach_graph",
    "top_k",
    "mix",
    "gate",
    "renormalize",
];

/// The last four are the layer's.
const LAYER_TENSORS: &[&str] = &[
    "x",
    "router",
    "bias",
    "w_s",
    "segments",
    "attention",
    "head_weights",
    "head_values",
    "graph",
    "prev_probs",
    "prev_logits",
    "W1",
    "b1",
    "W2",
    "b2",
];

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "token_graph.similarity",
        config: &["preset", "tau", "causal"],
        tensors: &["x", "w_s", "segments"],
        reference: Some(similarity_reference),
        torch: Some(similarity_torch),
    },
    Op {
        name: "token_graph.pool_attention",
        config: &["preset", "pool", "head", "sigma"],
        tensors: &["attention", "x", "head_weights", "head_values"],
        reference: Some(pool_reference),
        torch: Some(pool_torch),
    },
    Op {
        name: "token_graph.route",
        config: ROUTE_KEYS,
        tensors: LAYER_TENSORS.split_at(11).0,
        reference: Some(|args| Ok(host_route(args)?.1)),
        torch: Some(|args| Ok(torch_route(args)?.1)),
    },
    Op {
        name: "token_graph.layer",
        config: ROUTE_KEYS,
        tensors: LAYER_TENSORS,
        reference: Some(layer_reference),
        torch: Some(layer_torch),
    },
    Op {
        name: "token_graph.entropy_bounds",
        config: &[],
        tensors: &["probs", "graph"],
        reference: Some(entropy_bounds),
        torch: None,
    },
    Op {
        name: "token_graph.fluctuation",
        config: &["compare"],
        tensors: &["prev", "cur"],
        reference: Some(fluctuation),
        torch: None,
    },
];

/// Where no number of experts bounds an index.
const ANY: usize = 1 << 52;

/// Settings over the preset that the case names, or over `preset`.
fn settings(args: &Args<'_>, preset: &str, experts: usize) -> Result<Config, OpError> {
    let mut settings: Settings = [("preset".to_owned(), preset.into())].into_iter().collect();
    settings.extend(args.settings());
    let config: Config = resolve(&settings)?;
    config.check(experts)?;
    Ok(config)
}

/// Reads what the settings need of the graph's tensors, shapes and sums checked.
fn host_sources(
    args: &Args<'_>,
    config: &Config,
    (tokens, width): (usize, usize),
) -> Result<HostSources, OpError> {
    let mut sources = HostSources::default();
    if let Some(segments_t) = args.optional("segments", Args::vector)? {
        expect_shape("segments", segments_t.shape(), &[tokens])?;
        sources.segments_t = Some(segments_t);
    }
    if config.graph == Graph::Given {
        let graph_tn = args.matrix("graph")?;
        let columns = graph_tn.ncols().max(tokens);
        expect_shape("graph", graph_tn.shape(), &[tokens, columns])?;
        check_stochastic("graph", graph_tn.view())?;
        sources.graph_tn = Some(graph_tn);
    }
    if config.graph == Graph::Attention {
        let attention_htn = args.cube("attention")?;
        let (heads, _, columns) = attention_htn.dim();
        let want = [heads.max(1), tokens, columns.max(tokens)];
        expect_shape("attention", attention_htn.shape(), &want)?;
        for attention_tn in attention_htn.outer_iter() {
            check_stochastic("attention", attention_tn)?;
        }
        read_heads(args, config, &mut sources, [heads, columns, width])?;
        sources.attention_htn = Some(attention_htn);
    }
    Ok(sources)
}

/// What pooling needs besides the attention.
fn read_heads(
    args: &Args<'_>,
    config: &Config,
    sources: &mut HostSources,
    shape_hnd: [usize; 3],
) -> Result<(), OpError> {
    if config.pool == Pool::Weighted {
        let weights_h = args.vector("head_weights")?;
        expect_shape("head_weights", weights_h.shape(), &shape_hnd[..1])?;
        sources.head_weights_h = Some(weights_h);
    }
    if config.pool == Pool::Posterior {
        let values_hnd = args.cube("head_values")?;
        expect_shape("head_values", values_hnd.shape(), &shape_hnd)?;
        sources.head_values_hnd = Some(values_hnd);
    }
    Ok(())
}

/// Cached columns that are used, and the tensor that holds their choices.
fn cached(config: &Config, sources: &HostSources, tokens: usize) -> Option<(usize, &'static str)> {
    let columns = match config.graph {
        Graph::Attention => sources.attention_htn.as_ref().map(|a| a.len_of(Axis(2))),
        Graph::Given => sources.graph_tn.as_ref().map(Array2::ncols),
        Graph::Similarity | Graph::None => None,
    };
    let used = columns.filter(|_| config.cache == Cache::Use).map_or(0, |n| n - tokens);
    let name = if config.mix == Mix::Prob { "prev_probs" } else { "prev_logits" };
    (used > 0).then_some((used, name))
}

/// The same sources as leaves.
fn torch_sources(args: &Args<'_>, host: &HostSources) -> Result<Sources, OpError> {
    let read = |there: bool, name: &str| {
        let found = if there { args.torch_optional(name)? } else { None };
        Ok::<_, OpError>(found)
    };
    let group = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.unsqueeze(0));
    Ok(Sources {
        attention_ghtn: group(read(host.attention_htn.is_some(), "attention")?),
        head_weights_h: read(host.head_weights_h.is_some(), "head_weights")?,
        head_values_ghnd: group(read(host.head_values_hnd.is_some(), "head_values")?),
        graph_gtn: group(read(host.graph_tn.is_some(), "graph")?),
        segments_gt: group(read(host.segments_t.is_some(), "segments")?),
        cached_gme: None,
    })
}

/// `W_s` where it is given and needed.
fn similarity_matrix(
    args: &Args<'_>,
    config: &Config,
    d: usize,
) -> Result<Option<Array2<f64>>, OpError> {
    if config.graph != Graph::Similarity {
        return Ok(None);
    }
    let w_s_dd = args.optional("w_s", Args::matrix)?;
    w_s_dd.iter().try_for_each(|w| expect_shape("w_s", w.shape(), &[d, d]))?;
    Ok(w_s_dd)
}

fn similarity_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let x_td = args.matrix("x")?;
    let config = Config { graph: Graph::Similarity, ..settings(args, "similarity", ANY)? };
    let sources = host_sources(args, &config, x_td.dim())?;
    let w_s_dd = similarity_matrix(args, &config, x_td.ncols())?;
    let w_s_dd = w_s_dd.as_ref().map(|w| w.view());
    let graph_tt = token_graph::host_graph(&config, x_td.view(), w_s_dd, &sources)?;
    Ok(vec![("entropy", row_entropy(graph_tt.view()).into()), ("graph", graph_tt.into())])
}

fn similarity_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let x_td = args.matrix("x")?;
    let config = Config { graph: Graph::Similarity, ..settings(args, "similarity", ANY)? };
    let sources = torch_sources(args, &host_sources(args, &config, x_td.dim())?)?;
    let learned = similarity_matrix(args, &config, x_td.ncols())?.is_some();
    let w_s_dd = if learned { args.torch_optional("w_s")? } else { None };
    let x_gtd = args.torch("x")?.unsqueeze(0);
    let graph_tt = token_graph::graph(&config, &x_gtd, w_s_dd.as_ref(), &sources)?.get(0);
    Ok(vec![("entropy", token_graph::entropy(&graph_tt).into()), ("graph", graph_tt.into())])
}

/// Settings, tokens (zeros where pooling does not read them) and sources of pooling.
fn pooling(args: &Args<'_>) -> Result<(Config, Array2<f64>, HostSources), OpError> {
    let config = Config { graph: Graph::Attention, ..settings(args, "attention", ANY)? };
    let tokens = args.cube("attention")?.dim().1;
    let reads = config.pool == Pool::Posterior;
    let x_td = if reads { args.matrix("x")? } else { Array2::zeros((tokens, 1)) };
    let sources = host_sources(args, &config, x_td.dim())?;
    Ok((config, x_td, sources))
}

fn pool_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, x_td, sources) = pooling(args)?;
    let graph_tn = token_graph::host_pool(&config, x_td.view(), &sources)?;
    Ok(vec![("entropy", row_entropy(graph_tn.view()).into()), ("graph", graph_tn.into())])
}

fn pool_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, x_td, sources) = pooling(args)?;
    let x_td = match config.pool {
        Pool::Posterior => args.torch("x")?,
        _ => super::tensor(&x_td.into_dyn()),
    };
    let sources = torch_sources(args, &sources)?;
    let graph_tn = token_graph::pool(&config, &x_td.unsqueeze(0), &sources)?.get(0);
    Ok(vec![("entropy", token_graph::entropy(&graph_tn).into()), ("graph", graph_tn.into())])
}

/// What routing reads.
struct Input {
    x_td: Array2<f64>,
    host: HostTokenGraph,
    sources: HostSources,
    cached: Option<&'static str>,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (x_td, router_ed) = (args.matrix("x")?, args.matrix("router")?);
        let ((tokens, width), experts) = (x_td.dim(), router_ed.nrows());
        expect_shape("router", router_ed.shape(), &[experts, width])?;
        args.top_k(2, experts)?;
        let config = settings(args, "similarity", experts)?;
        let bias_e = args.optional("bias", Args::vector)?;
        bias_e.iter().try_for_each(|b| expect_shape("bias", b.shape(), &[experts]))?;
        let w_s_dd = similarity_matrix(args, &config, width)?;
        let mut sources = host_sources(args, &config, (tokens, width))?;
        let cached = cached(&config, &sources, tokens);
        if let Some((columns, name)) = cached {
            let cached_me = args.matrix(name)?;
            expect_shape(name, cached_me.shape(), &[columns, experts])?;
            if config.mix == Mix::Prob {
                check_stochastic("prev_probs", cached_me.view())?;
            }
            sources.cached_me = Some(cached_me);
        }
        let host = HostTokenGraph { router_ed, bias_e, w_s_dd, config };
        Ok(Self { x_td, host, sources, cached: cached.map(|(_, name)| name) })
    }
}

fn host_route(args: &Args<'_>) -> Result<((Input, HostDecision), Outputs), OpError> {
    let input = Input::read(args)?;
    let found = input.host.decide(&HostInput::new(input.x_td.view()), &input.sources)?;
    let mut outputs = host_universal(std::slice::from_ref(&found.routing));
    outputs.extend::<Outputs>(vec![
        ("logits", found.routing.logits_te.clone().into()),
        ("probs", found.prob_te.clone().into()),
        ("mixed", found.routing.gate_te.clone().into()),
        ("graph", found.graph_tn.clone().into()),
        ("entropy_own", row_entropy(found.prob_te.view()).into()),
        ("entropy", row_entropy(found.routing.gate_te.view()).into()),
        ("entropy_graph", row_entropy(found.graph_tn.view()).into()),
    ]);
    Ok(((input, found), outputs))
}

fn torch_route(args: &Args<'_>) -> Result<((Input, Decision), Outputs), OpError> {
    let input = Input::read(args)?;
    let learned = input.host.w_s_dd.is_some();
    let router = TokenGraph {
        router_ed: args.torch("router")?,
        bias_e: args.torch_optional("bias")?,
        w_s_dd: if learned { args.torch_optional("w_s")? } else { None },
        config: input.host.config.clone(),
    };
    let mut sources = torch_sources(args, &input.sources)?;
    if let Some(name) = input.cached {
        sources.cached_gme = Some(args.torch(name)?.unsqueeze(0));
    }
    let noise = Given::default();
    let (x_gtd, cx) = (args.torch("x")?.unsqueeze(0), RouteCx::new(Phase::Eval, &noise));
    let found = router.decide(&x_gtd, &cx, &sources)?;
    let mut outputs = torch_universal(&found.routing);
    let entropy = |p: &Tensor| token_graph::entropy(p).get(0);
    outputs.extend::<Outputs>(vec![
        ("logits", found.routing.logits_gte.get(0).into()),
        ("probs", found.prob_gte.get(0).into()),
        ("mixed", found.mixed_gte.get(0).into()),
        ("graph", found.graph_gtn.get(0).into()),
        ("entropy_own", entropy(&found.prob_gte).into()),
        ("entropy", entropy(&found.mixed_gte).into()),
        ("entropy_graph", entropy(&found.graph_gtn).into()),
    ]);
    Ok(((input, found), outputs))
}

fn layer_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let ((input, found), mut outputs) = host_route(args)?;
    let bank = HostBank::read(args, input.host.router_ed.nrows(), input.x_td.ncols())?;
    outputs.push(("y", bank.apply(&found.routing.plan, input.x_td.view()).into()));
    Ok(outputs)
}

fn layer_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let ((input, found), mut outputs) = torch_route(args)?;
    let bank = TorchBank::read(args, input.host.router_ed.nrows(), input.x_td.ncols())?;
    let x_gtd = args.torch("x")?.unsqueeze(0);
    outputs.push(("y", bank.apply(&found.routing.plan, &x_gtd).get(0).into()));
    Ok(outputs)
}

fn entropy_bounds(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (prob_te, graph_tt) = (args.matrix("probs")?, args.matrix("graph")?);
    expect_shape("graph", graph_tt.shape(), &[prob_te.nrows(); 2])?;
    check_stochastic("probs", prob_te.view())?;
    check_stochastic("graph", graph_tt.view())?;
    let found = token_graph::entropy_bounds(prob_te.view(), graph_tt.view());
    Ok(vec![
        ("lower", found.lower_t.into()),
        ("entropy", found.entropy_t.into()),
        ("upper", found.upper_t.into()),
        ("tv_own", found.tv_own.into()),
        ("tv_mixed", found.tv_mixed.into()),
        ("contraction", found.contraction.into()),
    ])
}

/// Choices of every layer and token.
fn choices(args: &Args<'_>, name: &str) -> Result<Array3<usize>, OpError> {
    let choices = args.indices(name, ANY)?;
    let shape = choices.shape().to_vec();
    match choices.into_dimensionality::<Ix3>() {
        Ok(choices) if !choices.is_empty() => Ok(choices),
        _ => Err(OpError::new(format!("{name}: shape {shape:?}, expected [L, T, k]"))),
    }
}

fn fluctuation(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (before, after) = (choices(args, "prev")?, choices(args, "cur")?);
    expect_shape("cur", after.shape(), before.shape())?;
    let by_set = args.word("compare", "top1", &["top1", "set"])? == "set";
    let per_layer = token_graph::fluctuation(before.view(), after.view(), by_set);
    let mean = moe_core::stats::mean(&per_layer);
    Ok(vec![("per_layer", per_layer.into()), ("mean", mean.into())])
}

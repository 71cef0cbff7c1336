//! `moe eval RUN --retrieval PLACE`: finding translations by the embeddings of a masked language model.
//!
//! A sentence's embedding is the mean of what a block put out for its tokens. Each sentence looks for the one
//! with the largest cosine among all of the other language, both ways; beside it stands what shared character
//! trigrams find among the same sentences.
//!
//! Axis letters: `b` sentences of one length, `n` sentences, `d` width.

use crate::cli::EvalArgs;
use crate::error::Misuse;
use crate::recipe::Recipe;
use crate::run::{Trained, trained};
use crate::say::{say, say_json};
use crate::subject::masked_lm;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use moe_core::metrics::Retrieval;
use moe_data::{MaskedText, PairedTexts};
use moe_models::MaskedLm;
use moe_models::encoder::Rows;
use moe_routers::{ParamStore, Phase, RouteCx, SeededNoise};
use moe_train::trainer::named;
use moe_train::{TrainError, checkpoint};
use ndarray::{Array2, Axis};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::{Device, Kind, Tensor};

/// In the place of a directory: the aligned paragraphs of the run's own data that `--split` names.
pub const HELD_OUT: &str = "held-out";

/// Tokens of a batch of sentences at most.
const BATCH_TOKENS: usize = 4096;

/// What a retrieval found.
#[derive(Debug, Serialize)]
struct Report {
    /// Steps that the weights have seen.
    step: u64,
    /// Directory, or `held-out` with its split.
    source: String,
    /// One entry per pair of languages.
    pairs: Vec<Pair>,
}

/// One pair of languages.
#[derive(Debug, Serialize)]
struct Pair {
    /// Its name, as `ru-en`.
    pair: String,
    /// Sentences of each language.
    sentences: usize,
    /// By shared character trigrams.
    floor: Found,
    /// By embeddings, from the embedding layer, 0, to the last block.
    layers: Vec<Layer>,
}

/// By the embeddings of one layer.
#[derive(Debug, Serialize)]
struct Layer {
    layer: usize,
    /// Cosine.
    cosine: Found,
    /// Cosine after each language's mean was taken out.
    centred: Found,
}

/// Shares of sentences whose translation was found.
#[derive(Debug, Clone, Copy, Serialize)]
struct Found {
    forward: f64,
    backward: f64,
}

impl From<Retrieval> for Found {
    fn from(Retrieval { forward, backward }: Retrieval) -> Self {
        Self { forward, backward }
    }
}

/// Measures, and prints a table or JSON.
///
/// # Errors
/// A run that is none of a masked language model, sentences that cannot be read, or a stop.
pub fn retrieval(args: &EvalArgs, place: &str, stop: &AtomicBool) -> Result<()> {
    let device = args.machine.ready()?;
    let report = measure(args, place, device, stop)?;
    if args.json {
        return say_json(&report);
    }
    Ok(say(&render(&report, args.layer))?)
}

fn measure(args: &EvalArgs, place: &str, device: Device, stop: &AtomicBool) -> Result<Report> {
    let Trained { recipe, data, checkpoint } = trained((&args.run, args.checkpoint), &args.sets)?;
    let recipe = recipe.resolved()?;
    if recipe.masked.is_none() {
        let message = "--retrieval: this run has no [masked]: embeddings are those of a masked language model";
        return Err(Misuse::new(message).into());
    }
    if let Some(layer) = args.layer.filter(|layer| *layer as i64 > recipe.model.layers) {
        let most = recipe.model.layers;
        return Err(Misuse::new(format!("--layer {layer}: expected 0 to {most}")).into());
    }
    let text = recipe.data.open_languages_for(&data)?;
    let pairs = pairs(&text, place, args)?;
    let store = ParamStore::new(recipe.seed, device, Kind::Float);
    let model = build(&text, &recipe, &store)?;
    let step = checkpoint::load_model(&checkpoint, &named(&store))?.progress.step;
    let encoder =
        Encoder { text: &text, model, context: recipe.model.context as usize, device, stop };
    let bar = progress(pairs.iter().map(|pair| 2 * pair.source.len() as u64).sum());
    let pairs = pairs.iter().map(|pair| encoder.pair(pair, &bar)).collect::<Result<_>>()?;
    bar.finish_and_clear();
    let source = match place {
        HELD_OUT => format!("{HELD_OUT} {:?}", args.split).to_lowercase(),
        directory => directory.to_owned(),
    };
    Ok(Report { step, source, pairs })
}

fn build(text: &MaskedText, recipe: &Recipe, store: &ParamStore) -> Result<MaskedLm, Misuse> {
    masked_lm(text, recipe, &recipe.methods()?.rules(), store)
}

fn pairs(text: &MaskedText, place: &str, args: &EvalArgs) -> Result<Vec<PairedTexts>, Misuse> {
    let refused = |reason: String| Misuse::new(format!("--retrieval {place}: {reason}"));
    if place == HELD_OUT {
        let pairs = PairedTexts::of_split(text.languages(), args.split.into());
        return match pairs.is_empty() {
            true => Err(refused("the run's data hold no translations".into())),
            false => Ok(pairs),
        };
    }
    let read = PairedTexts::open_laser(Path::new(place));
    read.map_err(|error| refused(format!("{:#}", anyhow::Error::from(error))))
}

fn progress(sentences: u64) -> ProgressBar {
    let style = "{bar:32} {pos}/{len} sentences  {elapsed_precise}, about {eta_precise} left";
    let style = ProgressStyle::with_template(style).expect("a valid template");
    ProgressBar::new(sentences).with_style(style)
}

/// A model that embeds sentences.
struct Encoder<'a> {
    text: &'a MaskedText,
    model: MaskedLm,
    context: usize,
    device: Device,
    stop: &'a AtomicBool,
}

impl Encoder<'_> {
    fn pair(&self, pair: &PairedTexts, bar: &ProgressBar) -> Result<Pair> {
        let floor = Retrieval::of(pair.trigram_cosine().view())?.into();
        let [source, target] =
            [&pair.source, &pair.target].map(|sentences| self.embed(sentences, bar));
        let by_layer = source?.into_iter().zip(target?).enumerate();
        let layers = by_layer.map(|(layer, (source_nd, target_nd))| {
            let by =
                |centred| Retrieval::of_embeddings(source_nd.view(), target_nd.view(), centred);
            Ok::<_, anyhow::Error>(Layer {
                layer,
                cosine: by(false)?.into(),
                centred: by(true)?.into(),
            })
        });
        let (name, sentences) = (pair.name.clone(), pair.source.len());
        Ok(Pair { pair: name, sentences, floor, layers: layers.collect::<Result<_>>()? })
    }

    /// Embeddings of every layer, `[n, d]` each. Sentences of one length share a batch, so that none is
    /// padded.
    fn embed(&self, sentences: &[String], bar: &ProgressBar) -> Result<Vec<Array2<f64>>> {
        let mut by_length: BTreeMap<usize, Vec<(usize, Vec<i64>)>> = BTreeMap::new();
        for (number, sentence) in sentences.iter().enumerate() {
            let ids = self.text.sentence(sentence, self.context)?;
            by_length.entry(ids.len()).or_default().push((number, ids));
        }
        let mut layers: Vec<Array2<f64>> = Vec::new();
        for (length, same) in by_length {
            for batch in same.chunks((BATCH_TOKENS / length).max(1)) {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(TrainError::Stopped.into());
                }
                for (layer, pooled_bd) in self.pooled(batch, length)?.into_iter().enumerate() {
                    if layer == layers.len() {
                        layers.push(Array2::zeros((sentences.len(), pooled_bd.ncols())));
                    }
                    for ((number, _), pooled_d) in batch.iter().zip(pooled_bd.axis_iter(Axis(0))) {
                        layers[layer].row_mut(*number).assign(&pooled_d);
                    }
                }
                bar.inc(batch.len() as u64);
            }
        }
        Ok(layers)
    }

    /// Embeddings of sentences of `length` tokens, `[b, d]` for every layer.
    fn pooled(&self, batch: &[(usize, Vec<i64>)], length: usize) -> Result<Vec<Array2<f64>>> {
        let _guard = tch::no_grad_guard();
        let (b, t) = (batch.len(), length as i64);
        let ids: Vec<i64> = batch.iter().flat_map(|(_, ids)| ids).copied().collect();
        let x_bt = Tensor::from_slice(&ids).view([b as i64, t]).to_device(self.device);
        let position_bt =
            Tensor::arange(t, (Kind::Int64, self.device)).expand([b as i64, t], false);
        let noise = SeededNoise::eval(0, 0);
        let rows = Rows { x_bt: &x_bt, position_bt: &position_bt };
        let layers = self.model.pooled(rows, &RouteCx::new(Phase::Eval, &noise))?;
        let host = |pooled_bd: &Tensor| {
            let d = pooled_bd.size()[1] as usize;
            let flat = pooled_bd.to_kind(Kind::Double).flatten(0, 1);
            let values = Vec::<f64>::try_from(flat).expect("a vector");
            Array2::from_shape_vec((b, d), values).expect("[b, d]")
        };
        Ok(layers.iter().map(host).collect())
    }
}

/// A table: of one layer both ways, or of all layers the mean of both.
fn render(report: &Report, layer: Option<usize>) -> String {
    let mut table = format!("step {}, {}\n", report.step, report.source);
    match layer {
        Some(layer) => table += &one_layer(report, layer),
        None => table += &all_layers(report),
    }
    table
}

fn one_layer(report: &Report, layer: usize) -> String {
    let mut table =
        format!("layer {layer}; there and back: trigrams, cosine, cosine of centred embeddings\n");
    for pair in &report.pairs {
        let Layer { cosine, centred, .. } = &pair.layers[layer];
        let both = |Found { forward, backward }: &Found| format!("{forward:.3} {backward:.3}");
        let (floor, cosine, centred) = (both(&pair.floor), both(cosine), both(centred));
        table += &format!("{:6} {:5}  {floor}  {cosine}  {centred}\n", pair.pair, pair.sentences);
    }
    table
}

fn all_layers(report: &Report) -> String {
    let mean = |Found { forward, backward }: &Found| 0.5 * (forward + backward);
    let layers = report.pairs.first().map_or(0, |pair| pair.layers.len());
    let heads: String = (0..layers).map(|layer| format!(" layer {layer:<2}      ")).collect();
    let mut table = format!(
        "mean of both ways: trigrams, then by layer cosine and cosine of centred embeddings\n\
         pair       n  trigrams {heads}\n"
    );
    for pair in &report.pairs {
        let cells: String = pair
            .layers
            .iter()
            .map(|Layer { cosine, centred, .. }| {
                format!("  {:.3} / {:.3} ", mean(cosine), mean(centred))
            })
            .collect();
        let floor = mean(&pair.floor);
        table += &format!("{:6} {:5}     {floor:.3} {cells}\n", pair.pair, pair.sentences);
    }
    table
}

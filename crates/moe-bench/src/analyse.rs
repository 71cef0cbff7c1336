//! `moe analyse RUN`: what the experts of an SMoE-VAE took for themselves, as its release measures it.
//!
//! Writes `analysis.json` with every number and, as pictures: `reconstructions.png` (rows of three: images,
//! one decoder, the mix of all), `classes.svg` (images by class and expert), `tsne-class.svg` and
//! `tsne-expert.svg`. Latents are sampled, as in every evaluation of this model, by draws that depend on the
//! run's seed and the number of the batch alone.
//!
//! Axis letters: `n` images, `z` latent width, `l` classes, `e` experts.

mod collect;
mod draw;
mod measure;

use crate::cli::AnalyseArgs;
use crate::error::{Misuse, Stopped};
use crate::run::load;
use crate::say::say;
use crate::subject::Subject;
use crate::tsne::FEWEST;
use crate::which::Which;
use crate::worker;
use anyhow::{Context, Result, ensure};
use collect::{Drawn, collect};
use indicatif::{ProgressBar, ProgressStyle};
use measure::{Embedding, Probe};
use moe_core::metrics::Specialisation;
use moe_train::vae_task::ACTIVE;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Version of the layout of `analysis.json`.
const SCHEMA: &str = "moe.analysis/1";

/// What `analysis.json` holds.
#[derive(Debug, Serialize)]
struct Analysis {
    schema: &'static str,
    step: u64,
    split: &'static str,
    images: usize,
    classes: Vec<String>,
    experts: usize,
    reconstruction: Reconstruction,
    /// Mean over images of the gate's entropy over `ln E`.
    gate_entropy: f64,
    #[serde(flatten)]
    measures: Measures,
}

/// What latents and decisions say together.
#[derive(Debug, Serialize)]
struct Measures {
    /// Experts that win at least [`ACTIVE`] images.
    active_experts: usize,
    /// Images by class and winning expert, `[l, e]`.
    count_le: Vec<Vec<usize>>,
    /// Nats.
    mutual_information: f64,
    normalised_mutual_information: f64,
    purity: f64,
    /// What a linear probe reads off the latents.
    probe_class: Probe,
    probe_expert: Probe,
    tsne: Embedding,
}

/// Squared error over the pixels of an image, mean over images.
#[derive(Debug, Serialize)]
struct Reconstruction {
    /// By the winning decoder.
    hard: f64,
    /// By the mix of all decoders.
    soft: f64,
    /// By the mean training image.
    mean_image: f64,
}

/// Measures, writes numbers and pictures, prints the numbers.
///
/// # Errors
/// A run of another kind of model, one without a checkpoint, too few images, or files that cannot be
/// written.
pub fn analyse(args: &AnalyseArgs) -> Result<()> {
    let stop = worker::stop_flag(|| {})?;
    let device = args.machine.ready()?;
    let mut prepared = load((&args.run, Which::Newest), &args.sets, device, &stop)?;
    let Subject::Drawings(images, _) = prepared.subject().clone() else {
        let message = format!("{}: moe analyse knows recipes with [vae] alone", args.run.display());
        return Err(Misuse::new(message).into());
    };
    let bar = stages();
    let drawn = collect(&mut prepared, args.split.into(), device, &stop, &bar)?;
    let analysis = Analysis {
        schema: SCHEMA,
        step: prepared.steps_taken(),
        split: moe_data::Split::from(args.split).name(),
        images: drawn.label_n.len(),
        classes: images.classes().to_vec(),
        experts: drawn.experts,
        reconstruction: Reconstruction {
            hard: drawn.hard,
            soft: drawn.soft,
            mean_image: images.mean_image_error(args.split.into()),
        },
        gate_entropy: drawn.gate_entropy,
        measures: measures(&drawn, args.points as usize, &stop, &bar)?,
    };
    bar.finish_and_clear();
    let out = args.out.clone().unwrap_or_else(|| args.run.join("analysis"));
    write(&out, &analysis, &drawn)?;
    Ok(say(&(summary(&analysis) + &out.display().to_string() + "\n"))?)
}

fn stages() -> ProgressBar {
    let style = "{bar:32} {pos}/{len} {msg}  {elapsed_precise}, about {eta_precise} left";
    ProgressBar::new(0).with_style(ProgressStyle::with_template(style).expect("a valid template"))
}

/// The measures of what was drawn.
fn measures(
    drawn: &Drawn,
    points: usize,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Result<Measures> {
    let (label_n, expert_n) = (&drawn.label_n, &drawn.expert_n);
    ensure!(label_n.len() >= FEWEST, "{} images are too few", label_n.len());
    let found = Specialisation::of(label_n, expert_n, Some(drawn.classes), Some(drawn.experts))?;
    let load_e = found.count_le.sum_axis(ndarray::Axis(0));
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => Err(Stopped("analysing")),
        false => Ok(()),
    };
    let probe_class = measure::probe(drawn.z_nz.view(), label_n)?;
    go_on()?;
    let probe_expert = measure::probe(drawn.z_nz.view(), expert_n)?;
    go_on()?;
    let tsne = measure::embed(drawn, points, bar)?;
    go_on()?;
    Ok(Measures {
        active_experts: load_e.iter().filter(|&&images| images >= ACTIVE).count(),
        count_le: found.count_le.outer_iter().map(|row| row.to_vec()).collect(),
        mutual_information: found.mi,
        normalised_mutual_information: found.nmi,
        purity: found.purity,
        probe_class,
        probe_expert,
        tsne,
    })
}

fn write(out: &Path, analysis: &Analysis, drawn: &Drawn) -> Result<()> {
    let context = |path: &Path| format!("cannot write {}", path.display());
    fs::create_dir_all(out).with_context(|| format!("cannot write to {}", out.display()))?;
    let experts: Vec<String> = (0..analysis.experts).map(|e| format!("expert {e}")).collect();
    let (classes, Measures { tsne, count_le, .. }) = (&analysis.classes, &analysis.measures);
    let texts = [
        ("analysis.json", serde_json::to_string_pretty(analysis)? + "\n"),
        ("tsne-class.svg", draw::scatter(&tsne.xy, &tsne.label, classes)?),
        ("tsne-expert.svg", draw::scatter(&tsne.xy, &tsne.expert, &experts)?),
        ("classes.svg", draw::table(count_le, classes, &experts)?),
    ];
    for (name, text) in texts {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| context(&path))?;
    }
    let path = out.join("reconstructions.png");
    draw::grid(&drawn.examples).save(&path).with_context(|| context(&path))
}

fn summary(analysis: &Analysis) -> String {
    let Analysis { step, split, images, experts, gate_entropy, measures, .. } = analysis;
    let Reconstruction { hard, soft, mean_image } = &analysis.reconstruction;
    format!(
        "step {step}, {split} split, {images} images\n\
         squared error {hard:.3} per image by one decoder, {soft:.3} by the mix of all, {mean_image:.3} by the mean image\n\
         experts {experts}, of which {} active; gate entropy {gate_entropy:.3}\n\
         mutual information {:.3} nats, normalised {:.3}; purity {:.3}\n\
         linear probe {:.3} on classes, {:.3} on experts\n\
         t-SNE of {} points\n",
        measures.active_experts,
        measures.mutual_information,
        measures.normalised_mutual_information,
        measures.purity,
        measures.probe_class.accuracy,
        measures.probe_expert.accuracy,
        measures.tsne.xy.len(),
    )
}

//! `moe eval RUN --few-shot 5,10`: V-MoE's few-shot evaluation of an image classifier's features.
//!
//! Axis letters: `n` images, `d` width.

use crate::cli::EvalArgs;
use crate::error::{Misuse, Stopped};
use crate::run::{Prepared, load};
use crate::say::{say_json, say_line};
use crate::subject::Subject;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use moe_core::metrics::probe::{FewShot, Labelled, few_shot};
use moe_data::{Images, Split};
use ndarray::{Array2, ArrayView2, Axis, concatenate};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Draws of the shots; the probes of all choose the regulariser together.
const SEEDS: u64 = 3;
/// Images between two looks at the progress and at the user's wish to stop.
const STRIDE: usize = 256;

/// What one number of shots came to.
#[derive(Debug, Serialize)]
struct Row {
    /// Images of every class.
    shots: usize,
    /// Binary logarithm of the regulariser's weight, chosen on the validation split.
    l2_exponent: i32,
    /// Mean accuracy there.
    valid_accuracy: f64,
    /// Accuracy on the test split, a value per seed.
    test_accuracy: Vec<f64>,
}

/// Features of images and the class of each.
struct Features {
    x_nd: Array2<f64>,
    label_n: Vec<usize>,
}

impl Features {
    fn view(&self) -> Labelled<'_> {
        Labelled { x_nd: self.x_nd.view(), label_n: &self.label_n }
    }
}

/// Evaluates and prints.
///
/// # Errors
/// A run that is not about images, a class with too few images, a stop, or what `moe eval` refuses.
pub fn evaluate(args: &EvalArgs, stop: &Arc<AtomicBool>) -> Result<()> {
    let device = args.machine.ready()?;
    let mut prepared = load((&args.run, args.checkpoint), &args.sets, device, stop)?;
    let Subject::Images(images, _) = prepared.subject() else {
        return Err(Misuse::new("--few-shot: knows image classifiers alone").into());
    };
    let images = Arc::clone(images);
    let drawn: Vec<(usize, Vec<Vec<usize>>)> = args
        .few_shot
        .iter()
        .map(|&shots| Ok((shots, draws(&images, shots)?)))
        .collect::<Result<_, Misuse>>()?;
    let asked: usize = drawn.iter().flat_map(|(_, draws)| draws).map(Vec::len).sum();
    let held = |split| images.split(split).len();
    let bar = bar(asked + held(Split::Valid) + held(Split::Test));
    let mut look = |split, places: &[usize]| {
        features(&mut prepared, &images, (split, places), (&bar, stop.as_ref()))
    };
    let mut all = |split| look(split, &(0..held(split)).collect::<Vec<_>>());
    let (valid, test) = (all(Split::Valid)?, all(Split::Test)?);
    let mut rows = Vec::new();
    for (shots, draws) in drawn {
        let of_draw = |places: &Vec<usize>| look(Split::Train, places);
        let samples = draws.iter().map(of_draw).collect::<Result<Vec<_>>>()?;
        let views: Vec<_> = samples.iter().map(Features::view).collect();
        let FewShot { l2_exponent, chosen_on, accuracy } =
            few_shot(&views, valid.view(), test.view(), images.classes().len())?;
        let (valid_accuracy, test_accuracy) = (chosen_on, accuracy);
        rows.push(Row { shots, l2_exponent, valid_accuracy, test_accuracy });
    }
    bar.finish_and_clear();
    if args.json {
        return say_json(&rows);
    }
    Ok(rows.iter().try_for_each(|row| say_line(line(row)))?)
}

/// Places of the shots of every seed.
fn draws(images: &Images, shots: usize) -> Result<Vec<Vec<usize>>, Misuse> {
    let draw = |seed| images.shots(seed, shots).filter(|_| shots > 0);
    (0..SEEDS).map(draw).collect::<Option<_>>().ok_or_else(|| {
        Misuse::new(format!(
            "--few-shot {shots}: a class has no {shots} training images, or it is 0"
        ))
    })
}

fn bar(images: usize) -> ProgressBar {
    let style = "{bar:32} {pos}/{len} images  {elapsed_precise}, about {eta_precise} left";
    let style = ProgressStyle::with_template(style).expect("a valid template");
    ProgressBar::new(images as u64).with_style(style)
}

/// Features of these images of a split.
fn features(
    prepared: &mut Prepared,
    images: &Images,
    (split, places): (Split, &[usize]),
    (bar, stop): (&ProgressBar, &AtomicBool),
) -> Result<Features> {
    let mut rows = Vec::new();
    for places in places.chunks(STRIDE) {
        if stop.load(Ordering::Relaxed) {
            return Err(Stopped("images were looked at").into());
        }
        rows.extend(prepared.trainer_mut().features(split, places)?);
        bar.inc(places.len() as u64);
    }
    let views: Vec<ArrayView2<'_, f64>> = rows.iter().map(|rows_nd| rows_nd.view()).collect();
    let labels = images.split(split).labels();
    let label_n = places.iter().map(|&place| labels[place] as usize).collect();
    Ok(Features { x_nd: concatenate(Axis(0), &views)?, label_n })
}

fn line(row: &Row) -> String {
    let Row { shots, l2_exponent, valid_accuracy, test_accuracy } = row;
    let mean = test_accuracy.iter().sum::<f64>() / test_accuracy.len() as f64;
    let each: Vec<String> = test_accuracy.iter().map(|a| format!("{a:.4}")).collect();
    format!(
        "{shots} shots: test accuracy {mean:.4} (by seed {}), l2 = 2^{l2_exponent}, chosen on validation accuracy {valid_accuracy:.4}",
        each.join(" ")
    )
}

//! Linear probe and t-SNE of latents, with the release's settings.
//!
//! Axis letters: `n` images, `z` latent width.

use super::collect::Drawn;
use crate::tsne::{SEED, Tsne};
use anyhow::Result;
use indicatif::ProgressBar;
use moe_core::metrics::probe::{LogisticOptions, LogisticProbe, accuracy, predictions};
use moe_routers::convert::to_host1;
use moe_routers::{Noise, SeededNoise, Site};
use ndarray::{ArrayView2, Axis};
use serde::Serialize;
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor};

/// One in this many images of every class is for the probe's test.
const HELD_OUT: usize = 5;

/// Iterations of t-SNE.
const ITERATIONS: usize = 300;

/// What a multinomial logistic regression (C = 1) reads off latents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Probe {
    /// Share of held-out images whose target it says.
    pub(super) accuracy: f64,
    /// Share of the commonest target among them.
    pub(super) commonest: f64,
    /// Images it was fitted to.
    pub(super) fitted: usize,
    /// Images held out.
    pub(super) held_out: usize,
}

/// Fits a probe to four fifths of the images of every target, tests it on the others.
///
/// # Errors
/// A fit that does not converge, or latents that are not finite.
pub(super) fn probe(z_nz: ArrayView2<'_, f64>, target_n: &[usize]) -> Result<Probe> {
    // Experts that win nothing are no classes of the regression.
    let seen: Vec<usize> = target_n.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let class = |n: &usize| seen.binary_search(&target_n[*n]).expect("it was seen");
    let (fit, test) = stratified(target_n);
    let [labels, asked] = [&fit, &test].map(|places| places.iter().map(class).collect::<Vec<_>>());
    let options = LogisticOptions { classes: Some(seen.len()), ..LogisticOptions::default() };
    let fitted = LogisticProbe::fit(z_nz.select(Axis(0), &fit).view(), &labels, &options)?;
    let prob_nc = fitted.probs(z_nz.select(Axis(0), &test).view())?;
    let count = |class: usize| asked.iter().filter(|&&label| label == class).count();
    let commonest = (0..seen.len()).map(count).max().unwrap_or(0) as f64 / asked.len() as f64;
    let accuracy = accuracy(&predictions(prob_nc.view()), &asked);
    Ok(Probe { accuracy, commonest, fitted: fit.len(), held_out: test.len() })
}

/// Places to fit to and places to test on: of every target the same share, at least one in all.
fn stratified(target_n: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut by_target = shuffled(target_n.len(), "split");
    by_target.sort_by_key(|&n| target_n[n]);
    let places = by_target.into_iter().enumerate();
    let (test, fit): (Vec<_>, Vec<_>) =
        places.partition(|(place, _)| place % HELD_OUT == HELD_OUT - 1);
    let plain = |pairs: Vec<(usize, usize)>| pairs.into_iter().map(|(_, n)| n).collect();
    (plain(fit), plain(test))
}

/// The numbers below `n` in an order that [`SEED`] decides.
fn shuffled(n: usize, name: &'static str) -> Vec<usize> {
    let like = Tensor::zeros([n as i64], (Kind::Double, Device::Cpu));
    let key_n = to_host1(&SeededNoise::eval(SEED, 0).uniform(Site { layer: 0, name }, &like));
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| key_n[a].total_cmp(&key_n[b]));
    order
}

/// A map of latents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Embedding {
    pub(super) perplexity: f64,
    pub(super) iterations: usize,
    pub(super) seed: u64,
    /// Points, and the image of the split that each is.
    pub(super) xy: Vec<[f64; 2]>,
    pub(super) image: Vec<usize>,
    pub(super) label: Vec<usize>,
    pub(super) expert: Vec<usize>,
}

/// t-SNE of at most `points` images drawn at random.
///
/// # Errors
/// A thread that could not be started.
pub(super) fn embed(drawn: &Drawn, points: usize, bar: &ProgressBar) -> Result<Embedding> {
    let mut image = shuffled(drawn.label_n.len(), "points");
    image.truncate(points);
    bar.set_length(ITERATIONS as u64);
    bar.set_position(0);
    bar.set_message("iterations of t-SNE");
    let z_nz = drawn.z_nz.select(Axis(0), &image);
    let Tsne { perplexity, xy } = Tsne::of(z_nz.view(), ITERATIONS, &|| bar.inc(1))?;
    let of = |values: &[usize]| image.iter().map(|&n| values[n]).collect();
    Ok(Embedding {
        perplexity,
        iterations: ITERATIONS,
        seed: SEED,
        xy,
        label: of(&drawn.label_n),
        expert: of(&drawn.expert_n),
        image,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    /// Two clouds of 30 points, 20 apart on the first axis; targets 3 and 7.
    fn clouds() -> (Array2<f64>, Vec<usize>) {
        let at = |(n, z): (usize, usize)| ((n * 7 + z * 3) % 11) as f64 / 11.0;
        let z_nz = Array2::from_shape_fn((60, 3), |(n, z)| {
            at((n, z)) + if z == 0 { 20.0 * (n % 2) as f64 } else { 0.0 }
        });
        (z_nz, (0..60).map(|n| 3 + 4 * (n % 2)).collect())
    }

    #[test]
    fn a_probe_reads_what_lies_apart_and_nothing_from_chance() {
        let (z_nz, target_n) = clouds();
        let found = probe(z_nz.view(), &target_n).unwrap();
        let want = Probe { accuracy: 1.0, commonest: 0.5, fitted: 48, held_out: 12 };
        assert_eq!(found, want);
        let even: Vec<usize> = (0..60).map(|n| n / 2 % 2).collect();
        assert!(probe(z_nz.view(), &even).unwrap().accuracy < 0.9);
    }

    #[test]
    fn every_target_is_held_out_in_the_same_share() {
        let target_n: Vec<usize> = (0..100).map(|n| usize::from(n % 10 == 0)).collect();
        let (fit, test) = stratified(&target_n);
        let rare = |places: &[usize]| places.iter().filter(|&&n| target_n[n] == 1).count();
        assert_eq!((fit.len(), test.len(), rare(&fit), rare(&test)), (80, 20, 8, 2));
        let mut all = [fit, test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_ne!(shuffled(100, "split"), (0..100).collect::<Vec<_>>());
    }

    /// A map has the drawn images in a random order, each with its own label, and at most as many as asked for.
    #[test]
    fn a_map_has_every_image_once_or_as_many_as_asked_for() {
        let (z_nz, label_n) = clouds();
        let drawn = Drawn {
            classes: 8,
            experts: 1,
            z_nz,
            expert_n: vec![0; label_n.len()],
            label_n,
            hard: 0.0,
            soft: 0.0,
            gate_entropy: 0.0,
            examples: Vec::new(),
        };
        let embed = |points| embed(&drawn, points, &ProgressBar::hidden()).unwrap();
        let map = embed(1000);
        let mut image = map.image.clone();
        image.sort_unstable();
        assert_eq!(image, (0..60).collect::<Vec<_>>());
        assert!(map.image.iter().zip(&map.label).all(|(n, label)| drawn.label_n[*n] == *label));
        assert_eq!((map.xy.len(), map.perplexity), (60, 19.0));
        assert_eq!(embed(40).xy.len(), 40);
    }
}

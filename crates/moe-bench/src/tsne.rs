//! t-SNE (van der Maaten & Hinton 2008) in two dimensions, by the Barnes-Hut approximation, with scikit-learn's
//! settings where they are no argument. The same rows give the same map.
//!
//! Axis letters: `n` samples, `d` width.

use anyhow::{Context, Result};
use moe_routers::convert::to_host1;
use moe_routers::{Noise, SeededNoise, Site};
use ndarray::ArrayView2;
use tch::{Device, Kind, Tensor};

/// Seed of the start, whatever the run's: runs are compared on equal terms.
pub const SEED: u64 = 42;

/// Highest perplexity.
const PERPLEXITY: usize = 30;

/// Iterations that exaggerate what belongs together, after which momentum is larger.
const EXAGGERATED: usize = 250;

/// Accuracy of the Barnes-Hut approximation: scikit-learn's `angle`.
const THETA: f64 = 0.5;

/// Standard deviation of the points that it starts from.
const START: f64 = 1e-4;

/// Fewer samples than this have no neighbours to keep.
pub const FEWEST: usize = 10;

/// A map. What t-SNE minimises is left out: as bhtsne 0.7 approximates it, the same map has another value each
/// time.
#[derive(Debug, Clone, PartialEq)]
pub struct Tsne {
    /// 30, or less for few samples.
    pub perplexity: f64,
    /// A place for every sample.
    pub xy: Vec<[f64; 2]>,
}

impl Tsne {
    /// The map of `x_nd` after so many `iterations`, each told to `tick`; on one thread, for bhtsne adds up what
    /// several threads found in the order in which they end, and the map would be another each time.
    ///
    /// # Errors
    /// Less than [`FEWEST`] samples, or a thread that could not be started.
    pub fn of(
        x_nd: ArrayView2<'_, f64>,
        iterations: usize,
        tick: &(dyn Fn() + Sync),
    ) -> Result<Self> {
        let samples = x_nd.nrows();
        anyhow::ensure!(samples >= FEWEST, "{samples} samples are too few for t-SNE");
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let alone = alone.context("starting a thread for t-SNE")?;
        let rows: Vec<Vec<f64>> = x_nd.outer_iter().map(|x_d| x_d.to_vec()).collect();
        let start = start(samples);
        // The approximation looks at three times as many neighbours.
        let perplexity = PERPLEXITY.min((samples - 1) / 3) as f64;
        let xy = alone.install(|| embed(&rows, perplexity, start, (iterations, tick)));
        Ok(Self { perplexity, xy })
    }
}

fn embed(
    rows: &[Vec<f64>],
    perplexity: f64,
    start: Vec<f64>,
    (iterations, tick): (usize, &(dyn Fn() + Sync)),
) -> Vec<[f64; 2]> {
    let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    let mut map: bhtsne::tSNE<'_, f64, &[f64], 2> = bhtsne::tSNE::new(&rows);
    map.perplexity(perplexity)
        .epochs(iterations)
        .stop_lying_epoch(EXAGGERATED)
        .momentum_switch_epoch(EXAGGERATED)
        .initial_embedding(start)
        .epoch_callback(|_, _| tick())
        .barnes_hut(THETA, |a, b| distance(a, b));
    map.embedding().chunks_exact(2).map(|point| [point[0], point[1]]).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// Where the points start: drawn here, for the crate's own draws have no seed.
fn start(points: usize) -> Vec<f64> {
    let like = Tensor::zeros([2 * points as i64], (Kind::Double, Device::Cpu));
    let noise = SeededNoise::eval(SEED, 0).normal(Site { layer: 0, name: "tsne" }, &like);
    (to_host1(&noise) * START).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    /// Two clouds of 30 points, 20 apart on the first axis: points of a cloud are nearer to their own cloud's
    /// middle than to the other's, and the same points give the same map.
    #[test]
    fn a_map_keeps_clouds_apart_and_is_repeatable() {
        let at = |(n, d): (usize, usize)| ((n * 7 + d * 3) % 11) as f64 / 11.0;
        let x_nd = Array2::from_shape_fn((60, 3), |(n, d)| {
            at((n, d)) + if d == 0 { 20.0 * (n % 2) as f64 } else { 0.0 }
        });
        let of = |x_nd: ArrayView2<'_, f64>| Tsne::of(x_nd, 300, &|| ());
        let map = of(x_nd.view()).unwrap();
        assert_eq!((map.xy.len(), map.perplexity), (60, 19.0));
        let middle = |cloud: usize| {
            let own = map.xy.iter().skip(cloud).step_by(2);
            own.fold([0.0; 2], |[x, y], [a, b]| [x + a / 30.0, y + b / 30.0])
        };
        let middles = [middle(0), middle(1)];
        for (n, point) in map.xy.iter().enumerate() {
            let [own, other] = [middles[n % 2], middles[1 - n % 2]];
            assert!(distance(point, &own) < distance(point, &other));
        }
        assert_eq!(of(x_nd.view()).unwrap(), map);
        let few = of(x_nd.slice(ndarray::s![..9, ..])).unwrap_err().to_string();
        assert_eq!(few, "9 samples are too few for t-SNE");
    }
}

//! Encoder and decoders of the release, for 1 x 28 x 28 images; sizes by name.
//!
//! Axis letters: `b` images, `z` latent width, `c` channels, `r` rows, `q` columns.

use moe_routers::Params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Side of an image.
pub const SIDE: i64 = 28;

/// Side of the feature map between convolutions and linear maps.
const INNER: i64 = 7;

/// Size of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncoderSize {
    /// 32, 64 and 128 channels, ReLU: 494,144 parameters at latent width 32.
    Medium,
    /// 16 and 8 channels, ELU: 26,472.
    Lite,
}

/// Size of every decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecoderSize {
    /// 8 and 16 channels: 14,249 parameters at latent width 32.
    Lite,
    /// 32, 64 and 32 channels: 88,993.
    Medium,
    /// Transposed convolutions from 128 channels: 371,201.
    Full,
}

/// What follows a convolution.
#[derive(Debug, Clone, Copy)]
enum Then {
    Relu,
    Elu,
    Sigmoid,
}

impl Then {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Relu => x.relu(),
            Self::Elu => x.elu(),
            Self::Sigmoid => x.sigmoid(),
        }
    }
}

/// How a stage goes over an image.
#[derive(Debug, Clone, Copy)]
enum Map {
    /// 3 x 3, padding 1, with this stride.
    Strided(i64),
    /// Every pixel twice in both directions, then 3 x 3, padding 1.
    Doubled,
    /// Transposed, of this side and stride, padding 1.
    Transposed(i64, i64),
}

/// One convolution of a network.
#[derive(Debug, Clone, Copy)]
struct Stage {
    from: i64,
    to: i64,
    map: Map,
    then: Then,
}

const fn stage(from: i64, to: i64, map: Map, then: Then) -> Stage {
    Stage { from, to, map, then }
}

impl EncoderSize {
    fn stages(self) -> &'static [Stage] {
        const MEDIUM: [Stage; 3] = [
            stage(1, 32, Map::Strided(1), Then::Relu),
            stage(32, 64, Map::Strided(2), Then::Relu),
            stage(64, 128, Map::Strided(2), Then::Relu),
        ];
        const LITE: [Stage; 2] =
            [stage(1, 16, Map::Strided(2), Then::Elu), stage(16, 8, Map::Strided(2), Then::Elu)];
        match self {
            Self::Medium => &MEDIUM,
            Self::Lite => &LITE,
        }
    }
}

impl DecoderSize {
    fn stages(self) -> &'static [Stage] {
        const LITE: [Stage; 2] =
            [stage(8, 16, Map::Doubled, Then::Elu), stage(16, 1, Map::Doubled, Then::Sigmoid)];
        const MEDIUM: [Stage; 3] = [
            stage(32, 64, Map::Doubled, Then::Elu),
            stage(64, 32, Map::Doubled, Then::Elu),
            stage(32, 1, Map::Strided(1), Then::Sigmoid),
        ];
        const FULL: [Stage; 3] = [
            stage(128, 64, Map::Transposed(4, 2), Then::Relu),
            stage(64, 32, Map::Transposed(4, 2), Then::Relu),
            stage(32, 1, Map::Transposed(3, 1), Then::Sigmoid),
        ];
        match self {
            Self::Lite => &LITE,
            Self::Medium => &MEDIUM,
            Self::Full => &FULL,
        }
    }
}

/// A matrix or kernels, and a bias.
#[derive(Debug)]
struct Weights {
    w: Tensor,
    bias: Tensor,
}

impl Weights {
    /// The variance of the release's uniform weights within `1 / sqrt(inputs)` of zero; biases at zero.
    fn new(params: &Params<'_>, name: &str, shape: &[i64], (inputs, to): (i64, i64)) -> Self {
        let params = params.child(name);
        let std = (3.0 * inputs as f64).sqrt().recip();
        Self { w: params.matrix("weight", shape, std), bias: params.constant("bias", &[to], 0.0) }
    }

    fn linear(params: &Params<'_>, name: &str, from: i64, to: i64) -> Self {
        Self::new(params, name, &[to, from], (from, to))
    }

    fn apply_linear(&self, x: &Tensor) -> Tensor {
        x.linear(&self.w, Some(&self.bias))
    }
}

impl Stage {
    fn weights(&self, params: &Params<'_>, index: usize) -> Weights {
        let (name, Self { from, to, .. }) = (format!("conv{index}"), *self);
        match self.map {
            Map::Transposed(side, _) => {
                // libtorch counts the second axis of a transposed kernel as its inputs.
                let inputs = to * side * side;
                Weights::new(params, &name, &[from, to, side, side], (inputs, to))
            }
            _ => Weights::new(params, &name, &[to, from, 3, 3], (9 * from, to)),
        }
    }

    /// `[b, from, r, q] -> [b, to, ..]`.
    fn forward(&self, weights: &Weights, x_bcrq: &Tensor) -> Tensor {
        let Weights { w, bias } = weights;
        let convolve =
            |x: &Tensor, stride: i64| x.conv2d(w, Some(bias), [stride; 2], [1, 1], [1, 1], 1);
        let y_bcrq = match self.map {
            Map::Strided(stride) => convolve(x_bcrq, stride),
            Map::Doubled => {
                let side = 2 * x_bcrq.size()[2];
                convolve(&x_bcrq.upsample_nearest2d([side; 2], None, None), 1)
            }
            Map::Transposed(_, stride) => {
                let bias = Some(bias);
                x_bcrq.conv_transpose2d(w, bias, [stride; 2], [1, 1], [0, 0], 1, [1, 1])
            }
        };
        self.then.apply(&y_bcrq)
    }

    /// Side of the image behind this stage, and products of one image in it.
    fn products(&self, side: i64) -> (i64, f64) {
        let (after, pixels, kernel) = match self.map {
            Map::Strided(stride) => (side / stride, side / stride, 3),
            Map::Doubled => (2 * side, 2 * side, 3),
            Map::Transposed(kernel, stride) => (side * stride, side, kernel),
        };
        (after, (pixels * pixels * kernel * kernel * self.from * self.to) as f64)
    }
}

/// Products of one image in all stages, and values that they write.
fn over(stages: &[Stage], side: i64) -> (f64, f64) {
    let (mut side, mut products, mut values) = (side, 0.0, 0.0);
    for stage in stages {
        let (after, of_stage) = stage.products(side);
        (side, products) = (after, products + of_stage);
        values += (after * after * stage.to) as f64;
    }
    (products, values)
}

/// Images to the mean and the logarithm of the variance of their latents.
#[derive(Debug)]
pub struct Encoder {
    size: EncoderSize,
    stages: Vec<Weights>,
    mu: Weights,
    logvar: Weights,
}

impl Encoder {
    /// A fresh encoder to latents of width `latent`.
    pub fn new(params: &Params<'_>, size: EncoderSize, latent: i64) -> Self {
        let stages = size.stages();
        let features = stages.last().map_or(0, |stage| stage.to) * INNER * INNER;
        Self {
            size,
            stages: stages.iter().enumerate().map(|(i, s)| s.weights(params, i)).collect(),
            mu: Weights::linear(params, "mu", features, latent),
            logvar: Weights::linear(params, "logvar", features, latent),
        }
    }

    /// `[b, 1, 28, 28] -> [b, z]` twice: mu and logvar.
    pub fn forward(&self, x_bcrq: &Tensor) -> [Tensor; 2] {
        let layers = self.size.stages().iter().zip(&self.stages);
        let h_bcrq = layers.fold(x_bcrq.shallow_clone(), |h, (stage, w)| stage.forward(w, &h));
        let flat = h_bcrq.flatten(1, -1);
        [self.mu.apply_linear(&flat), self.logvar.apply_linear(&flat)]
    }

    /// Products of one image, and values that its pass keeps.
    pub fn cost(&self) -> (f64, f64) {
        let (products, values) = over(self.size.stages(), SIDE);
        (products + 2.0 * self.mu.w.numel() as f64, values)
    }
}

/// Latents to images.
#[derive(Debug)]
pub struct Decoder {
    size: DecoderSize,
    fc: Weights,
    stages: Vec<Weights>,
}

impl Decoder {
    /// A fresh decoder of latents of width `latent`.
    pub fn new(params: &Params<'_>, size: DecoderSize, latent: i64) -> Self {
        let stages = size.stages();
        Self {
            size,
            fc: Weights::linear(params, "fc", latent, stages[0].from * INNER * INNER),
            stages: stages.iter().enumerate().map(|(i, s)| s.weights(params, i)).collect(),
        }
    }

    /// `[b, z] -> [b, 784]`: pixels in rows, as probabilities.
    pub fn forward(&self, z_bz: &Tensor) -> Tensor {
        let stages = self.size.stages();
        // No activation behind the linear map: so it is in the release.
        let h_bcrq = self.fc.apply_linear(z_bz).view([-1, stages[0].from, INNER, INNER]);
        let layers = stages.iter().zip(&self.stages);
        layers.fold(h_bcrq, |h, (stage, w)| stage.forward(w, &h)).flatten(1, -1)
    }

    /// Products of one image, and values that its pass keeps.
    pub fn cost(&self) -> (f64, f64) {
        let (products, values) = over(self.size.stages(), INNER);
        (products + self.fc.w.numel() as f64, values)
    }
}

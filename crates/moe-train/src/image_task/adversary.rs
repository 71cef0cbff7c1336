//! Attacks on an image classifier through its gradients: FGSM, PGD and SPSA of [`moe_core::metrics::attack`]
//! on a model of this crate.
//!
//! As in ACMoE's release (arXiv 2502.15315): the attack raises the loss with the model's own predictions, on
//! images already standardised and not cut to what a pixel can be, so `eps` is in standardised units.
//! Accuracy is with the true labels. SPSA looks at one image at a time: where images share a routing group
//! ([`moe_models::LmConfig`]'s `routing_group`), it sees other groups than an evaluation does.
//!
//! Axis letters: `n` images, `d` values of an image, `c` classes, `i` iterations, `s` samples.

use super::{ImageTask, OnDevice};
use crate::evaluate::EvalPlan;
use crate::trainer::TrainError;
use moe_core::RouteError;
use moe_core::metrics::attack::{Classifier, Fgsm, Pgd, Spsa};
use moe_core::metrics::probe::predictions;
use moe_models::{ImageClassifier, LayerTrace};
use moe_routers::convert::{to_host, to_host_i64, to_indices, to_tensor};
use moe_routers::{Phase, RouteCx, SeededNoise};
use ndarray::{Array2, Array4, ArrayView2};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use tch::Tensor;

/// An attack with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ImageAttack {
    /// One step.
    Fgsm(Fgsm),
    /// Many steps from a random start.
    Pgd(Pgd),
    /// Without gradients: so many random directions a step.
    Spsa(Spsa, usize),
}

impl ImageAttack {
    /// Names of the attacks.
    pub const NAMES: [&'static str; 3] = ["fgsm", "pgd", "spsa"];

    /// The attack of this name with ACMoE's budget `e`: FGSM and PGD `e/255`, PGD in 20 steps of 0.15 eps, SPSA
    /// `e/10` in 20 steps of 128 directions; `None` for another name.
    pub fn with_budget(name: &str, e: u32) -> Option<Self> {
        let eps = f64::from(e) / 255.0;
        match name {
            "fgsm" => Some(Self::Fgsm(Fgsm { eps, ..Fgsm::default() })),
            "pgd" => Some(Self::Pgd(Pgd { eps, ..Pgd::default() })),
            "spsa" => Some(Self::Spsa(Spsa { eps: f64::from(e) / 10.0, ..Spsa::default() }, 128)),
            _ => None,
        }
    }

    /// Attacks images, with draws that `generator` gives.
    fn run(
        &self,
        network: &dyn Classifier,
        (x_nd, label_n): (ArrayView2<'_, f64>, &[usize]),
        generator: &mut ChaCha8Rng,
    ) -> Result<Array2<f64>, TrainError> {
        let attacked_nd = match self {
            Self::Fgsm(fgsm) => fgsm.attack(network, x_nd, label_n)?,
            Self::Pgd(pgd) => {
                let start =
                    || 2.0 * (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64 - 1.0;
                let start_nd = Array2::from_shape_simple_fn(x_nd.dim(), start);
                pgd.attack(network, x_nd, label_n, Some(start_nd.view()))?
            }
            Self::Spsa(spsa, samples) => {
                let shape = (x_nd.nrows(), spsa.iters, *samples, x_nd.ncols());
                let sign = || if generator.next_u32() & 1 == 0 { 1.0 } else { -1.0 };
                let sign_nisd = Array4::from_shape_simple_fn(shape, sign);
                spsa.attack(network, x_nd, label_n, sign_nisd.view(), None)?
            }
        };
        Ok(attacked_nd)
    }
}

/// What an attack did to a model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Attacked {
    /// Images attacked.
    pub images: usize,
    /// Mean cross-entropy with the true labels on clean images, nats.
    pub clean_loss: f64,
    /// The same under attack.
    pub loss: f64,
    /// Mean cross-entropy with the labels that the attack is against, the model's own predictions on clean
    /// images, there.
    pub clean_own_loss: f64,
    /// The same under attack: what the attack raises.
    pub own_loss: f64,
    /// Share of clean images that get their true label.
    pub clean_accuracy: f64,
    /// The same under attack.
    pub accuracy: f64,
    /// Share of images whose prediction changed.
    pub changed: f64,
    /// Largest change of a value, in standardised units.
    pub distance: f64,
}

/// One batch, clean and attacked, with a trace per sparse layer of each.
#[derive(Debug)]
pub struct AttackedBatch {
    /// Before.
    pub clean: Vec<LayerTrace>,
    /// After.
    pub attacked: Vec<LayerTrace>,
}

/// A model as attacks see it.
struct Network<'a> {
    model: &'a dyn ImageClassifier,
    /// A tensor like those that the model reads, `[b, c, h, w]`.
    like_bchw: &'a Tensor,
    classes: usize,
    noise: SeededNoise,
    /// The first refusal of a router: an attack knows no errors.
    refused: RefCell<Option<RouteError>>,
}

impl Network<'_> {
    fn cx(&self) -> RouteCx<'_> {
        RouteCx::new(Phase::Eval, &self.noise)
    }

    /// Flat images as the model reads them.
    fn images(&self, x_nd: ArrayView2<'_, f64>) -> Tensor {
        let mut shape = self.like_bchw.size();
        shape[0] = x_nd.nrows() as i64;
        to_tensor(x_nd, self.like_bchw).view(shape.as_slice())
    }

    /// What the model says, or `otherwise` after a refusal, which is kept.
    fn or_refused<T>(&self, said: Result<T, RouteError>, otherwise: impl FnOnce() -> T) -> T {
        said.unwrap_or_else(|error| {
            self.refused.borrow_mut().get_or_insert(error);
            otherwise()
        })
    }
}

impl Classifier for Network<'_> {
    fn width(&self) -> usize {
        self.like_bchw.size()[1..].iter().product::<i64>() as usize
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn logits(&self, x_nd: ArrayView2<'_, f64>) -> Array2<f64> {
        let said = tch::no_grad(|| self.model.forward(&self.images(x_nd), &self.cx()));
        let host = said.map(|(logits_bv, _)| to_host(&logits_bv));
        self.or_refused(host, || Array2::zeros((x_nd.nrows(), self.classes)))
    }

    fn loss_gradient(&self, x_nd: ArrayView2<'_, f64>, label_n: &[usize]) -> Array2<f64> {
        let x_bchw = self.images(x_nd).set_requires_grad(true);
        let label_b = to_indices(label_n, &[label_n.len() as i64], &x_bchw);
        let said = self.model.forward(&x_bchw, &self.cx()).map(|(logits_bv, _)| {
            // Of every image alone: the sum over the batch, not the mean.
            let loss = logits_bv.cross_entropy_for_logits(&label_b) * x_nd.nrows() as f64;
            let [grad_bchw] = Tensor::run_backward(&[loss], &[&x_bchw], false, false)
                .try_into()
                .expect("one gradient for one input");
            to_host(&grad_bchw.flatten(1, -1))
        });
        self.or_refused(said, || Array2::zeros(x_nd.dim()))
    }
}

impl ImageTask {
    /// Attacks the images of an evaluation; `watch` sees the routes of every batch before and after. Draws are
    /// functions of the plan's seed and the batch. The parameters keep their values; what lies in their
    /// gradients is lost, so this is for a model that is not being trained.
    ///
    /// # Errors
    /// As [`crate::Task::evaluate`], and settings of the attack out of their range.
    pub fn attack(
        &self,
        attack: &ImageAttack,
        plan: &EvalPlan<'_>,
        watch: &mut dyn FnMut(&AttackedBatch),
    ) -> Result<Attacked, TrainError> {
        let batches = self.data.eval_batches(plan.split, self.batch)?;
        let mut total = Attacked::default();
        for (index, batch) in batches.take(plan.batches.unwrap_or(usize::MAX)).enumerate() {
            if plan.stop.load(Ordering::Relaxed) {
                return Err(TrainError::Stopped);
            }
            let (of_batch, seen) =
                self.attack_batch(attack, &self.to_device(&batch), (plan.seed, index as u64))?;
            watch(&seen);
            total.add(&of_batch);
        }
        Ok(total.mean())
    }

    fn attack_batch(
        &self,
        attack: &ImageAttack,
        batch: &OnDevice,
        (seed, index): (u64, u64),
    ) -> Result<(Attacked, AttackedBatch), TrainError> {
        let network = Network {
            model: self.model.as_ref(),
            like_bchw: &batch.x_bchw,
            classes: self.data.classes().len(),
            noise: SeededNoise::eval(seed, index),
            refused: RefCell::default(),
        };
        let x_nd = to_host(&batch.x_bchw.flatten(1, -1));
        let label_n = predictions(network.logits(x_nd.view()).view());
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(index);
        let attacked_nd = attack.run(&network, (x_nd.view(), &label_n), &mut generator);
        if let Some(error) = network.refused.take() {
            return Err(error.into());
        }
        let attacked_nd = attacked_nd?;
        let attacked = OnDevice {
            x_bchw: network.images(attacked_nd.view()),
            target_bv: batch.target_bv.shallow_clone(),
            label_b: batch.label_b.shallow_clone(),
        };
        let distance = (&attacked_nd - &x_nd).iter().fold(0.0, |far: f64, v| far.max(v.abs()));
        let (before, clean) = self.said((batch, &label_n), &network.cx())?;
        let (after, damaged) = self.said((&attacked, &label_n), &network.cx())?;
        let changed = before.class_b.iter().zip(&after.class_b).filter(|(a, b)| a != b).count();
        let of_batch = Attacked {
            images: label_n.len(),
            clean_loss: before.loss,
            loss: after.loss,
            clean_own_loss: before.own_loss,
            own_loss: after.own_loss,
            clean_accuracy: before.accuracy,
            accuracy: after.accuracy,
            changed: changed as f64 / label_n.len() as f64,
            distance,
        };
        Ok((of_batch, AttackedBatch { clean, attacked: damaged }))
    }

    fn said(
        &self,
        (batch, own_n): (&OnDevice, &[usize]),
        cx: &RouteCx<'_>,
    ) -> Result<(Said, Vec<LayerTrace>), TrainError> {
        let _guard = tch::no_grad_guard();
        let (logits_bv, traces) = self.model.forward(&batch.x_bchw, cx)?;
        let class_b = to_host_i64(&logits_bv.argmax(-1, false));
        let label_b = to_host_i64(&batch.label_b);
        let right = class_b.iter().zip(&label_b).filter(|(a, b)| a == b).count();
        let accuracy = right as f64 / class_b.len() as f64;
        let loss = super::cross_entropy(&logits_bv, &batch.target_bv).double_value(&[]);
        let own_b = to_indices(own_n, &[own_n.len() as i64], &logits_bv);
        let own_loss = logits_bv.cross_entropy_for_logits(&own_b).double_value(&[]);
        Ok((Said { loss, own_loss, accuracy, class_b }, traces))
    }
}

/// What the model says of a batch.
struct Said {
    loss: f64,
    own_loss: f64,
    accuracy: f64,
    class_b: Vec<i64>,
}

impl Attacked {
    fn means(&mut self) -> [&mut f64; 7] {
        let Self {
            clean_loss,
            loss,
            clean_own_loss,
            own_loss,
            clean_accuracy,
            accuracy,
            changed,
            ..
        } = self;
        [clean_loss, loss, clean_own_loss, own_loss, clean_accuracy, accuracy, changed]
    }

    /// Adds a batch, its means times its images.
    fn add(&mut self, batch: &Self) {
        let (images, mut batch) = (batch.images as f64, *batch);
        self.means().into_iter().zip(batch.means()).for_each(|(sum, mean)| *sum += *mean * images);
        self.images += batch.images;
        self.distance = self.distance.max(batch.distance);
    }

    fn mean(mut self) -> Self {
        let images = self.images as f64;
        self.means().into_iter().for_each(|sum| *sum /= images);
        self
    }
}

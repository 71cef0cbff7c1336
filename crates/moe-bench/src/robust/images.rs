//! Corruptions of pictures, and attacks through gradients.

use super::routes::{Routes, evaluate};
use super::{Outcome, Row, Score, Study};
use crate::subject::Subject;
use anyhow::Result;
use moe_data::Images;
use moe_data::corrupt::{FrostPictures, ImageCorruption, published};
use moe_routers::ParamStore;
use moe_train::{EvalPlan, ImageAttack, Task, checkpoint, trainer};
use std::sync::Arc;
use tch::Kind;

impl Study<'_> {
    /// A corruption, from the directory of a published set if one is given, else made here.
    pub(super) fn corrupt(
        &self,
        images: &Images,
        (corruption, severity): (ImageCorruption, usize),
    ) -> Result<Outcome> {
        let damaged = match &self.args.corrupted {
            Some(dir) => match published::read(dir, images, (corruption, severity))? {
                Some(set) => set,
                None => return Ok(Err(format!("{}: no such corruption there", dir.display()))),
            },
            None => match (corruption.needs_pictures(), &self.args.frost) {
                (true, None) => {
                    return Ok(Err("frost needs pictures of frost: --frost DIR".into()));
                }
                (_, frost) => {
                    let frost = frost.as_deref().map(FrostPictures::open).transpose()?;
                    let set = images.split(self.split);
                    corruption.apply(set, severity, self.args.seed, frost.as_ref())?
                }
            },
        };
        let Subject::Images(_, vision) = self.prepared.subject() else {
            unreachable!("pictures are of a run on pictures")
        };
        // A published set may hold other images, or the same in another order.
        let same = damaged.labels() == images.split(self.split).labels();
        let damaged = images.with_split(self.split, damaged)?;
        let subject = Subject::Images(Arc::new(damaged), vision.clone());
        let damaged = self.prepared.with_subject(subject)?;
        let after = evaluate(&damaged, (self.split, self.args.batches))?;
        let cell = (corruption.name(), severity as f64);
        if !same {
            return Ok(Ok(Row::new(cell, after.score, &[], "not: other images")));
        }
        let pair_t = self.clean.routes.in_place(&after.routes);
        let flips = self.clean.routes.flips(&after.routes, &pair_t);
        Ok(Ok(Row::new(cell, after.score, &flips, "position")))
    }

    /// An attack with a budget, on at most as many images as the flags allow.
    pub(super) fn attack_images(&self, name: &str, budget: u32) -> Result<Outcome> {
        let Some(attack) = ImageAttack::with_budget(name, budget) else {
            return Ok(Err("unknown".into()));
        };
        let task = self.task(name)?;
        let task = task.as_images().expect("pictures are of a run on pictures");
        let batches = match attack {
            ImageAttack::Spsa(..) => Some(1),
            _ => self.args.batches,
        };
        let plan = EvalPlan {
            split: self.split,
            batches,
            seed: self.prepared.recipe().seed,
            stop: self.prepared.stop(),
            watch: None,
        };
        let (mut clean, mut damaged) = (Routes::default(), Routes::default());
        let done = task.attack(&attack, &plan, &mut |batch| {
            clean.add(&batch.clean);
            damaged.add(&batch.attacked);
        })?;
        let flips = clean.flips(&damaged, &clean.in_place(&damaged));
        let score = |loss, accuracy| Score {
            loss,
            perplexity: None,
            accuracy: Some(accuracy),
            targets: done.images,
        };
        let cell = (name, f64::from(budget));
        Ok(Ok(Row {
            clean: Some(score(done.clean_loss, done.clean_accuracy)),
            changed: Some(done.changed),
            ..Row::new(cell, score(done.loss, done.accuracy), &flips, "position")
        }))
    }

    /// The classifier of this run, in batches of as many images as the attack can bear.
    fn task(&self, name: &str) -> Result<Box<dyn Task>> {
        let mut recipe = self.prepared.recipe().clone();
        if name == "spsa" {
            recipe.train.batch = recipe.train.batch.min(self.args.spsa_images.into());
        }
        let device = self.prepared.device();
        let store = ParamStore::new(recipe.seed, device, Kind::Float);
        let task = self.prepared.subject().task(&recipe, &store, device)?;
        let newest = checkpoint::latest(&crate::run::RunDir(self.dir.to_owned()).checkpoints())?;
        let newest = newest.expect("the run was loaded from a checkpoint");
        checkpoint::load_model(&newest, &trainer::named(&store))?;
        Ok(task)
    }
}

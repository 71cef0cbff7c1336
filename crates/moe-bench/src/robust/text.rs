//! Attacks on text: the text is attacked, then cut into tokens and evaluated.
//!
//! Every window of the attacked text begins where the clean window of its number begins, so that both read the
//! same text, and tokens can be compared within a window. Where an attack keeps the number of tokens (a word
//! swap and a word tokeniser, letters and bytes), that is the papers' way of cutting the whole attacked text
//! into blocks, and tokens are compared position by position. Otherwise only tokens that the attack did not
//! touch are compared, and the ones before the end of a window that fell out of it are not; then positions
//! within the window differ, which may flip routes too.

use super::routes::evaluate;
use super::{Outcome, Row, Study};
use crate::subject::Subject;
use anyhow::Result;
use moe_data::corrupt::{Alignment, TextAttack};
use moe_data::{Corpus, TokenStream};
use std::sync::Arc;

impl Study<'_> {
    pub(super) fn attack_text(
        &self,
        stream: &TokenStream,
        (attack, rate): (TextAttack, f64),
    ) -> Result<Outcome> {
        let recipe = self.prepared.recipe();
        let corpus = Corpus::open(&recipe.data.source)?;
        let len = recipe.train.sequence;
        let text = (self.split, corpus.text(self.split));
        let done = stream.attacked(text, (attack, rate, self.args.seed), len)?;
        let in_place = done.alignment.is_in_place();
        if recipe.model.span.is_some() && !in_place {
            return Ok(Err(
                "a model with a memory (model.span) reads its text in one go, and this attack \
                           changes the number of tokens: take a word tokeniser"
                    .into(),
            ));
        }
        let attacked = self.prepared.with_subject(Subject::Text(Arc::new(done.stream)))?;
        let after = evaluate(&attacked, (self.split, self.args.batches))?;
        let (clean, damaged) = (&self.clean.routes, &after.routes);
        let pair_t = match in_place {
            true => clean.in_place(damaged),
            false => pairs(&done.alignment, len, clean.tokens().min(damaged.tokens())),
        };
        let flips = clean.flips(damaged, &pair_t);
        let aligned = if in_place { "position" } else { "unchanged tokens" };
        let changed = Some(done.changed as f64 / done.places.max(1) as f64);
        Ok(Ok(Row { changed, ..Row::new((attack.name(), rate), after.score, &flips, aligned) }))
    }
}

/// The same tokens in the windows among the first `tokens`, which are of `len` each.
fn pairs(alignment: &Alignment, len: usize, tokens: usize) -> Vec<(usize, usize)> {
    let windows = alignment.windows().min(tokens / len);
    let of = |window: usize| {
        alignment.pairs(window).map(move |(i, j)| (window * len + i, window * len + j))
    };
    (0..windows).flat_map(of).collect()
}

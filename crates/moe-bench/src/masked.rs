//! The part of a recipe for masked language models: `[masked]` makes the model an encoder that predicts hidden
//! tokens, and `data.source` text in several languages.
//!
//! ```toml
//! [data]
//! source = "help8"                # tables and directories, joined by `+`
//! tokenizer = { kind = "train-bpe", vocab = 8000 }
//!
//! [masked]
//! alpha = 0.5                     # how much frequent languages prevail
//! translation = 0.5               # share of rows with a paragraph and its translation
//! ```
//!
//! `[model]` then has the sizes of the blocks.

use crate::error::Misuse;
use crate::recipe::Recipe;

/// Refuses values that do not go together, before text is read.
///
/// # Errors
/// The key and what is wrong.
pub(crate) fn check(recipe: &Recipe) -> Result<(), Misuse> {
    let Some(masking) = &recipe.masked else { return Ok(()) };
    masking.check().map_err(|(key, reason)| Misuse::recipe(&format!("masked.{key}"), reason))?;
    let refuse = |key: &str, reason: &str| Err(Misuse::recipe(key, reason));
    if recipe.vision.is_some() {
        return refuse("masked", "has no meaning beside [vision]: images have no hidden tokens");
    }
    if recipe.model.span.is_some() {
        return refuse(
            "model.span",
            "has no meaning beside [masked]: an encoder attends to a whole row",
        );
    }
    if recipe.classify.is_some() {
        return refuse("masked", "has no meaning beside [classify]: classes are not hidden tokens");
    }
    if recipe.model.softmax.is_some() {
        return refuse("model.softmax", "has no meaning beside [masked]: its softmax is whole");
    }
    if recipe.train.sequence < 2 {
        return refuse(
            "train.sequence",
            "1 leaves no room beside the separator; expected at least 2",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sets: &[&str]) -> Result<Recipe, Misuse> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Recipe::parse("router = 'x-moe'\n[data]\nsource = 'help8'\n[masked]\nalpha = 0.3\n", &sets)
    }

    #[track_caller]
    fn assert_refused(set: &str, message: &str) {
        assert_eq!(parse(&[set]).unwrap_err().to_string(), message);
    }

    #[test]
    fn bad_values_name_their_key() {
        assert_refused("masked.alpha=2", "masked.alpha: 2 is outside 0..=1");
        assert_refused("masked.share=1.0", "masked.share: 1 must be above 0 and below 1");
        assert_refused(
            "model.span=8",
            "model.span: has no meaning beside [masked]: an encoder attends to a whole row",
        );
        assert_refused(
            "train.sequence=1",
            "train.sequence: 1 leaves no room beside the separator; expected at least 2",
        );
        assert_refused(
            "vision.patch=7",
            "masked: has no meaning beside [vision]: images have no hidden tokens",
        );
        assert_refused(
            "model.softmax.adaptive=[100]",
            "model.softmax: has no meaning beside [masked]: its softmax is whole",
        );
        let unknown = parse(&["masked.tlm=1"]).unwrap_err().to_string();
        assert!(unknown.starts_with("masked.tlm: unknown field"), "{unknown}");
    }

    #[test]
    fn what_is_recorded_is_read_again() {
        let recipe = parse(&[]).unwrap().resolved().unwrap();
        let again = Recipe::parse(&recipe.to_toml(), &[]).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(again.masked.map(|masking| masking.alpha), Some(0.3));
    }

    /// A router that reads ids of words gets room for the mask and the separator.
    #[test]
    fn the_mask_and_the_separator_are_ids() {
        let recipe = parse(&["router=hash"]).unwrap().resolved().unwrap();
        assert_eq!(recipe.router.settings["vocab"], 258);
    }
}

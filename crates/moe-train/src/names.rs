//! Names in files: every expert under its own number, in the shape that checkpoints on the Hugging Face
//! hub have.
//!
//! ```text
//! layers.1.experts.w1  [e, h, d]  ->  model.layers.1.mlp.experts.<0..e>.up_proj.weight    [h, d]
//! layers.1.experts.w2  [e, d, h]  ->  model.layers.1.mlp.experts.<0..e>.down_proj.weight  [d, h]
//! layers.1.experts.gate           ->                                   .gate_proj.weight
//! layers.1.experts.b1, b2         ->                                   .up_proj.bias, .down_proj.bias
//! layers.0.dense.w1    [1, h, d]  ->  model.layers.0.mlp.up_proj.weight                   [h, d]
//! any other name                  ->  model.<name>
//! ```
//!
//! Moments keep their ending `.m` or `.v`. In memory experts are stacked: the kernels want it so.
//! Routers keep their own names, for they have parameters that no other checkpoint has.

use tch::Tensor;

/// Ends of stacked names, and what they are called in files.
const PARTS: [(&str, &str); 5] = [
    ("w1", "up_proj.weight"),
    ("gate", "gate_proj.weight"),
    ("w2", "down_proj.weight"),
    ("b1", "up_proj.bias"),
    ("b2", "down_proj.bias"),
];

/// Tensors under the names that files have for them. Experts come out as views: writing to them writes
/// to the stacked tensor.
pub(crate) fn in_files(tensors: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    tensors.iter().flat_map(|(name, tensor)| in_file(name, tensor)).collect()
}

fn in_file(name: &str, tensor: &Tensor) -> Vec<(String, Tensor)> {
    let Some((place, bank, part)) = stacked(name) else {
        return vec![(format!("model.{name}"), tensor.shallow_clone())];
    };
    let each = tensor.detach().unbind(0).into_iter().enumerate();
    let full = |index: usize| match bank {
        "dense" => format!("model.{place}.mlp.{part}"),
        _ => format!("model.{place}.mlp.experts.{index}.{part}"),
    };
    each.map(|(index, one)| (full(index), one)).collect()
}

/// Splits `PLACE.experts.w1.m` into place, bank and the file's name of the rest.
fn stacked(name: &str) -> Option<(&str, &str, String)> {
    let bank = ["experts", "dense"].into_iter().find(|bank| name.contains(&format!(".{bank}.")))?;
    let (place, rest) = name.split_once(&format!(".{bank}."))?;
    let (part, moment) = match rest.split_once('.') {
        Some((part, moment)) => (part, format!(".{moment}")),
        None => (rest, String::new()),
    };
    let (_, part) = PARTS.iter().find(|(own, _)| *own == part)?;
    Some((place, bank, format!("{part}{moment}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn names(name: &str, experts: i64) -> Vec<String> {
        let tensor = Tensor::zeros([experts, 3, 4], (Kind::Float, Device::Cpu));
        in_file(name, &tensor).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_expert_has_its_number() {
        let up = names("layers.2.experts.w1", 2);
        assert_eq!(
            up,
            [
                "model.layers.2.mlp.experts.0.up_proj.weight",
                "model.layers.2.mlp.experts.1.up_proj.weight"
            ]
        );
        let moment = names("layers.2.experts.b2.v", 1);
        assert_eq!(moment, ["model.layers.2.mlp.experts.0.down_proj.bias.v"]);
        assert_eq!(names("layers.0.dense.gate", 1), ["model.layers.0.mlp.gate_proj.weight"]);
        assert_eq!(names("layers.0.router.gate", 2), ["model.layers.0.router.gate"]);
        assert_eq!(names("position", 2), ["model.position"]);
    }

    /// Who keeps packed weights looks at the version of the stacked tensor.
    #[test]
    fn writing_to_an_expert_writes_to_the_bank_and_shows() {
        let bank = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let before = bank.internal_version();
        let views = in_file("l.experts.b1", &bank);
        tch::no_grad(|| views[1].1.shallow_clone().copy_(&Tensor::from_slice(&[1f32, 2.0, 3.0])));
        assert_eq!(bank.double_value(&[1, 2]), 3.0);
        assert!(bank.internal_version() > before && bank.requires_grad());
    }
}

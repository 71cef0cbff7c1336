//! What of a router is never learned: part of the state, and seen by no optimiser.

use crate::rig::{Rig, preset};
use moe_routers::{Role, routers};
use tch::Kind;

/// Experts of a layer that every preset accepts.
const EXPERTS: usize = 16;

#[test]
fn only_these_are_never_learned() {
    let mut fixed = Vec::new();
    for paper in routers() {
        let rig = Rig::new(paper, &preset(paper, paper.presets[0]), EXPERTS, Kind::Double).unwrap();
        let params = rig.store.entries();
        assert!(params.iter().all(|p| p.tensor.requires_grad() == (p.role != Role::Buffer)));
        let names = params.iter().filter(|p| p.role == Role::Buffer).map(|p| p.name.clone());
        fixed.extend(names.map(|name| format!("{}: {name}", paper.id)));
    }
    assert_eq!(fixed, ["smoe-dropout: gate", "deepseek-v3: bias"]);
}

//! Parameters by name, with initial values that are a function of (seed, name, shape).
//!
//! Because the value of `layers.3.attn.qkv` depends on nothing but its own name and shape, two models
//! that differ only in their routers start from the same weights wherever the shapes agree.

use crate::noise::stable_hash;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use tch::{Device, Kind, Tensor};

/// Initial values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Const(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// A matrix with orthonormal rows, or columns where it is tall, times this factor.
    Orthogonal(f64),
    /// Row `p` holds `sin(p / 10000^(2i/d))` in column `2i` and the cosine in `2i + 1`, times this factor: the
    /// positions of *Attention Is All You Need*, arXiv 1706.03762, section 3.5.
    Sinusoids(f64),
}

/// What happens to a tensor during training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Learned, and pulled to zero by weight decay.
    Decayed,
    /// Learned, without weight decay: biases, norms, scalars.
    Undecayed,
    /// Not learned, but part of the model's state: tables, codebooks, selection biases.
    Buffer,
}

/// One named tensor.
#[derive(Debug)]
pub struct Param {
    /// Dotted name, unique in its store.
    pub name: String,
    /// The value; shared with the module that uses it.
    pub tensor: Tensor,
    /// What happens to it.
    pub role: Role,
}

/// Most values of one tensor of a sketch: a pebibyte in `f32`.
const MOST_VALUES: i64 = 1 << 48;

/// All parameters of a model, in the order of their creation.
#[derive(Debug)]
pub struct ParamStore {
    seed: u64,
    device: Device,
    kind: Kind,
    /// Values that take the place of initial ones.
    given: HashMap<String, Tensor>,
    /// Whether tensors have shapes and no values of their own.
    sketch: bool,
    oversized: RefCell<Option<String>>,
    names: RefCell<HashSet<String>>,
    entries: RefCell<Vec<Param>>,
}

impl ParamStore {
    /// An empty store; `seed` decides all initial values.
    pub fn new(seed: u64, device: Device, kind: Kind) -> Self {
        let (given, oversized, names, entries) = Default::default();
        Self { seed, device, kind, given, sketch: false, oversized, names, entries }
    }

    /// A store for a model that is only measured: every tensor has its shape and a single value, seen
    /// from everywhere, so that a model of any size takes no memory. It must not be run.
    pub fn sketch(kind: Kind) -> Self {
        Self { sketch: true, ..Self::new(0, Device::Cpu, kind) }
    }

    /// The same store with these tensors, graph and all, in the place of initial values: weights
    /// made elsewhere, or the output of another computation.
    pub fn with_given(mut self, given: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        self.given.extend(given);
        self
    }

    /// Where a model's modules register their parameters.
    pub fn root(&self) -> Params<'_> {
        Params { store: self, prefix: String::new(), kind: self.kind }
    }

    /// Every entry, in the order of creation.
    pub fn entries(&self) -> std::cell::Ref<'_, Vec<Param>> {
        self.entries.borrow()
    }

    /// Number of values in learned tensors.
    pub fn trainable_count(&self) -> usize {
        let entries = self.entries();
        entries.iter().filter(|p| p.role != Role::Buffer).map(|p| p.tensor.numel()).sum()
    }

    /// Keeps every gradient from the tensors whose names `frozen` says: training leaves them as they are.
    pub fn freeze(&self, frozen: impl Fn(&str) -> bool) {
        for param in self.entries().iter().filter(|p| frozen(&p.name)) {
            let _ = param.tensor.set_requires_grad(false);
        }
    }

    /// Forgets every gradient.
    pub fn zero_grad(&self) {
        for param in self.entries.borrow_mut().iter_mut() {
            param.tensor.zero_grad();
        }
    }

    /// The first tensor of a sketch that has more than 2^48 values, with its shape.
    pub fn oversized(&self) -> Option<String> {
        self.oversized.borrow().clone()
    }

    /// A tensor of this shape that takes no memory; of one value, and noted, where the shape is beyond
    /// what can be numbered.
    fn outline(&self, name: &str, shape: &[i64], kind: Kind) -> Tensor {
        let one = Tensor::zeros([], (kind, self.device));
        let values = shape.iter().try_fold(1i64, |values, axis| values.checked_mul(*axis));
        if values.is_some_and(|values| values <= MOST_VALUES) {
            return one.expand(shape, false);
        }
        let said = format!("{name} of {shape:?}");
        self.oversized.borrow_mut().get_or_insert(said);
        one.expand(vec![1; shape.len()], false)
    }

    fn value(&self, name: &str, shape: &[i64], init: Init, kind: Kind) -> Tensor {
        match init {
            _ if self.sketch => self.outline(name, shape, kind),
            Init::Const(value) => Tensor::full(shape, value, (kind, self.device)),
            Init::Orthogonal(gain) => {
                orthogonal(&self.value(name, shape, Init::Normal(1.0), kind), gain)
            }
            Init::Sinusoids(scale) => sinusoids(shape, scale).to_kind(kind).to_device(self.device),
            Init::Normal(std) => {
                let mut key = [0; 32];
                key[..8].copy_from_slice(&self.seed.to_le_bytes());
                key[8..16].copy_from_slice(&stable_hash(name).to_le_bytes());
                let count = shape.iter().product::<i64>() as usize;
                let values: Vec<f64> = StandardNormal
                    .sample_iter(ChaCha8Rng::from_seed(key))
                    .take(count)
                    .map(|z: f64| z * std)
                    .collect();
                Tensor::from_slice(&values).view(shape).to_kind(kind).to_device(self.device)
            }
        }
    }
}

/// [`Init::Sinusoids`], double.
fn sinusoids(shape: &[i64], scale: f64) -> Tensor {
    let &[rows, columns] = shape else { panic!("positions are a matrix, not {shape:?}") };
    let value = |position: i64, column: i64| {
        let exponent = (column - column % 2) as f64 / columns as f64;
        let angle = position as f64 / 10_000.0_f64.powf(exponent);
        scale * if column % 2 == 0 { angle.sin() } else { angle.cos() }
    };
    let values: Vec<f64> =
        (0..rows).flat_map(|row| (0..columns).map(move |column| value(row, column))).collect();
    Tensor::from_slice(&values).view(shape)
}

/// The orthonormal factor of a matrix times `gain`, along its shorter axis.
fn orthogonal(normal: &Tensor, gain: f64) -> Tensor {
    let wide = normal.size()[0] < normal.size()[1];
    let tall = if wide { normal.tr() } else { normal.shallow_clone() };
    let (q, r) = Tensor::linalg_qr(&tall.to_device(Device::Cpu).to_kind(Kind::Double), "reduced");
    // The factor is unique, and uniform over rotations, once R has a positive diagonal.
    let q = q * r.diagonal(0, 0, 1).sign() * gain;
    let q = if wide { q.tr() } else { q };
    q.contiguous().to_kind(normal.kind()).to_device(normal.device())
}

/// A place in a [`ParamStore`] under a dotted prefix.
#[derive(Debug, Clone)]
pub struct Params<'a> {
    store: &'a ParamStore,
    prefix: String,
    kind: Kind,
}

impl<'a> Params<'a> {
    /// The place `name` below this one.
    pub fn child(&self, name: impl std::fmt::Display) -> Params<'a> {
        Params { prefix: self.full_name(&name.to_string()), ..*self }
    }

    /// The same place for tensors that are at least `f32`, whatever the rest of the store is: routers
    /// and their statistics are not computed in less (see [`guard`](crate::guard)).
    pub fn wide(&self) -> Params<'a> {
        Params { prefix: self.prefix.clone(), kind: crate::guard::wide(self.kind), ..*self }
    }

    /// Registers a new tensor.
    ///
    /// # Panics
    /// If the name is taken: two modules would share a checkpoint entry; or if the value given for
    /// it has another shape.
    pub fn add(&self, name: &str, shape: &[i64], init: Init, role: Role) -> Tensor {
        let name = self.full_name(name);
        let tensor = match self.store.given.get(&name) {
            Some(given) => {
                assert_eq!(given.size(), shape, "{name} was given with another shape");
                given.shallow_clone()
            }
            None => {
                let value = self.store.value(&name, shape, init, self.kind);
                value.set_requires_grad(role != Role::Buffer)
            }
        };
        let new = self.store.names.borrow_mut().insert(name.clone());
        assert!(new, "parameter {name} registered twice");
        self.store.entries.borrow_mut().push(Param { name, tensor: tensor.shallow_clone(), role });
        tensor
    }

    /// A learned matrix, normal with standard deviation `std`.
    pub fn matrix(&self, name: &str, shape: &[i64], std: f64) -> Tensor {
        self.add(name, shape, Init::Normal(std), Role::Decayed)
    }

    /// A learned vector or scalar without weight decay, constant at first.
    pub fn constant(&self, name: &str, shape: &[i64], value: f64) -> Tensor {
        self.add(name, shape, Init::Const(value), Role::Undecayed)
    }

    /// Where the tensors lie.
    pub fn device(&self) -> Device {
        self.store.device
    }

    /// Whether the model is only measured ([`ParamStore::sketch`]).
    pub fn is_sketch(&self) -> bool {
        self.store.sketch
    }

    /// What learned values are stored in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.into() } else { format!("{}.{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(seed: u64, name: &str) -> Tensor {
        let store = ParamStore::new(seed, Device::Cpu, Kind::Float);
        store.root().child("a").matrix(name, &[3, 4], 0.02)
    }

    #[test]
    fn values_depend_on_seed_and_name_only() {
        assert_eq!(matrix(1, "w"), matrix(1, "w"));
        assert_ne!(matrix(1, "w"), matrix(2, "w"));
        assert_ne!(matrix(1, "w"), matrix(1, "v"));
    }

    #[test]
    fn orthogonal_values_are() {
        for shape in [[3, 5], [5, 3]] {
            let store = ParamStore::new(1, Device::Cpu, Kind::Double);
            let w = store.root().add("w", &shape, Init::Orthogonal(0.1), Role::Decayed).detach();
            let gram = if shape[0] < shape[1] { w.matmul(&w.tr()) } else { w.tr().matmul(&w) };
            let want = Tensor::eye(3, (Kind::Double, Device::Cpu)) * 0.01;
            assert!(gram.allclose(&want, 1e-12, 1e-12, false), "{shape:?}");
        }
    }

    /// Position 1 of width 4: sin 1, cos 1, sin 0.01, cos 0.01, halved.
    #[test]
    fn positions_are_sines_and_cosines() {
        let store = ParamStore::new(1, Device::Cpu, Kind::Double);
        let w = store.root().add("w", &[2, 4], Init::Sinusoids(0.5), Role::Decayed).detach();
        let want = [0.0, 0.5, 0.0, 0.5, 0.420_735, 0.270_151, 0.005_000, 0.499_975];
        let got = Vec::<f64>::try_from(w.flatten(0, -1)).unwrap();
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6), "{got:?}");
    }

    #[test]
    fn given_values_keep_their_graph() {
        let source = Tensor::from_slice(&[2.0f32, 3.0]).set_requires_grad(true);
        let store = ParamStore::new(0, Device::Cpu, Kind::Float)
            .with_given([("w".to_owned(), &source * 2.0)]);
        let w = store.root().constant("w", &[2], 0.0);
        w.sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(source.grad()).unwrap(), [2.0, 2.0]);
    }

    #[test]
    fn a_sketch_has_shapes_and_no_memory() {
        let store = ParamStore::sketch(Kind::Float);
        let shape = [1 << 20, 1 << 20, 3];
        let w = store.root().add("w", &shape, Init::Orthogonal(1.0), Role::Decayed);
        assert_eq!((w.size(), store.trainable_count()), (shape.to_vec(), 3 << 40));
        assert!(store.root().is_sketch());
    }

    #[test]
    #[should_panic(expected = "parameter a.w registered twice")]
    fn a_name_is_used_once() {
        let store = ParamStore::new(0, Device::Cpu, Kind::Float);
        let _ = [0, 1].map(|_| store.root().child("a").matrix("w", &[1], 1.0));
    }

    #[test]
    fn names_roles_and_counts() {
        let store = ParamStore::new(0, Device::Cpu, Kind::Float);
        let root = store.root();
        let _ = root.child("layer").child(0).matrix("w", &[2, 3], 1.0);
        let _ = root.constant("b", &[3], 0.0);
        let table = root.add("table", &[5], Init::Const(1.0), Role::Buffer);
        let names: Vec<_> = store.entries().iter().map(|p| p.name.clone()).collect();
        assert_eq!(names, ["layer.0.w", "b", "table"]);
        assert_eq!(store.trainable_count(), 9);
        assert!(!table.requires_grad());
    }
}

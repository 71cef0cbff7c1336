//! Tests of the assembly, with wheels of a few bytes.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;

use super::super::pip;
use super::super::unpack::fake;
use super::*;
use crate::env::Env;
use crate::hash;

/// What the wheel holds that stands for torch's.
const FILES: [(&str, &str); 4] = [
    ("torch/include/torch/csrc/api/include/torch/torch.h", "// header"),
    ("torch/lib/libc10.so", "c10"),
    ("torch/lib/libtorch_cpu.so", "cpu"),
    ("torch/lib/libtorch_cuda.so", "cuda"),
];

type Fetch<'a> = dyn Fn(&[Wheel], &Path) -> Result<()> + 'a;

/// A wheel file, its pin, and a cache to put it in.
struct Scene {
    dir: tempfile::TempDir,
    wheels: [Wheel; 1],
    fetched: AtomicUsize,
}

impl Scene {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = "torch-2.11.0-fake.whl";
        fake::wheel(&dir.path().join(file), files);
        let sha256 = hash::of_file(&dir.path().join(file)).unwrap().leak();
        let takes = &[
            ("torch/include/", "include/"),
            ("torch/lib/libc10.so", "lib/libc10.so"),
            ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
        ];
        let wheel = Wheel { requirement: "torch===2.11.0", file, sha256, size: 1, takes };
        Self { dir, wheels: [wheel], fetched: AtomicUsize::new(0) }
    }

    fn cache(&self) -> Cache {
        Cache::of(&Env::from([("XDG_CACHE_HOME", self.dir.path().to_str().unwrap())])).unwrap()
    }

    /// Copies the wheel, as pip would.
    fn fetch(&self, wheels: &[Wheel], to: &Path) -> Result<()> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        for wheel in wheels {
            fs::copy(self.dir.path().join(wheel.file), to.join(wheel.file))?;
        }
        Ok(())
    }

    fn source<'a>(&'a self, fetch: &'a Fetch<'a>) -> Source<'a> {
        Source {
            what: pip::libtorch(),
            place: self.cache().libtorch(),
            complete,
            flaw: view::flaw,
            wheels: &self.wheels,
            unpacked: 1,
            fetch,
        }
    }

    fn provide(&self, force: bool) -> Result<PathBuf> {
        let fetch = |wheels: &[Wheel], to: &Path| self.fetch(wheels, to);
        provide(&self.cache(), &self.source(&fetch), force)
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Relaxed)
    }
}

#[test]
fn what_is_made_is_a_view_of_itself() {
    let scene = Scene::new(&FILES);
    let place = scene.provide(false).unwrap();
    assert_eq!(view::flaw(&place), None);
    assert!(!place.join("lib/libtorch_cuda.so").exists());
    let manifest = Manifest::read(&place).unwrap();
    assert_eq!(manifest.files(), 6);
    assert_eq!(fs::read_link(place.join("run")).unwrap(), Path::new("lib"));
}

#[test]
fn the_second_call_does_nothing_and_force_does_it_again() {
    let scene = Scene::new(&FILES);
    scene.provide(false).unwrap();
    scene.provide(false).unwrap();
    assert_eq!(scene.fetched(), 1);
    scene.provide(true).unwrap();
    assert_eq!(scene.fetched(), 2);
}

#[test]
fn two_at_once_make_it_once() {
    let scene = Scene::new(&FILES);
    std::thread::scope(|scope| {
        let runs = [scope.spawn(|| scene.provide(false)), scope.spawn(|| scene.provide(false))];
        for run in runs {
            assert_eq!(run.join().unwrap().unwrap(), scene.cache().libtorch());
        }
    });
    assert_eq!(scene.fetched(), 1);
}

#[test]
fn the_one_that_waited_finds_it_done() {
    let scene = Scene::new(&FILES);
    let place = scene.provide(false).unwrap();
    let source = scene.source(&|_, _| bail!("nothing is fetched"));
    assert!(made_meanwhile(&source, true, true).unwrap());
    assert!(!made_meanwhile(&source, true, false).unwrap());
    fs::remove_file(place.join("lib/libc10.so")).unwrap();
    assert!(!made_meanwhile(&source, true, true).unwrap(), "the other run failed");
}

#[test]
fn damage_is_refused_until_forced() {
    let scene = Scene::new(&FILES);
    let place = scene.provide(false).unwrap();
    fs::write(place.join("lib/libtorch_cpu.so"), "c").unwrap();
    let error = scene.provide(false).unwrap_err().to_string();
    assert!(error.contains("damaged: lib/libtorch_cpu.so has 1 bytes instead of 3"), "{error}");
    assert!(error.contains("mend: cargo xtask setup --force"), "{error}");
    scene.provide(true).unwrap();
    scene.provide(false).unwrap();
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let scene = Scene::new(&FILES);
    let fetch = |_: &[Wheel], to: &Path| {
        fs::write(to.join("half"), "half a wheel")?;
        bail!("the network went away")
    };
    assert!(provide(&scene.cache(), &scene.source(&fetch), false).is_err());
    let left: Vec<_> =
        fs::read_dir(scene.cache().root()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["setup.lock"]);
}

#[test]
fn a_wheel_without_the_library_is_refused() {
    let scene = Scene::new(&FILES[..2]);
    let error = scene.provide(false).unwrap_err().to_string();
    assert!(error.contains("the wheels are incomplete"), "{error}");
    assert!(error.contains("has no lib/libtorch_cpu.so"), "{error}");
    assert!(!scene.cache().libtorch().exists());
}

#[test]
fn many_damages_are_counted() {
    let damages = ["a", "b", "c"].map(|path| Damage::Missing(path.to_owned()));
    let error = refuse(Path::new("/cache"), &damages).unwrap_err().to_string();
    assert!(error.contains("damaged: a is missing, and 2 more"), "{error}");
}

//! The Python wheels that libtorch is taken from, and what is taken of each.
//!
//! PyPI has no libtorch of its own, but torch's wheel holds one, and pip fetches it by the user's
//! own index, proxy and certificate settings. The CPU library is linked against two CUDA libraries
//! even where there is no GPU; they come from NVIDIA's wheels.

use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::hash;
use crate::problem::problem;

/// A wheel as the package index serves it.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// What pip is asked for. `===` leaves out builds with a local version, such as `+cpu`.
    pub(crate) requirement: &'static str,
    /// The name of its file.
    pub(crate) file: &'static str,
    /// The hash that the package index publishes.
    pub(crate) sha256: &'static str,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// What is taken of it: a file, or a directory if the name ends in `/`, and where it goes.
    pub(crate) takes: &'static [(&'static str, &'static str)],
}

/// The Python whose wheel of torch is pinned. Any would do: nothing taken depends on it.
pub(crate) const PYTHON_VERSION: &str = "3.12";

/// The platform tags of the wheels.
pub(crate) const PLATFORMS: [&str; 5] = [
    "manylinux_2_28_x86_64",
    "manylinux_2_25_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
];

/// The size of what is taken of [`WHEELS`], for the progress bar and the space on the disk.
pub(crate) const UNPACKED_SIZE: u64 = 497_066_472;

/// The wheels of libtorch 2.11.0 for Linux on x86_64.
pub(crate) const WHEELS: [Wheel; 3] = [
    Wheel {
        requirement: "torch===2.11.0",
        file: "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        sha256: "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
        size: 530_712_279,
        takes: &[
            ("torch/include/", "include/"),
            ("torch/lib/libc10.so", "lib/libc10.so"),
            ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
            ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
            ("torch-2.11.0.dist-info/licenses/", "licenses/torch/"),
        ],
    },
    Wheel {
        requirement: "nvidia-cuda-runtime===13.0.96",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        size: 2_243_632,
        takes: &[
            ("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13"),
            ("nvidia_cuda_runtime-13.0.96.dist-info/licenses/", "licenses/nvidia-cuda-runtime/"),
        ],
    },
    Wheel {
        requirement: "nvidia-cuda-cupti===13.0.85",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        size: 10_715_597,
        takes: &[
            ("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13"),
            ("nvidia_cuda_cupti-13.0.85.dist-info/licenses/", "licenses/nvidia-cuda-cupti/"),
        ],
    },
];

/// The size of what is taken of [`NVRTC`].
pub(crate) const NVRTC_SIZE: u64 = 113_777_942;

/// The run-time compiler for CUDA that goes with this libtorch; tests compile kernels with it.
pub(crate) const NVRTC: [Wheel; 1] = [Wheel {
    requirement: "nvidia-cuda-nvrtc===13.0.88",
    file: "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
    sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    size: 90_215_200,
    takes: &[
        ("nvidia/cu13/lib/libnvrtc.so.13", "lib/libnvrtc.so.13"),
        ("nvidia/cu13/lib/libnvrtc-builtins.so.13.0", "lib/libnvrtc-builtins.so.13.0"),
        ("nvidia_cuda_nvrtc-13.0.88.dist-info/licenses/", "licenses/nvidia-cuda-nvrtc/"),
    ],
}];

/// The size of some wheels together.
pub(crate) fn total_size(wheels: &[Wheel]) -> u64 {
    wheels.iter().map(|wheel| wheel.size).sum()
}

impl Wheel {
    /// Where a file of the wheel goes, if it is taken.
    pub(crate) fn destination(&self, name: &str) -> Option<String> {
        self.takes.iter().find_map(|(from, to)| match name.strip_prefix(from)? {
            "" => (!from.ends_with('/')).then(|| (*to).to_owned()),
            rest => (from.ends_with('/') && !rest.ends_with('/')).then(|| format!("{to}{rest}")),
        })
    }

    /// Finds the wheel among the downloaded files and checks that it is the one expected.
    pub(crate) fn find_in(&self, downloads: &Path) -> Result<PathBuf> {
        let path = downloads.join(self.file);
        if !path.is_file() {
            let found = names(downloads)?.join(", ");
            return problem(
                format!("pip downloaded other files ({found}) than {}", self.file),
                OTHER_INDEX,
            );
        }
        let found = hash::of_file(&path).with_context(|| format!("reading {}", path.display()))?;
        if found != self.sha256 {
            return problem(
                format!(
                    "{} is not the file that PyPI serves:\n  expected SHA-256 {}\n  found    SHA-256 {found}",
                    self.file, self.sha256
                ),
                OTHER_INDEX,
            );
        }
        Ok(path)
    }
}

const OTHER_INDEX: &str = "PIP_INDEX_URL=https://pypi.org/simple cargo xtask setup   \
    (past the index or mirror that pip is set to)";

fn names(dir: &Path) -> Result<Vec<String>> {
    let name = |entry: DirEntry| entry.file_name().to_string_lossy().into_owned();
    let entries: Result<Vec<_>, _> = fs::read_dir(dir)?.map(|entry| entry.map(name)).collect();
    Ok(entries?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHEEL: Wheel = Wheel {
        requirement: "abc===1",
        file: "abc-1-py3-none-any.whl",
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        size: 3,
        takes: &[("abc/include/", "include/"), ("abc/lib/liba.so", "lib/liba.so")],
    };

    #[test]
    fn what_is_taken_has_a_place() {
        assert_eq!(WHEEL.destination("abc/include/sub/a.h").as_deref(), Some("include/sub/a.h"));
        assert_eq!(WHEEL.destination("abc/lib/liba.so").as_deref(), Some("lib/liba.so"));
        for other in
            ["abc/include/", "abc/include/sub/", "abc/lib/liba.so.1", "abc/lib/libb.so", "b"]
        {
            assert_eq!(WHEEL.destination(other), None, "{other}");
        }
    }

    #[test]
    fn the_right_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(WHEEL.file), "abc").unwrap();
        assert_eq!(WHEEL.find_in(dir.path()).unwrap(), dir.path().join(WHEEL.file));
    }

    #[test]
    fn other_bytes_are_refused_with_both_hashes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(WHEEL.file), "abd").unwrap();
        let error = WHEEL.find_in(dir.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("abc-1-py3-none-any.whl is not the file that PyPI serves"),
            "{error}"
        );
        assert!(error.contains(WHEEL.sha256), "{error}");
        assert!(
            error.contains("a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9"),
            "{error}"
        );
        assert!(error.contains("mend: PIP_INDEX_URL="), "{error}");
    }

    #[test]
    fn another_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("abc-1+cpu-py3-none-any.whl"), "abc").unwrap();
        let error = WHEEL.find_in(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("other files (abc-1+cpu-py3-none-any.whl) than abc-1-py3"),
            "{error}"
        );
    }

    #[test]
    fn the_pins_are_of_this_version() {
        for wheel in WHEELS.iter().chain(&NVRTC) {
            let (project, version) = wheel.requirement.split_once("===").unwrap();
            let head = format!("{}-{version}-", project.replace('-', "_"));
            assert!(wheel.file.starts_with(&head), "{}", wheel.file);
            assert_eq!(wheel.sha256.len(), 64);
        }
        assert!(WHEELS[0].requirement.ends_with(super::super::VERSION));
        assert!(NVRTC[0].requirement.ends_with(super::super::nvrtc::VERSION));
    }
}

//! Set-up as users meet it: what is missing is named with what mends it.

use std::fs;

use crate::support::{Scene, fails_saying, real};

/// A pip that has a version, and else does as told; `$to` is where the wheels go.
fn pip(scene: &Scene, body: &str) {
    let head = "case \"$*\" in *--version*) echo 'pip 23.2 from here'; exit 0;; esac\n\
        while [ \"$1\" != -d ]; do shift; done; to=$2";
    scene.script("python3", &format!("{head}\n{body}"));
}

#[test]
fn without_a_compiler_nothing_is_begun() {
    let scene = Scene::new();
    scene.without("c++");
    fails_saying(
        scene.xtask(&["setup"]).assert(),
        &["error: no C++ compiler", "mend: apt-get install g++", "mend: dnf install gcc-c++"],
    );
    assert!(!scene.path("home").exists());
}

#[test]
fn a_compiler_by_another_name_is_pointed_out() {
    let scene = Scene::new();
    scene.without("c++");
    scene.script("g++", "exit 0");
    fails_saying(scene.xtask(&["setup"]).assert(), &["mend: CXX=g++ cargo xtask setup"]);
}

#[test]
fn without_pip_the_other_ways_are_named() {
    let scene = Scene::new();
    fails_saying(
        scene.xtask(&["setup"]).assert(),
        &[
            "error: no pip: neither `python3 -m pip` nor pip3 nor pip starts",
            "mend: apt-get install python3-pip",
            "mend: LIBTORCH=/path/to/libtorch cargo xtask setup",
        ],
    );
    assert_eq!(scene.names("home/.cache/moe"), ["setup.lock"]);
}

#[test]
fn without_network_the_words_of_pip_are_shown() {
    let scene = Scene::new();
    pip(&scene, "echo 'WARNING: Retrying' >&2; echo 'ERROR: no route to host' >&2; exit 1");
    fails_saying(
        scene.xtask(&["setup"]).assert(),
        &[
            "error: pip could not download libtorch 2.11.0; its last lines:",
            "    ERROR: no route to host\n",
            "mend: cargo xtask setup   (once the network answers",
        ],
    );
    assert_eq!(scene.names("home/.cache/moe"), ["setup.lock"], "nothing is left behind");
}

#[test]
fn a_mirror_with_other_bytes_is_refused() {
    let scene = Scene::new();
    let wheel = "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl";
    pip(&scene, &format!("echo other > $to/{wheel}"));
    fails_saying(
        scene.xtask(&["setup"]).assert(),
        &[
            wheel,
            "expected SHA-256 0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
            "found    SHA-256 7e4fa2eb8c7ac089739d5defc4489fad68a100d92082ca35c6b40a4524821f87",
            "mend: PIP_INDEX_URL=https://pypi.org/simple cargo xtask setup",
        ],
    );
}

#[test]
fn a_full_disk_is_known_by_what_pip_says() {
    let scene = Scene::new();
    pip(&scene, "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1");
    fails_saying(
        scene.xtask(&["setup"]).assert(),
        &["is too full: setup needs 1.09 GB there", "mend: XDG_CACHE_HOME=/path/on/another/disk"],
    );
}

#[test]
fn a_cache_that_cannot_be_made_is_named() {
    let scene = Scene::new();
    scene.write("home/.cache", "a file in the way");
    fails_saying(scene.xtask(&["setup"]).assert(), &["home/.cache/moe"]);
}

#[test]
fn without_a_home_there_is_no_place() {
    let scene = Scene::new();
    fails_saying(
        scene.xtask(&["setup"]).env_remove("HOME").assert(),
        &["neither XDG_CACHE_HOME", "mend: XDG_CACHE_HOME=/path/to/caches cargo xtask setup"],
    );
}

#[test]
fn a_libtorch_of_another_version_is_refused() {
    let scene = Scene::new();
    let theirs = scene.libtorch("theirs", "2.10.0+cpu\n");
    fails_saying(
        scene.xtask(&["setup"]).env("LIBTORCH", &theirs).assert(),
        &[
            &format!(
                "LIBTORCH={} is libtorch 2.10.0, and this workspace needs 2.11.0",
                theirs.display()
            ),
            "mend: env -u LIBTORCH cargo xtask setup",
        ],
    );
}

#[test]
fn a_libtorch_without_its_library_is_refused() {
    let scene = Scene::new();
    let theirs = scene.libtorch("theirs", "2.11.0");
    fs::remove_file(theirs.join("lib/libtorch_cpu.so")).unwrap();
    fails_saying(
        scene.xtask(&["setup"]).env("LIBTORCH", &theirs).assert(),
        &["has no lib/libtorch_cpu.so", "mend: env -u LIBTORCH cargo xtask setup"],
    );
}

#[test]
fn the_users_libtorch_is_taken_and_kept() {
    let scene = Scene::new();
    let theirs = scene.libtorch("theirs", "2.11.0+cu130\n");
    scene.xtask(&["setup"]).env("LIBTORCH", &theirs).assert().success();
    assert_eq!(real(&scene.path("checkout/.libtorch/run")), real(&theirs.join("lib")));
    let link = scene.link();
    // Without LIBTORCH, what was chosen once holds: there is no pip here to download with.
    scene.xtask(&["setup"]).assert().success();
    assert_eq!(scene.link(), link);
}

#[test]
fn a_target_directory_elsewhere_gets_its_own_link() {
    let scene = Scene::new();
    let elsewhere = scene.path("elsewhere");
    let metadata = format!(r#"{{"target_directory": "{}", "packages": []}}"#, elsewhere.display());
    scene.script("cargo", &format!("echo '{metadata}'"));
    let theirs = scene.libtorch("theirs", "2.11.0");
    scene.xtask(&["setup"]).env("LIBTORCH", &theirs).assert().success();
    assert_eq!(fs::read_link(elsewhere.join("libtorch")).unwrap(), scene.link());
}

#[test]
fn the_torch_of_a_python_is_taken() {
    let scene = Scene::new();
    let torch = scene.libtorch("site-packages/torch", "");
    scene.write("site-packages/torch/version.py", "__version__ = '2.11.0+cu130'\n");
    scene.write("site-packages/torch/lib/libtorch_cuda.so", "");
    scene.script("python", &format!("echo {}", torch.display()));
    let python = |args| {
        let mut command = scene.xtask(args);
        command.env("LIBTORCH_USE_PYTORCH", "1").env("VIRTUAL_ENV", "/venv");
        command
    };
    python(&["setup"]).assert().success();
    assert!(scene.path("checkout/.libtorch/run/libtorch_cuda.so").exists());
    assert!(!scene.path("checkout/.libtorch/lib/libtorch_cuda.so").exists());
}

#[test]
fn the_torch_of_a_python_may_be_too_old() {
    let scene = Scene::new();
    let torch = scene.libtorch("site-packages/torch", "2.9.1");
    scene.script("python3", &format!("echo {}", torch.display()));
    fails_saying(
        scene.xtask(&["setup"]).env("LIBTORCH_USE_PYTORCH", "1").assert(),
        &[
            "error: the torch of python3 (",
            "is libtorch 2.9.1, and this workspace needs 2.11.0",
            "mend: python3 -m pip install torch==2.11.0",
            "mend: env -u LIBTORCH_USE_PYTORCH cargo xtask setup",
        ],
    );
}

#[test]
fn a_python_without_torch_is_named() {
    let scene = Scene::new();
    scene.script("python3", "echo");
    fails_saying(
        scene.xtask(&["setup"]).env("LIBTORCH_USE_PYTORCH", "1").assert(),
        &["LIBTORCH_USE_PYTORCH is set, and python3 has no torch", "mend: python3 -m pip install"],
    );
}

#[test]
fn a_directory_in_the_place_of_the_link_is_left_alone() {
    let scene = Scene::new();
    let theirs = scene.libtorch("theirs", "2.11.0");
    scene.write("checkout/.libtorch/precious", "");
    fails_saying(
        scene.xtask(&["setup"]).env("LIBTORCH", &theirs).assert(),
        &["is not a link made by `cargo xtask setup`", "mend: mv "],
    );
    assert!(scene.path("checkout/.libtorch/precious").exists());
}

#[test]
fn a_damaged_download_is_refused() {
    let scene = Scene::new();
    let place = "home/.cache/moe/libtorch-2.11.0-linux-x86_64";
    scene.libtorch(place, "2.11.0\n");
    let hash = "0".repeat(64);
    scene.write(&format!("{place}/MANIFEST"), &format!("{hash}  99  lib/libtorch_cpu.so\n"));
    fails_saying(
        scene.xtask(&["setup"]).assert(),
        &[
            "is damaged: lib/libtorch_cpu.so has 19 bytes instead of 99",
            "mend: cargo xtask setup --force",
        ],
    );
}

//! Records the commit that a binary was built from.

use std::path::Path;
use std::process::Command;

fn main() {
    // The log of HEAD grows with every commit and checkout; outside git it is absent, which cargo takes as
    // changed. Not the index, which git writes anew when it only looks, so that a build would follow a build.
    // Sources of all crates: with one of them changed, a commit is dirty. Not their tests, which are no part
    // of a program.
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let crates = std::fs::read_dir(root.join("crates")).into_iter().flatten().flatten();
    let sources = crates.map(|entry| entry.path().join("src"));
    for path in
        [".git/HEAD", ".git/logs/HEAD"].map(|file| root.join(file)).into_iter().chain(sources)
    {
        if path.exists() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=MOE_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
}

fn commit() -> Option<String> {
    let git = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let git = git.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(git.stdout).ok()?.trim().to_owned())
}

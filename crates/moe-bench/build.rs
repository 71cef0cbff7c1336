//! Records the commit that a binary was built from.

use std::process::Command;

fn main() {
    // Changes with every commit and checkout; absent outside git, which cargo takes as changed.
    for file in ["HEAD", "index"] {
        let path = format!("{}/../../.git/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::path::Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
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

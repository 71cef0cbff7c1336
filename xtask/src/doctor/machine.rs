//! Processor, memory and GPU.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::doctor::report::Report;
use crate::progress::size;

/// The features that libtorch's CPU kernels make use of, as Linux spells them.
const FEATURES: [&str; 11] = [
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    // The rest is of aarch64.
    "asimd",
    "bf16",
    "sve",
];

/// Looks at the machine; `run` is where the shared libraries of libtorch are.
pub(crate) fn look(report: &mut Report, run: Option<&Path>) {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    report.found("CPU", field(&cpuinfo, "model name").unwrap_or("unknown"));
    report.found("features", features(&cpuinfo));
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    report.found("threads", threads.to_string());
    report.found("memory", memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()));
    report.found("CUDA", cuda(gpus().as_deref(), run));
}

/// The value of a line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn features(cpuinfo: &str) -> String {
    let flags = field(cpuinfo, "flags").or_else(|| field(cpuinfo, "Features")).unwrap_or_default();
    let has = |feature: &&str| flags.split_whitespace().any(|flag| flag == *feature);
    match FEATURES.into_iter().filter(has).collect::<Vec<_>>() {
        none if none.is_empty() => "none of those that matter".to_owned(),
        some => some.join(" "),
    }
}

fn memory(meminfo: &str) -> String {
    let bytes = |name| {
        let kibibytes: u64 = field(meminfo, name)?.strip_suffix("kB")?.trim().parse().ok()?;
        Some(size(kibibytes * 1024))
    };
    match (bytes("MemTotal"), bytes("MemAvailable")) {
        (Some(total), Some(available)) => format!("{total}, {available} available"),
        _ => "unknown".to_owned(),
    }
}

/// Name, memory and driver of each GPU, if there is a driver.
fn gpus() -> Option<String> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let lines = String::from_utf8_lossy(&output.stdout).trim().replace('\n', "; ");
    (!lines.is_empty()).then_some(lines)
}

fn cuda(gpus: Option<&str>, run: Option<&Path>) -> String {
    let built_for = run.is_some_and(|run| run.join("libtorch_cuda.so").exists());
    match (gpus, built_for) {
        (None, _) => "no GPU found; everything runs on the CPU".to_owned(),
        (Some(gpus), true) => format!("{gpus}; this libtorch can use it"),
        (Some(gpus), false) => format!(
            "{gpus}; this libtorch is for the CPU alone: \
             LIBTORCH_USE_PYTORCH=1 cargo xtask setup takes that of a Python"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n\
        flags\t\t: fpu avx2 fma avx512f avx512_bf16 amx_tile\nprocessor\t: 1\n";

    #[test]
    fn the_processor_is_read() {
        assert_eq!(field(CPUINFO, "model name"), Some("Some CPU @ 2.0GHz"));
        assert_eq!(features(CPUINFO), "avx2 fma avx512f avx512_bf16 amx_tile");
        assert_eq!(features("Features\t: fp asimd bf16\n"), "asimd bf16");
        assert_eq!(features(""), "none of those that matter");
    }

    #[test]
    fn the_memory_is_read() {
        let meminfo = "MemTotal:       1000000 kB\nMemAvailable:    500000 kB\n";
        assert_eq!(memory(meminfo), "1.02 GB, 512.00 MB available");
        assert_eq!(memory("MemTotal: much"), "unknown");
    }

    #[test]
    fn a_gpu_that_libtorch_cannot_use_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(cuda(None, None).starts_with("no GPU"));
        assert!(cuda(Some("H100"), Some(dir.path())).contains("for the CPU alone"));
        fs::write(dir.path().join("libtorch_cuda.so"), "").unwrap();
        assert!(cuda(Some("H100"), Some(dir.path())).contains("can use it"));
    }
}

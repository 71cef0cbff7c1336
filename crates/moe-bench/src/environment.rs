//! What a run ran on: commit, machine, versions.

use crate::results::Environment;
use std::fs;
use tch::Device;

/// Instruction sets that matter for speed, as `/proc/cpuinfo` names them.
const FEATURES: [&str; 7] =
    ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"];

/// The present machine and build.
pub fn environment(device: Device) -> Environment {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = field(&cpuinfo, "flags").unwrap_or_default();
    let has = |name: &&str| flags.split_whitespace().any(|flag| flag == *name);
    Environment {
        commit: env!("MOE_COMMIT").into(),
        started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: field(&cpuinfo, "model name").unwrap_or("unknown").into(),
        cpu_features: FEATURES.iter().filter(|f| has(f)).map(|f| (*f).to_owned()).collect(),
        hardware_threads: hardware_threads(),
        libtorch: moe_torch_sys::LIBTORCH_VERSION.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: device_name(device),
    }
}

/// Threads that can run at once.
pub fn hardware_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `cpu` or `cuda:0`.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

/// Largest resident set of this process so far, bytes; 0 where the system does not say.
pub fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        field(&status, "VmHWM").and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The value of the first `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_of_proc_files() {
        let text = "model name\t: Some CPU\nflags\t\t: fma avx2\nVmHWM:\t   12 kB\n";
        assert_eq!(field(text, "model name"), Some("Some CPU"));
        assert_eq!(field(text, "VmHWM"), Some("12 kB"));
        assert_eq!(field(text, "absent"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(cfg!(not(target_os = "linux")) || peak_memory_bytes() > 1 << 20);
    }
}

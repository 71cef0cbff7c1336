//! A limit on the memory of a process, so that one run of a comparison cannot take the machine from the others.
//!
//! The limit is `RLIMIT_DATA`, which on Linux counts everything that is writable and the process's own. What is
//! mapped but not its own, such as libtorch's code, does not count. libtorch then meets an allocation that fails,
//! and the run ends with an error that names what to lower.

use rustix::process::{Resource, Rlimit, setrlimit};
use std::fmt;
use std::fs;
use std::str::FromStr;

/// What a process may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryCap {
    /// As much as there is.
    None,
    /// So many bytes.
    Bytes(u64),
}

impl FromStr for MemoryCap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text}: expected `none` or bytes such as 900M or 4G");
        if text == "none" {
            return Ok(Self::None);
        }
        let unit = text.chars().last().and_then(|letter| "KMG".find(letter.to_ascii_uppercase()));
        let number = &text[..text.len() - usize::from(unit.is_some())];
        let factor = unit.map_or(1, |place| 1 << (10 * (place + 1)));
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
        bytes.filter(|bytes| *bytes > 0).map(Self::Bytes).ok_or_else(expected)
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for MemoryCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

impl MemoryCap {
    /// An equal share of the machine's memory for each of `jobs`; no limit where the system does not say how much
    /// there is.
    pub fn share(jobs: usize) -> Self {
        machine_memory().map_or(Self::None, |bytes| Self::Bytes(bytes / jobs.max(1) as u64))
    }

    /// Limits this process.
    ///
    /// # Errors
    /// A limit above the one that is set already.
    pub fn impose(self) -> std::io::Result<()> {
        let Self::Bytes(bytes) = self else { return Ok(()) };
        Ok(setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum: Some(bytes) })?)
    }
}

/// Memory that the machine, or the container on it, has; bytes.
fn machine_memory() -> Option<u64> {
    let all = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = all.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let machine = kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|text| text.trim().parse::<u64>().ok());
    Some(container.map_or(machine, |limit| limit.min(machine)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        let read = |text: &str| text.parse::<MemoryCap>();
        assert_eq!(read("none"), Ok(MemoryCap::None));
        assert_eq!(read("4096"), Ok(MemoryCap::Bytes(4096)));
        assert_eq!(read("3k"), Ok(MemoryCap::Bytes(3072)));
        assert_eq!(read("900M"), Ok(MemoryCap::Bytes(900 << 20)));
        assert_eq!(read("4G"), Ok(MemoryCap::Bytes(4 << 30)));
        for text in
            ["", "G", "-1", "0", "4T", "4.5G", "99999999999999999999", "99999999999999G", "4é"]
        {
            assert!(read(text).unwrap_err().contains("expected `none` or bytes"), "{text}");
        }
        let shown = [MemoryCap::None, MemoryCap::Bytes(7)].map(|cap| cap.to_string().parse());
        assert_eq!(shown, [Ok(MemoryCap::None), Ok(MemoryCap::Bytes(7))]);
    }

    #[test]
    fn shares_are_of_what_there_is() {
        let bytes = |jobs| match MemoryCap::share(jobs) {
            MemoryCap::Bytes(bytes) => bytes,
            // A system that does not say.
            MemoryCap::None => 0,
        };
        assert!(cfg!(not(target_os = "linux")) || bytes(1) > 1 << 28, "{}", bytes(1));
        assert_eq!(bytes(2), bytes(1) / 2);
    }
}

//! TensorBoard's event files, written beside `metrics.jsonl` while a run goes on: the same numbers, for the
//! dashboards that people have open.
//!
//! | tag | of |
//! |---|---|
//! | `train/loss`, `train/grad_norm`, `train/lr`, `train/tokens_per_second` | a logged step |
//! | `aux/layer<l>/<name>` | a logged step: auxiliary losses, unweighted |
//! | `<split>/loss`, `<split>/bits_per_byte`, `<split>/routing_share`, `<split>/<measure>` | an evaluation |
//! | `load_imbalance/layer<l>`, `gate_entropy/…`, `fraction_tokens_left_behind/…`, `dead_expert_proportion/…` | an evaluation, per sparse layer |
//!
//! A session that resumes begins a file of its own. Its first record voids what earlier files say of later
//! steps, as far as an interrupted session came after its last checkpoint.
//!
//! Axis letters: `l` sparse layers, `e` experts.

#[cfg(test)]
pub(crate) mod read;
mod record;

use crate::log::{EvalLine, imbalance};
use moe_train::{LayerReport, StepReport};
use record::Event;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// What names of event files begin with; readers go by it.
const PREFIX: &str = "events.out.tfevents.";

/// The event file of one session.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// Begins a file in `dir`. What earlier files say of step `from` and later is void.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(dir: &Path, from: u64) -> io::Result<Self> {
        let name = next_name(&earlier(dir)?, now() as u64);
        let file = OpenOptions::new().append(true).create_new(true).open(dir.join(name))?;
        let mut events = Self { file };
        events.write(&Event::Version, 0)?;
        events.write(&Event::Start, from)?;
        Ok(events)
    }

    /// Whether there is an event file in `dir`.
    ///
    /// # Errors
    /// The file system's.
    pub fn any(dir: &Path) -> io::Result<bool> {
        Ok(!earlier(dir)?.is_empty())
    }

    /// Writes what was measured after `step`, by tag; readers hold it as `f32`.
    ///
    /// # Errors
    /// The file system's.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> io::Result<()> {
        self.write(&Event::Scalars(scalars), step)
    }

    fn write(&mut self, event: &Event<'_>, step: u64) -> io::Result<()> {
        // One write per record: a reader never waits for the second half of one.
        self.file.write_all(&record::frame(event, step, now()))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

/// Names of the event files of `dir`.
fn earlier(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.starts_with(PREFIX).then_some(name));
    }
    Ok(names)
}

/// A name that sorts behind all earlier ones, as readers take files in the order of their names: a session may
/// begin within the second of the one before it, and clocks are set back.
fn next_name(earlier: &[String], now: u64) -> String {
    let time = |name: &String| name[PREFIX.len()..].split('.').next()?.parse::<u64>().ok();
    let time = earlier.iter().filter_map(time).fold(now, u64::max);
    format!("{PREFIX}{time:010}.moe.{:06}", earlier.len())
}

/// The numbers of a step that took `tokens` tokens.
pub fn of_step(report: &StepReport, tokens: usize) -> Vec<(String, f64)> {
    let train = [
        ("loss", report.loss),
        ("grad_norm", report.grad_norm),
        ("lr", report.lr),
        ("tokens_per_second", tokens as f64 / report.seconds.max(1e-9)),
    ];
    let train = train.map(|(name, value)| (format!("train/{name}"), value));
    let aux = report.aux.iter().map(|(name, value)| (format!("aux/{name}"), *value));
    train.into_iter().chain(aux).collect()
}

/// The numbers of an evaluation.
pub fn of_eval(line: &EvalLine) -> Vec<(String, f64)> {
    let (split, report) = (&line.split, &line.report);
    let mut scalars = vec![
        (format!("{split}/loss"), report.loss),
        (format!("{split}/routing_share"), report.routing_share),
    ];
    scalars.extend(line.bits_per_byte.map(|bits| (format!("{split}/bits_per_byte"), bits)));
    scalars.extend(report.measures.iter().map(|(name, value)| (format!("{split}/{name}"), *value)));
    // A single expert has all the load, which is nothing to look at.
    let routed = report.layers.iter().enumerate().filter(|(_, layer)| layer.load_e.len() > 1);
    scalars.extend(routed.flat_map(|(l, layer)| of_layer(l, layer)));
    scalars
}

fn of_layer(l: usize, layer: &LayerReport) -> [(String, f64); 4] {
    let dead = layer.load_e.iter().filter(|load| **load == 0.0).count();
    [
        ("load_imbalance", imbalance(layer)),
        ("gate_entropy", layer.gate_entropy),
        ("fraction_tokens_left_behind", layer.fraction_tokens_left_behind),
        ("dead_expert_proportion", dead as f64 / layer.load_e.len() as f64),
    ]
    .map(|(name, value)| (format!("{name}/layer{l}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{frame, masked_crc};

    fn one(tag: &str, value: f64) -> Vec<(String, f64)> {
        vec![(tag.to_owned(), value)]
    }

    /// RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 0x8a9136aa. Turned right by 15 bits it is 0x6d551522;
    /// 0xa282ead8 added, 0x0fd7fffa in 32 bits.
    #[test]
    fn the_check_sum_is_the_standards_masked() {
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    /// By hand: key 1 of kind 1, eight bytes of time, key 2 of kind 0, the step 300 = 0b10_0101100 in two
    /// bytes, key 5 of kind 2, ten bytes: key 1 of kind 2, eight bytes: key 1 of kind 2, "a", 1.0 under key 2 of kind 5.
    #[test]
    fn a_record_has_the_bytes_of_its_messages() {
        let found = frame(&Event::Scalars(&one("a", 1.0)), 300, 2.0);
        let mut message = vec![0x09, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x10, 0xac, 0x02, 0x2a, 10];
        message.extend([0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x80, 0x3f]);
        assert_eq!(found[..8], (message.len() as u64).to_le_bytes());
        assert_eq!(found[12..12 + message.len()], message);
    }

    #[test]
    fn a_later_session_voids_what_was_said_of_its_steps() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = EventFile::begin(dir.path(), 0).unwrap();
        for step in 0..200 {
            first.scalars(step, &one("train/loss", step as f64)).unwrap();
        }
        let mut second = EventFile::begin(dir.path(), 151).unwrap();
        second.scalars(151, &one("train/loss", 0.1)).unwrap();
        let found = read::scalars(dir.path());
        assert_eq!(found.len(), 152);
        assert_eq!(found[&("train/loss".to_owned(), 150)], 150.0);
        assert_eq!(found[&("train/loss".to_owned(), 151)], 0.1);
    }

    #[test]
    fn names_sort_in_the_order_of_sessions() {
        let mut names = Vec::new();
        // Two sessions in one second, and a clock that was set back.
        for now in [1_700_000_000, 1_700_000_000, 1_600_000_000, 1_700_000_001] {
            names.push(next_name(&names, now));
        }
        assert!(names.is_sorted(), "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("events.out.tfevents.")));
    }
}

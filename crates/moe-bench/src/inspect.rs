//! `moe inspect`: the measures of a routing log, whoever wrote it. The format is in
//! `docs/routing-log.md`.

pub mod line;
mod page;
mod show;
pub mod write;

use crate::cli::InspectArgs;
use crate::error::Misuse;
use anyhow::{Context, Result};
use line::{Line, Record};
use moe_core::routing_log::{LogError, LogOptions, RoutingLog, RoutingReport};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, stdin};

pub use page::html;
pub use show::table;

/// Longest line that is read, bytes: one line may hold a whole batch, but not a whole log.
const MAX_LINE: u64 = 1 << 28;

/// Reads the log that `args` names; `-` is standard input.
///
/// # Errors
/// A file that cannot be read; a line that is none of a routing log, with its number and what was
/// expected.
pub fn inspect(args: &InspectArgs) -> Result<RoutingReport> {
    let name = args.log.display().to_string();
    let options =
        LogOptions { experts: args.experts, memory: args.memory, ..LogOptions::default() };
    if name == "-" {
        return read(stdin().lock(), "standard input", options, args.label_input);
    }
    let file = File::open(&args.log).map_err(|e| Misuse::new(format!("{name}: {e}")))?;
    read(BufReader::new(file), &name, options, args.label_input)
}

/// Writes the page of a report.
///
/// # Errors
/// The file system's.
pub fn write_page(args: &InspectArgs, report: &RoutingReport) -> Result<()> {
    let Some(path) = &args.html else { return Ok(()) };
    let page = html(&args.log.display().to_string(), report);
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// The measures of a log, line by line. `label_input` takes a token's input for its label.
///
/// # Errors
/// As [`inspect`].
pub fn read(
    mut log: impl BufRead,
    name: &str,
    mut options: LogOptions,
    label_input: bool,
) -> Result<RoutingReport> {
    let (mut found, mut text, mut number) = (None, Vec::new(), 0usize);
    loop {
        text.clear();
        let at = |number: usize| format!("{name} line {number}");
        let bytes = log.by_ref().take(MAX_LINE).read_until(b'\n', &mut text);
        if bytes.with_context(|| format!("cannot read {name}"))? == 0 {
            break;
        }
        number += 1;
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line = Line::parse(&text).map_err(|e| Misuse::new(format!("{}: {e}", at(number))))?;
        let log = match (line, &mut found) {
            (Line::Header(header), None) => {
                options.experts = options.experts.or(header.num_experts);
                continue;
            }
            (Line::Header(_), Some(_)) => {
                let message = "a header after the first decision, expected it on top";
                return Err(Misuse::new(format!("{}: {message}", at(number))).into());
            }
            (Line::Record(record), found) => {
                (found.get_or_insert_with(|| RoutingLog::new(options)), record)
            }
        };
        let (log, record) = log;
        take(log, &record, label_input).map_err(|e| Misuse::new(format!("{}: {e}", at(number))))?;
    }
    let log = found.ok_or(LogError::Empty).map_err(|e| Misuse::new(format!("{name}: {e}")))?;
    log.finish().map_err(|e| Misuse::new(format!("{name}: {e}")).into())
}

/// Takes every token of a line.
fn take(log: &mut RoutingLog, record: &Record, label_input: bool) -> Result<(), String> {
    for row in 0..record.rows() {
        let (label, token) = (record.label(row, label_input)?, record.token(row)?);
        let token = moe_core::routing_log::Token { label: label.as_deref(), ..token };
        let added = log.add(record.step, &record.layer, &token);
        added.map_err(|e| match record.rows() {
            1 => e.to_string(),
            _ => format!("row {row}: {e}"),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

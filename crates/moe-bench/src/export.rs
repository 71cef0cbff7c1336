//! The results of a comparison in the forms that other programs read.
//!
//! | file | columns |
//! |---|---|
//! | `results.csv`, `results.parquet` | `router, seed, measure, value`: a line per run and measure |
//! | `curves.csv` | `router, seed, curve, step, value`: a line per point of a loss curve |
//! | `results.md` | the table, for a README or a pull request |
//!
//! A measure that a run does not have has no line. `failed` is a measure of every run, 0 or 1: a run that
//! failed has no other, and would else be missed by whoever counts seeds.

mod parquet;

use crate::results::{Results, Row};
use crate::summary::scalars;
use crate::table::{Style, render};
use anyhow::Result;

/// One measure of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured<'a> {
    /// Router's name.
    pub router: &'a str,
    /// Seed of the run.
    pub seed: u64,
    /// Name of the measure, as in `results.json`.
    pub measure: &'a str,
    /// Its value; may be NaN or infinite, as it was measured.
    pub value: f64,
}

/// Name and content of every file.
///
/// # Errors
/// A file that its library cannot encode.
pub fn files(results: &Results) -> Result<[(&'static str, Vec<u8>); 4]> {
    let measured = measured(results);
    Ok([
        ("results.csv", results_csv(&measured)?),
        ("curves.csv", curves_csv(results)?),
        ("results.md", markdown(results).into_bytes()),
        ("results.parquet", parquet::encode(&measured)?),
    ])
}

/// Every measure of every run, in the order of the rows.
pub fn measured(results: &Results) -> Vec<Measured<'_>> {
    results.rows.iter().flat_map(of_run).collect()
}

fn of_run(row: &Row) -> Vec<Measured<'_>> {
    let failed = ("failed", Some(f64::from(u8::from(row.metrics.is_none()))));
    let measures = row.metrics.iter().flat_map(scalars);
    let named = std::iter::once(failed).chain(measures);
    let found = named.filter_map(|(measure, value)| {
        Some(Measured { router: &row.router, seed: row.seed, measure, value: value? })
    });
    found.collect()
}

fn results_csv(measured: &[Measured<'_>]) -> Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["router", "seed", "measure", "value"])?;
    for Measured { router, seed, measure, value } in measured {
        table.write_record([*router, &seed.to_string(), measure, &value.to_string()])?;
    }
    Ok(table.into_inner()?)
}

fn curves_csv(results: &Results) -> Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["router", "seed", "curve", "step", "value"])?;
    for row in &results.rows {
        let Some(metrics) = &row.metrics else { continue };
        let curves = [("train_loss", &metrics.train_curve), ("valid_loss", &metrics.valid_curve)];
        for (curve, points) in curves {
            for (step, value) in points {
                let [seed, step, value] =
                    [row.seed.to_string(), step.to_string(), value.to_string()];
                table.write_record([&row.router, &seed, curve, &step, &value])?;
            }
        }
    }
    Ok(table.into_inner()?)
}

fn markdown(results: &Results) -> String {
    let (terms, found) = (&results.terms, &results.environment);
    let equal: String = terms.equal.iter().map(|fact| format!("- {fact}\n")).collect();
    let unequal: String = terms.unequal.iter().map(|fact| format!("- {fact}\n")).collect();
    format!(
        "# Routers compared: {}\n\n{}\nData: {}, {}. Commit {}, {}, {} threads, libtorch {}, device {}.\n\n\
         ## Equal for all\n\n{equal}\n## Not equal\n\n{unequal}",
        results.preset,
        render(results, Style::Markdown),
        terms.data,
        terms.tokenizer,
        found.commit,
        found.cpu,
        found.hardware_threads,
        found.libtorch,
        found.device,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{failure, from_rows, results};

    /// Two routers, one with a quote and a comma in its name, one run failed, one loss not finite.
    fn odd() -> Results {
        let mut rows = results(2, 2).rows;
        rows[0].router = "a, \"b\"".to_owned();
        rows[1].metrics.as_mut().unwrap().valid_loss = f64::NAN;
        rows[2].metrics.as_mut().unwrap().measures.insert("accuracy".to_owned(), 0.1);
        rows.push(failure("switch", 3, "no memory"));
        from_rows(rows)
    }

    fn records(bytes: &[u8]) -> Vec<Vec<String>> {
        let mut table = csv::Reader::from_reader(bytes);
        let rows = table.records().map(|row| row.unwrap().iter().map(str::to_owned).collect());
        rows.collect()
    }

    /// Equal, with NaN like itself.
    fn same(value: f64, want: f64) -> bool {
        value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan()
    }

    #[test]
    fn the_table_reads_back_as_it_was_measured() {
        let results = odd();
        let want = measured(&results);
        let rows = records(&results_csv(&want).unwrap());
        assert_eq!(rows.len(), want.len());
        for (row, want) in rows.iter().zip(&want) {
            assert_eq!(row[..3], [want.router, &want.seed.to_string(), want.measure]);
            assert!(same(row[3].parse().unwrap(), want.value), "{row:?}");
        }
        let of = |router: &str| want.iter().filter(|m| m.router == router).count();
        // 14 fields and `failed`; with routing measures and accuracy; and nothing but `failed`.
        assert_eq!((of("a, \"b\""), of("random"), of("switch")), (15, 41, 1));
        assert_eq!(want.last().unwrap().value, 1.0);
        assert!(want.iter().any(|m| m.measure == "accuracy" && m.value == 0.1));
    }

    #[test]
    fn parquet_reads_back_as_it_was_measured() {
        let results = odd();
        let want = measured(&results);
        let rows = parquet::decode(parquet::encode(&want).unwrap());
        assert_eq!(rows.len(), want.len());
        for ((router, seed, measure, value), want) in rows.iter().zip(&want) {
            assert_eq!(
                (router.as_str(), *seed, measure.as_str()),
                (want.router, want.seed, want.measure)
            );
            assert!(same(*value, want.value), "{measure} {value}");
        }
        assert!(parquet::decode(parquet::encode(&[]).unwrap()).is_empty());
    }

    #[test]
    fn curves_have_a_line_per_point() {
        let results = odd();
        let rows = records(&curves_csv(&results).unwrap());
        let runs = || results.rows.iter().filter_map(|row| row.metrics.as_ref());
        let points: usize = runs().map(|m| m.train_curve.len() + m.valid_curve.len()).sum();
        assert_eq!(rows.len(), points);
        let first = &results.rows[0].metrics.as_ref().unwrap().train_curve[0];
        assert_eq!(rows[0][..4], ["a, \"b\"", "1", "train_loss", &first.0.to_string()]);
        assert_eq!(rows[0][4].parse::<f64>().unwrap(), first.1);
    }

    #[test]
    fn the_markdown_has_table_machine_and_terms() {
        let text = markdown(&odd());
        for part in [
            "# Routers compared: tiny",
            "| router",
            "2.11.0",
            "Order of the data",
            "## Not equal",
            "no memory",
        ] {
            assert!(text.contains(part), "no {part} in: {text}");
        }
    }
}

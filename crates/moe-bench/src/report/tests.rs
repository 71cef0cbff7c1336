//! The page as a whole, on results as they should be and as they should not.

use roxmltree::{Document, Node, ParsingOptions};

use super::fixture::{failure, from_rows, results};
use super::html;
use crate::results::Results;

/// The page, which a strict parser must take.
fn page(results: &Results) -> String {
    let page = html(results).unwrap();
    check(&page);
    page
}

fn check(page: &str) {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(page, options).unwrap();
    document.descendants().filter(Node::is_element).for_each(check_element);
}

fn check_element(element: Node<'_, '_>) {
    let name = element.tag_name().name();
    assert!(!["script", "link", "img", "iframe"].contains(&name), "{name} on the page");
    for attribute in element.attributes() {
        let (name, value) = (attribute.name(), attribute.value());
        assert!(!value.contains("NaN") && !value.contains("inf"), "{name}=\"{value}\"");
        assert!(!value.contains("//"), "{name}=\"{value}\" leads away from the page");
    }
    if name == "svg" {
        let spoken = element.attribute("role") == Some("img")
            && element.attribute("aria-label").is_some_and(|label| !label.is_empty());
        assert!(spoken || element.attribute("aria-hidden") == Some("true"));
        assert!(element.attribute("viewBox").is_some());
    }
}

#[test]
fn a_full_comparison_has_all_sections() {
    let page = page(&results(8, 3));
    for id in [
        "leaderboard",
        "against",
        "curves",
        "deltas",
        "cost",
        "load",
        "settling",
        "routing",
        "map",
        "terms",
    ] {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "no {id}");
    }
    assert!(!page.contains("id=\"failures\""));
    assert!(page.contains("name=\"viewport\"") && page.contains("prefers-color-scheme:dark"));
    assert!(page.contains("no verdict") && page.contains("fewer than 6"));
}

#[test]
fn many_routers_make_a_page_of_sensible_size() {
    assert!(page(&results(25, 3)).len() < 1_500_000);
}

#[test]
fn the_page_asks_for_nothing_from_elsewhere() {
    let page = page(&results(8, 3));
    for reference in ["http:", "https:", "@import", "src=", "url(//"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn no_results_make_a_page() {
    assert!(page(&from_rows(Vec::new())).contains("No runs."));
}

#[test]
fn failed_runs_alone_make_a_page() {
    let page =
        page(&from_rows(vec![failure("switch", 1, "out of memory"), failure("top2", 1, "")]));
    assert!(page.contains("out of memory") && page.contains("id=\"failures\""));
    assert!(!page.contains("id=\"curves\"") && !page.contains("id=\"cost\""));
}

#[test]
fn one_seed_has_no_deviation() {
    let page = page(&results(3, 1));
    assert!(page.contains(", 1 seed") && !page.contains("±0") && !page.contains("± 0"));
}

#[test]
fn text_from_data_stays_text() {
    let mut results = results(3, 2);
    let evil = "<script>alert('x')</script>&\"\u{1b}[31m";
    for row in &mut results.rows {
        row.router = row.router.replace("switch", evil);
    }
    results.rows.push(failure(evil, 9, evil));
    evil.clone_into(&mut results.terms.data);
    results.terms.equal.push(evil.to_owned());
    results.environment.commit = evil.to_owned();
    let page = page(&from_rows(results.rows.clone()));
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script"));
    results.summary.clear();
    check(&html(&results).unwrap());
}

#[test]
fn numbers_that_are_none_break_nothing() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, -1e300, 0.0] {
        let mut results = results(4, 2);
        let rows = results.rows.iter_mut().filter(|row| row.router != "top2");
        for metrics in rows.filter_map(|row| row.metrics.as_mut()) {
            (metrics.valid_loss, metrics.valid_perplexity, metrics.tokens_per_second) =
                (odd, odd, odd);
            metrics.valid_curve.iter_mut().skip(5).for_each(|point| point.1 = odd);
            metrics.train_curve.iter_mut().for_each(|point| point.1 = odd);
            metrics
                .expert_usage
                .iter_mut()
                .flat_map(|(_, layers)| layers)
                .for_each(|shares| shares[0] = odd);
        }
        let mut odd_results = from_rows(results.rows);
        odd_results.terms.unigram_loss = odd;
        page(&odd_results);
    }
}

#[test]
fn empty_curves_break_nothing() {
    let mut results = results(4, 2);
    for metrics in results.rows.iter_mut().filter_map(|row| row.metrics.as_mut()) {
        metrics.valid_curve.truncate(1);
        metrics.train_curve.clear();
        metrics.expert_usage.clear();
        metrics.routing = None;
    }
    let page = page(&from_rows(results.rows));
    ["load", "settling", "routing", "map"].iter().for_each(|id| {
        assert!(!page.contains(&format!("id=\"{id}\"")), "{id}");
    });
}

#[test]
fn without_a_dense_control_there_is_nothing_to_compare_with() {
    let mut rows = results(4, 2).rows;
    rows.retain(|row| row.router != "dense");
    assert!(!page(&from_rows(rows)).contains("id=\"deltas\""));
}

//! Expert load relative to uniform load, and how it is put into colours and numbers.

use super::curve::thin;

/// Evaluations that a map shows at most.
const COLUMNS: usize = 40;
/// Rows of all layers together above which maps get fewer columns, to keep the page small.
const ROWS: usize = 128;

/// Load over uniform load by evaluation, layer and expert.
pub(super) struct Grid {
    /// Training step of each evaluation; never empty.
    pub(super) steps: Vec<u64>,
    pub(super) layers: usize,
    pub(super) experts: usize,
    /// `load[evaluation][layer][expert]`.
    load: Vec<Vec<Vec<f64>>>,
}

impl Grid {
    /// From shares of rows; nothing without a layer with experts.
    pub(super) fn new(usage: &[(u64, Vec<Vec<f64>>)]) -> Option<Self> {
        let last = &usage.last()?.1;
        let (layers, experts) = (last.len(), last.iter().map(Vec::len).max()?);
        if experts == 0 {
            return None;
        }
        let columns = COLUMNS * ROWS / (layers * experts).max(ROWS);
        let kept = thin(usage, columns.max(2));
        let steps = kept.iter().map(|(step, _)| *step).collect();
        let load = kept.iter().map(|(_, shares)| over_uniform(shares)).collect();
        Some(Self { steps, layers, experts, load })
    }

    /// Number of evaluations.
    pub(super) fn columns(&self) -> usize {
        self.steps.len()
    }

    /// Load at an evaluation; not a number where none was recorded.
    pub(super) fn at(&self, column: usize, layer: usize, expert: usize) -> f64 {
        let value = self.load.get(column).and_then(|layers| layers.get(layer)?.get(expert));
        value.copied().unwrap_or(f64::NAN)
    }

    /// Load at the last evaluation.
    pub(super) fn end(&self, layer: usize, expert: usize) -> f64 {
        self.at(self.columns() - 1, layer, expert)
    }

    /// Whether there are few enough cells for a tooltip each.
    pub(super) fn is_small(&self) -> bool {
        self.layers * self.experts <= ROWS
    }

    /// Evaluations in a row that share a colour: class, first, one past the last.
    pub(super) fn stretches(
        &self,
        layer: usize,
        expert: usize,
    ) -> Vec<(&'static str, usize, usize)> {
        let mut stretches: Vec<(&str, usize, usize)> = Vec::new();
        for column in 0..self.columns() {
            let class = class(self.at(column, layer, expert));
            match stretches.last_mut() {
                Some((last, _, end)) if *last == class => *end = column + 1,
                _ => stretches.push((class, column, column + 1)),
            }
        }
        stretches
    }
}

fn over_uniform(shares: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let layer = |layer: &Vec<f64>| layer.iter().map(|share| share * layer.len() as f64).collect();
    shares.iter().map(layer).collect()
}

/// Classes of colours, half-octaves from a quarter to four times uniform load.
pub(super) const SHADES: [&str; 9] = ["h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8"];

/// Class of the colour of a load.
pub(super) fn class(load: f64) -> &'static str {
    match load {
        0.0 => "dead",
        _ if load > 0.0 && load.is_finite() => {
            SHADES[(load.log2().clamp(-2.0, 2.0) * 2.0 + 4.0).round() as usize]
        }
        _ => "unknown",
    }
}

/// A load in at most four characters.
pub(super) fn number(load: f64) -> String {
    match load {
        _ if !load.is_finite() => "?".to_owned(),
        0.0 => "×".to_owned(),
        _ if load < 0.005 => "≈0".to_owned(),
        _ if load < 0.095 => format!("{load:.2}"),
        _ if load < 9.95 => format!("{load:.1}"),
        _ => format!("{load:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_load_has_the_colour_in_the_middle() {
        let classes = [0.0, 1e-9, 0.25, 0.9, 1.0, 1.1, 2.0, 4.0, 1e9, -1.0, f64::NAN].map(class);
        let expected =
            ["dead", "h0", "h0", "h4", "h4", "h4", "h6", "h8", "h8", "unknown", "unknown"];
        assert_eq!(classes, expected);
    }

    #[test]
    fn load_is_relative_to_a_uniform_share() {
        let grid = Grid::new(&[(5, vec![vec![0.5, 0.25, 0.25, 0.0]])]).unwrap();
        assert_eq!([grid.end(0, 0), grid.end(0, 3)], [2.0, 0.0]);
        assert_eq!((grid.steps.as_slice(), grid.layers, grid.experts), (&[5][..], 1, 4));
    }

    #[test]
    fn equal_neighbours_are_drawn_together() {
        let usage =
            [(0, vec![vec![0.5, 0.5]]), (1, vec![vec![0.5, 0.5]]), (2, vec![vec![1.0, 0.0]])];
        assert_eq!(Grid::new(&usage).unwrap().stretches(0, 1), [("h4", 0, 2), ("dead", 2, 3)]);
    }

    #[test]
    fn what_was_not_recorded_is_unknown() {
        assert!(Grid::new(&[]).is_none() && Grid::new(&[(0, vec![vec![]])]).is_none());
        let ragged = Grid::new(&[(0, vec![]), (1, vec![vec![1.0], vec![0.5, 0.5]])]).unwrap();
        assert_eq!([class(ragged.at(0, 0, 0)), class(ragged.end(0, 1))], ["unknown"; 2]);
    }

    #[test]
    fn large_models_get_fewer_columns() {
        let usage: Vec<_> = (0..100).map(|step| (step, vec![vec![1.0 / 64.0; 64]; 12])).collect();
        assert_eq!(Grid::new(&usage).unwrap().columns(), 6);
    }
}

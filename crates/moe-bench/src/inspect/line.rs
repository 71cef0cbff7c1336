//! A line of a routing log, from our own format or from Megatron-LM's router tracer.

use moe_core::routing_log::{LayerId, Token};
use serde::Deserialize;
use serde_json::Value;

/// The format that a header names.
pub const FORMAT: &str = "moe.routing-log/1";

/// The first line, if a log has one.
#[derive(Debug, Deserialize)]
pub struct Header {
    format: String,
    /// Experts of a layer.
    pub num_experts: Option<usize>,
}

/// One value, or one for each token of a batch.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a value, or a list of one for each token")]
enum PerToken<T> {
    Rows(Vec<T>),
    One(T),
}

/// The values of one token, or a list of them for each token of a batch.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of numbers, or a list of such lists, one for each token"
)]
enum Lists<T> {
    One(Vec<T>),
    Rows(Vec<Vec<T>>),
}

/// All fields of both formats; others are ignored.
#[derive(Debug, Deserialize)]
struct Fields {
    step: Option<u64>,
    layer: Option<u64>,
    token: Option<PerToken<u64>>,
    input: Option<PerToken<u64>>,
    label: Option<PerToken<Value>>,
    experts: Option<Lists<usize>>,
    weights: Option<Lists<f64>>,
    kept: Option<Lists<bool>>,
    probs: Option<Lists<f64>>,
    /// Megatron-LM's name for `experts`; in rising order where the router gave it a mask.
    top_indices: Option<Vec<Vec<usize>>>,
    block: Option<String>,
    mtp_idx: Option<u64>,
}

/// What a line says.
#[derive(Debug)]
pub enum Line {
    /// Facts about the whole log.
    Header(Header),
    /// Decisions of one layer in one step.
    Record(Box<Record>),
}

/// Decisions of one layer in one step, about one token or about a batch.
#[derive(Debug)]
pub struct Record {
    /// The step.
    pub step: u64,
    /// The layer.
    pub layer: LayerId,
    expert_tk: Vec<Vec<usize>>,
    ordered: bool,
    token: PerToken<u64>,
    input: Option<PerToken<u64>>,
    label: Option<PerToken<Value>>,
    weight_tk: Option<Vec<Vec<f64>>>,
    kept_tk: Option<Vec<Vec<bool>>>,
    gate_te: Option<Vec<Vec<f64>>>,
}

impl Line {
    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong and what was expected.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        // A header is told by its format; decisions have none.
        if let Ok(header) = serde_json::from_slice::<Header>(text) {
            return match header.format == FORMAT {
                true => Ok(Self::Header(header)),
                false => Err(format!("format: {:?}, expected {FORMAT:?}", header.format)),
            };
        }
        let mut source = serde_json::Deserializer::from_slice(text);
        let fields: Fields = serde_path_to_error::deserialize(&mut source).map_err(|error| {
            let (path, inner) = (error.path().to_string(), in_line(error.inner()));
            if path == "." { inner } else { format!("{path}: {inner}") }
        })?;
        source.end().map_err(|e| in_line(&e))?;
        Record::of(fields).map(|record| Self::Record(Box::new(record)))
    }
}

/// serde's message, whose every line is the first one.
fn in_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", ", at column ")
}

impl<T> Lists<T> {
    fn rows(self) -> Vec<Vec<T>> {
        match self {
            Self::One(row) => vec![row],
            Self::Rows(rows) => rows,
        }
    }
}

impl<T> PerToken<T> {
    /// The value of a row; `None` where the list is too short.
    fn get(&self, row: usize) -> Option<&T> {
        match self {
            Self::One(value) => Some(value),
            Self::Rows(values) => values.get(row),
        }
    }
}

impl Record {
    fn of(fields: Fields) -> Result<Self, String> {
        let missing = |name: &str| format!("`{name}` is missing, expected step, layer and experts");
        let ordered = fields.top_indices.is_none();
        let experts = fields.experts.or(fields.top_indices.map(Lists::Rows));
        let expert_tk = experts.ok_or_else(|| missing("experts"))?.rows();
        let rows = expert_tk.len();
        Ok(Self {
            step: fields.step.ok_or_else(|| missing("step"))?,
            layer: layer(
                fields.layer.ok_or_else(|| missing("layer"))?,
                fields.block.as_deref(),
                fields.mtp_idx,
            ),
            weight_tk: same_rows("weights", fields.weights, rows)?,
            kept_tk: same_rows("kept", fields.kept, rows)?,
            gate_te: same_rows("probs", fields.probs, rows)?,
            token: fields.token.unwrap_or(PerToken::One(0)),
            input: fields.input,
            label: fields.label,
            expert_tk,
            ordered,
        })
    }

    /// Tokens of this line.
    pub fn rows(&self) -> usize {
        self.expert_tk.len()
    }

    /// The decision about one token, without its label.
    ///
    /// # Errors
    /// A list of tokens or inputs that is shorter than that of experts.
    pub fn token(&self, row: usize) -> Result<Token<'_>, String> {
        let id = match &self.token {
            // The number of the first token of the batch.
            PerToken::One(first) => first + row as u64,
            tokens => *per_token("token", tokens, row)?,
        };
        let input = self.input.as_ref().map(|input| per_token("input", input, row)).transpose()?;
        Ok(Token {
            id,
            input: input.copied(),
            expert_k: &self.expert_tk[row],
            ordered: self.ordered,
            weight_k: self.weight_tk.as_ref().map(|rows| rows[row].as_slice()),
            kept_k: self.kept_tk.as_ref().map(|rows| rows[row].as_slice()),
            gate_e: self.gate_te.as_ref().map(|rows| rows[row].as_slice()),
            label: None,
        })
    }

    /// The label of a token: a text as it is, anything else as JSON; with `input` its input.
    ///
    /// # Errors
    /// A list that is shorter than that of experts.
    pub fn label(&self, row: usize, input: bool) -> Result<Option<String>, String> {
        match (&self.label, &self.input) {
            (Some(label), _) => per_token("label", label, row).map(|label| match label {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            }),
            (None, Some(inputs)) if input => {
                per_token("input", inputs, row).map(|id| Some(id.to_string()))
            }
            _ => Ok(None),
        }
    }
}

fn per_token<'a, T>(name: &str, values: &'a PerToken<T>, row: usize) -> Result<&'a T, String> {
    values.get(row).ok_or_else(|| format!("{name}: {row} values, expected one for each token"))
}

fn same_rows<T>(
    name: &str,
    lists: Option<Lists<T>>,
    rows: usize,
) -> Result<Option<Vec<Vec<T>>>, String> {
    let Some(lists) = lists.map(Lists::rows) else { return Ok(None) };
    match lists.len() == rows {
        true => Ok(Some(lists)),
        false => Err(format!("{name}: {} lists, expected {rows} as of experts", lists.len())),
    }
}

/// Megatron-LM names its blocks; the decoder is the main stack.
fn layer(layer: u64, block: Option<&str>, mtp: Option<u64>) -> LayerId {
    match (block.filter(|block| *block != "decoder"), mtp) {
        (Some(block), Some(index)) => LayerId::new(&format!("{block}{index}"), layer),
        (block, _) => LayerId::new(block.unwrap_or_default(), layer),
    }
}

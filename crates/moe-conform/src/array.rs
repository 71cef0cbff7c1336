//! Nested JSON arrays as `ndarray`s and back.

use ndarray::{ArrayD, IxDyn};
use serde_json::Value;

/// Reads a nested array, row-major; a bare number is a scalar. `"nan"`, `"inf"`, `"-inf"` are words.
///
/// # Errors
/// What is no number, or a ragged array; the text contains `shape` for the latter.
pub fn read(value: &Value) -> Result<ArrayD<f64>, String> {
    let (mut shape, mut values) = (Vec::new(), Vec::new());
    walk(value, 0, &mut shape, &mut values)?;
    ArrayD::from_shape_vec(IxDyn(&shape), values).map_err(|_| "shape: ragged array".into())
}

fn walk(
    value: &Value,
    depth: usize,
    shape: &mut Vec<usize>,
    values: &mut Vec<f64>,
) -> Result<(), String> {
    let Value::Array(items) = value else {
        if depth != shape.len() {
            return Err("shape: ragged array".into());
        }
        values.push(number(value)?);
        return Ok(());
    };
    // Only the first way down may set lengths: later ones must agree.
    if depth == shape.len() && values.is_empty() {
        shape.push(items.len());
    } else if shape.get(depth) != Some(&items.len()) {
        return Err("shape: ragged array".into());
    }
    items.iter().try_for_each(|item| walk(item, depth + 1, shape, values))
}

fn number(value: &Value) -> Result<f64, String> {
    match value {
        Value::Number(n) => n.as_f64().ok_or_else(|| format!("{n} is no f64")),
        Value::Bool(b) => Ok(f64::from(u8::from(*b))),
        Value::String(word) => match word.as_str() {
            "nan" => Ok(f64::NAN),
            "inf" => Ok(f64::INFINITY),
            "-inf" => Ok(f64::NEG_INFINITY),
            _ => Err(format!("`{word}` is no number")),
        },
        _ => Err(format!("{value} is no number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use serde_json::json;

    #[test]
    fn nested_scalar_and_words() {
        assert_eq!(
            read(&json!([[1, 2.5], [3, 4]])).unwrap(),
            array![[1.0, 2.5], [3.0, 4.0]].into_dyn()
        );
        assert_eq!(read(&json!(7)).unwrap().ndim(), 0);
        assert_eq!(read(&json!([])).unwrap().shape(), [0]);
        let words = read(&json!(["inf", "-inf", "nan"])).unwrap();
        assert!(words[0] == f64::INFINITY && words[1] == f64::NEG_INFINITY && words[2].is_nan());
    }

    #[test]
    fn ragged_arrays_and_words_are_refused() {
        for bad in [json!([[1, 2], [3]]), json!([1, [2]]), json!([[1], 2]), json!([[], [1]])] {
            assert!(read(&bad).unwrap_err().contains("shape"), "{bad}");
        }
        assert!(read(&json!(["x"])).unwrap_err().contains("no number"));
        assert!(read(&json!([null])).is_err());
    }
}

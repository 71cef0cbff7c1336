//! The part of JSON Schema that the schema of recipes uses. A validator from a registry would bring two
//! dozen crates, and with their features a second build of libtorch's bindings.

use serde_json::Value;

/// What is wrong with `value`, each with its path.
pub(crate) fn faults_of(schema: &Value, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    check(schema, schema, value, "", &mut faults);
    faults
}

fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    let mut faults = Vec::new();
    check(root, schema, value, "", &mut faults);
    faults.is_empty()
}

fn check(root: &Value, schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let Some(rules) = schema.as_object() else {
        assert!(schema.is_boolean(), "{path}: no schema: {schema}");
        return;
    };
    for (rule, said) in rules {
        let fine = match rule.as_str() {
            "$ref" => {
                let place = said.as_str().unwrap().strip_prefix('#').expect("in this file");
                let target = root.pointer(place).expect("a definition");
                return check(root, target, value, path, faults);
            }
            "type" => said.as_str().map_or_else(
                || said.as_array().unwrap().iter().any(|one| is(one.as_str().unwrap(), value)),
                |one| is(one, value),
            ),
            "enum" => said.as_array().unwrap().contains(value),
            "const" => said == value,
            "minimum" => value.as_f64().is_none_or(|number| number >= said.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= said.as_f64().unwrap()),
            "oneOf" => {
                said.as_array().unwrap().iter().filter(|s| fits(root, s, value)).count() == 1
            }
            "anyOf" => said.as_array().unwrap().iter().any(|s| fits(root, s, value)),
            "allOf" => said.as_array().unwrap().iter().all(|s| fits(root, s, value)),
            "items" => {
                value.as_array().is_none_or(|all| all.iter().all(|one| fits(root, said, one)))
            }
            "required" => said
                .as_array()
                .unwrap()
                .iter()
                .all(|key| value.get(key.as_str().unwrap()).is_some()),
            "properties" | "additionalProperties" => true,
            "$schema" | "title" | "description" | "default" | "format" | "definitions" => true,
            other => panic!("{path}: a rule that this validator does not know: {other}"),
        };
        if !fine {
            faults.push(format!("{path}: {value} against {rule} {said}"));
        }
    }
    properties(root, rules, value, path, faults);
}

fn properties(
    root: &Value,
    rules: &serde_json::Map<String, Value>,
    value: &Value,
    path: &str,
    faults: &mut Vec<String>,
) {
    let closed = rules.get("additionalProperties") == Some(&Value::Bool(false));
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match rules.get("properties").and_then(|known| known.get(key)) {
            Some(schema) => check(root, schema, value, &path, faults),
            None if closed => faults.push(format!("{path}: unknown key")),
            None => {}
        }
    }
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type: {other}"),
    }
}

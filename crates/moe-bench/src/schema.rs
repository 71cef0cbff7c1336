//! JSON Schema of recipes, for editors: `moe schema`, and `docs/recipe.schema.json`.
//!
//! Keys, defaults and comments come from the types that read a recipe. The settings of routers and
//! residuals are asked of the registered papers: their values by preset, whether they take `"none"`,
//! and which words they know.

use crate::recipe::Recipe;
use moe_routers::residual::{names, residual_config};
use moe_routers::{ConfigError, Method, PAPERS, Paper, Settings, router_config, routers};
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// The schema as JSON, with a line end at its end.
pub fn schema() -> String {
    let generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.into_root_schema_for::<Recipe>();
    // Where a file says of itself which schema it follows, as editors want it.
    schema.insert("title".into(), "A recipe of moe".into());
    let json = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    json + "\n"
}

/// A name, or a table with `name` and settings: routers.
pub(crate) fn router_schema(_: &mut SchemaGenerator) -> Schema {
    methods(routers().map(of_router).collect())
}

/// The same for residuals.
pub(crate) fn residual_schema(_: &mut SchemaGenerator) -> Schema {
    methods(names().into_iter().map(of_residual).collect())
}

/// From what a recipe gives to every setting of a method.
type Read = dyn Fn(&Settings) -> Result<Settings, ConfigError>;

/// What the schema says of one method.
struct Described {
    name: &'static str,
    description: String,
    presets: &'static [&'static str],
    /// Settings of each preset.
    values: Vec<Settings>,
    read: Box<Read>,
}

fn of_router(paper: &'static Paper) -> Described {
    let id = paper.id;
    let read = move |given: &Settings| router_config(id, given).map(|config| config.settings());
    described(id, paper, paper.presets, Box::new(read))
}

fn of_residual(name: &'static str) -> Described {
    let read = move |given: &Settings| residual_config(name, given).map(|config| config.settings());
    let home = moe_routers::residual::home(name);
    let paper = PAPERS.iter().find(|p| p.id == home && matches!(p.method, Method::Residual(_)));
    match paper {
        Some(paper) => described(name, paper, paper.presets, Box::new(read)),
        None => Described {
            name,
            description: "The layer's output is added to the stream.".into(),
            presets: &[],
            values: vec![Settings::new()],
            read: Box::new(read),
        },
    }
}

fn described(
    name: &'static str,
    paper: &Paper,
    presets: &'static [&'static str],
    read: Box<Read>,
) -> Described {
    let of = |preset: &&str| read(&Settings::from_iter([("preset".to_owned(), (*preset).into())]));
    let values = presets.iter().filter_map(|preset| of(preset).ok()).collect();
    let first = paper.idea.lines().next().unwrap_or_default();
    let description = format!("{} ({}). {first}", paper.title, paper.authors);
    Described { name, description, presets, values, read }
}

fn methods(all: Vec<Described>) -> Schema {
    let with_preset = |one: &Described| -> Vec<String> {
        one.presets.iter().map(|preset| format!("{}:{preset}", one.name)).collect()
    };
    let plain = all.iter().map(|one| one.name.to_owned());
    let words: Vec<String> = plain.chain(all.iter().flat_map(with_preset)).collect();
    let tables = all.iter().map(Described::table);
    let one_of: Vec<Value> =
        std::iter::once(json!({ "type": "string", "enum": words })).chain(tables).collect();
    json_schema!({ "oneOf": one_of })
}

impl Described {
    fn table(&self) -> Value {
        let mut properties = Map::from_iter([("name".to_owned(), json!({ "const": self.name }))]);
        if !self.presets.is_empty() {
            let (presets, first) = (self.presets, self.presets[0]);
            properties.insert("preset".into(), json!({ "enum": presets, "default": first }));
        }
        let keys = self.values.first().into_iter().flat_map(Settings::keys);
        properties.extend(keys.map(|key| (key.clone(), self.setting(key))));
        json!({
            "type": "object",
            "title": self.name,
            "description": self.description,
            "properties": properties,
            "required": ["name"],
            "additionalProperties": false,
        })
    }

    fn setting(&self, key: &str) -> Value {
        let default = &self.values[0][key];
        let found = self.values.iter().filter_map(|values| values.get(key));
        let mut types: Vec<&str> = found.filter_map(type_of).collect();
        types.sort_unstable();
        types.dedup();
        if types == ["integer", "number"] {
            types.remove(0);
        }
        // A number that no preset gives.
        if types.is_empty() {
            types = vec!["number", "array"];
        }
        let mut schema = match (types.as_slice(), self.words(key)) {
            (["string"], words) if !words.is_empty() => json!({ "enum": words }),
            ([one], _) => json!({ "type": one }),
            (several, _) => json!({ "type": several }),
        };
        if !types.contains(&"string") && self.refuses(key, "none").is_none() {
            schema = json!({ "anyOf": [schema, { "const": "none" }] });
        }
        let default = if default.is_null() { json!("none") } else { default.clone() };
        schema["default"] = default;
        schema
    }

    /// What is said against `word` as the value of `key`.
    fn refuses(&self, key: &str, word: &str) -> Option<String> {
        let given = Settings::from_iter([(key.to_owned(), word.into())]);
        (self.read)(&given).err().map(|error| error.to_string())
    }

    /// The words that a setting knows, as its refusal of another one lists them.
    fn words(&self, key: &str) -> Vec<String> {
        let said = self.refuses(key, "no such word").unwrap_or_default();
        let listed = said.split_once("expected").map_or("", |(_, listed)| listed);
        listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }
}

/// The JSON type of a value; none of null.
fn type_of(value: &Value) -> Option<&'static str> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    })
}

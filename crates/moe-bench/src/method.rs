//! A router or a residual in a recipe.

use crate::error::Misuse;
use moe_routers::{
    ConfigError, ResidualConfig, RouterConfig, Settings, residual_config, router_config,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Largest whole number of a setting.
const MOST: u64 = 1 << 32;

/// A method by name, with settings over one of its presets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "NameOrTable")]
pub struct MethodRecipe {
    /// Its name.
    pub name: String,
    /// `preset` and any of the method's own keys.
    #[serde(flatten)]
    pub settings: Settings,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a name, or a table with `name`")]
enum NameOrTable {
    Name(String),
    Table {
        name: String,
        #[serde(flatten)]
        settings: Settings,
    },
}

impl From<NameOrTable> for MethodRecipe {
    fn from(form: NameOrTable) -> Self {
        match form {
            NameOrTable::Name(name) => Self::named(&name),
            NameOrTable::Table { name, settings } => Self { name, settings },
        }
    }
}

impl MethodRecipe {
    /// `name`, or `name:preset`.
    pub fn named(text: &str) -> Self {
        let (name, preset) = text.split_once(':').unwrap_or((text, ""));
        let mut settings = Settings::new();
        if !preset.is_empty() {
            settings.insert("preset".into(), preset.into());
        }
        Self { name: name.into(), settings }
    }

    /// [`Self::named`], with the settings of `own` if that is the same method and preset.
    pub fn named_or(text: &str, own: &Self) -> Self {
        let named = Self::named(text);
        let same =
            named.name == own.name && named.settings.get("preset") == own.settings.get("preset");
        if same { own.clone() } else { named }
    }

    /// A router's resolved settings.
    ///
    /// # Errors
    /// An unknown router, preset or key, or a bad value, with its place in the recipe.
    pub fn router(&self) -> Result<Box<dyn RouterConfig>, Misuse> {
        let known = self.check_numbers().and_then(|()| router_config(&self.name, &self.settings));
        known.map_err(|e| Misuse::recipe("router", e))
    }

    /// A residual's resolved settings.
    ///
    /// # Errors
    /// An unknown residual, preset or key, or a bad value, with its place in the recipe.
    pub fn residual(&self) -> Result<Box<dyn ResidualConfig>, Misuse> {
        let known = self.check_numbers().and_then(|()| residual_config(&self.name, &self.settings));
        known.map_err(|e| Misuse::recipe("residual", e))
    }

    /// TOML has no null, but settings turn its `nan` and `inf` into one, which would stand for "none".
    /// Whole numbers but seeds are counts and sizes, whose products must not overflow.
    fn check_numbers(&self) -> Result<(), ConfigError> {
        for (key, value) in &self.settings {
            if value.is_null() {
                return Err(ConfigError::setting(key, "nan and inf are no settings"));
            }
            if key == "capacity" && *value == 0 {
                return Err(ConfigError::setting(key, "0 must be at least 1"));
            }
            if key != "seed" && value.as_u64().is_some_and(|count| count > MOST) {
                return Err(ConfigError::setting(key, format!("{value} is above {MOST}")));
            }
        }
        Ok(())
    }

    /// Puts every setting of the resolved method down, the preset it came from first.
    pub(crate) fn write_out(&mut self, resolved: Settings) {
        let preset = self.settings.remove("preset").map(|preset| ("preset".to_owned(), preset));
        // TOML has no null.
        let plain = |value: Value| if value.is_null() { Value::from("none") } else { value };
        let settings = resolved.into_iter().map(|(key, value)| (key, plain(value)));
        self.settings = preset.into_iter().chain(settings).collect();
    }
}

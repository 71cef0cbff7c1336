//! Recipes from outside: the schema that editors read, and every message about a bad one.

mod refused;
mod schema;
mod validate;

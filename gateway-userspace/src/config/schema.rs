//! The JSON schema of the configuration file, draft 2020-12, made from the tables the reader uses.

use serde_json::{Map, Value, json};

use crate::{
    config::{
        keys,
        shape::{Field, Presence, Shape, Table},
    },
    duration,
};

/// The schema, for editors and other programs.
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let mut schema = table(&keys::ROOT, &mut definitions);
    if let Value::Object(schema) = &mut schema {
        schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        schema.insert("title".to_owned(), json!("Sluice configuration"));
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema
}

fn table(table: &Table, definitions: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in table.fields {
        properties.insert(field.key.to_owned(), property(field, definitions));
        if matches!(field.presence, Presence::Required(_)) {
            required.push(field.key);
        }
    }
    let mut schema = Map::new();
    schema.insert("description".to_owned(), json!(table.doc));
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema.insert("required".to_owned(), json!(required));
    schema.insert("additionalProperties".to_owned(), json!(false));
    if !table.one_of.is_empty() {
        let cases: Vec<Value> = table.one_of.iter().map(|key| json!({ "required": [key] })).collect();
        schema.insert("oneOf".to_owned(), json!(cases));
    }
    Value::Object(schema)
}

fn property(field: &Field, definitions: &mut Map<String, Value>) -> Value {
    let mut schema = shape(&field.shape, definitions);
    if let Value::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), json!(field.doc));
        if let Presence::Default(default) = field.presence {
            let number =
                matches!(field.shape, Shape::Integer { .. }).then(|| default.parse::<u64>().ok()).flatten();
            schema
                .insert("default".to_owned(), number.map_or_else(|| json!(default), |number| json!(number)));
        }
    }
    schema
}

fn shape(of: &Shape, definitions: &mut Map<String, Value>) -> Value {
    match of {
        Shape::Table(inner) => {
            if !definitions.contains_key(inner.name) {
                // The entry stands before its content is made, so that a table within itself would end, too.
                definitions.insert(inner.name.to_owned(), Value::Null);
                let definition = table(inner, definitions);
                definitions.insert(inner.name.to_owned(), definition);
            }
            json!({ "$ref": format!("#/$defs/{}", inner.name) })
        }
        Shape::List(list) => json!({
            "type": "array",
            "items": shape(&list.item, definitions),
            "minItems": list.min,
            "maxItems": list.max,
        }),
        Shape::Text(text) if text.number => {
            json!({ "type": ["string", "integer"], "pattern": text.pattern, "examples": [text.example] })
        }
        Shape::Text(text) => json!({ "type": "string", "pattern": text.pattern, "examples": [text.example] }),
        Shape::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::Word(words) => json!({ "type": "string", "enum": words }),
        Shape::Duration { .. } => json!({ "type": "string", "pattern": duration::PATTERN }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_resolves_and_every_object_is_closed() {
        fn walk(value: &Value, definitions: &Map<String, Value>) -> usize {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(to)) = object.get("$ref") {
                        assert!(definitions.contains_key(to.strip_prefix("#/$defs/").unwrap()), "{to}");
                    }
                    let closed = object.get("additionalProperties") == Some(&json!(false));
                    assert_eq!(closed, object.get("properties").is_some_and(Value::is_object) && closed);
                    usize::from(closed) + object.values().map(|value| walk(value, definitions)).sum::<usize>()
                }
                Value::Array(items) => items.iter().map(|value| walk(value, definitions)).sum(),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
            }
        }
        let schema = json_schema();
        let definitions = schema["$defs"].as_object().unwrap();
        assert_eq!(
            walk(&schema, definitions),
            definitions.len() + 1,
            "every table and the file itself is closed"
        );
    }
}

//! The OpenAPI 3.1 document, made from [`crate::endpoint::ALL`] and the wire types.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::endpoint::{ALL, Answer, Endpoint};
use crate::{stream, v1};

/// Returns the document.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = settings.into_generator();
    let error = generator.subschema_for::<v1::ErrorBody>();
    let mut paths = Map::new();
    for endpoint in ALL {
        let item = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        item[endpoint.method] = operation(endpoint, &mut generator, &error);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hearth node",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Runs code you do not trust, each in its own microVM.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn operation(endpoint: &Endpoint, generator: &mut SchemaGenerator, error: &schemars::Schema) -> Value {
    let mut operation = json!({
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "parameters": parameters(endpoint),
        "responses": {
            "default": {
                "description": "What failed, why, and what to do.",
                "content": { "application/json": { "schema": error } },
            },
        },
    });
    if let Some(request) = endpoint.request {
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": request(generator) } } });
    }
    let (status, response) = success(endpoint, generator);
    operation["responses"][status] = response;
    operation
}

fn parameters(endpoint: &Endpoint) -> Vec<Value> {
    let in_path = endpoint
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| {
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" },
                "description": "id, start of an id, or name" })
    });
    let in_query = endpoint.query.iter().map(|(name, description)| {
        json!({ "name": name, "in": "query", "required": false, "schema": { "type": "string" },
                "description": description })
    });
    in_path.chain(in_query).collect()
}

fn success(endpoint: &Endpoint, generator: &mut SchemaGenerator) -> (&'static str, Value) {
    let schema = endpoint.response.map(|response| response(generator));
    let content = |kind: &str| match &schema {
        Some(schema) => json!({ kind: { "schema": schema } }),
        None => json!({ kind: {} }),
    };
    match endpoint.answer {
        Answer::Json => (
            "200",
            json!({ "description": "The document.", "content": content("application/json") }),
        ),
        Answer::Lines => (
            "200",
            json!({ "description": "Documents, a line each.", "content": content("application/x-ndjson") }),
        ),
        Answer::Frames | Answer::Bytes => (
            "200",
            json!({ "description": "A stream.", "content": content("application/octet-stream") }),
        ),
        Answer::Upgrade => (
            "101",
            json!({ "description": format!("The connection carries {} frames.", stream::UPGRADE) }),
        ),
        Answer::Empty => ("204", json!({ "description": "Done." })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_in_the_document_resolves() {
        let document = document();
        let text = document.to_string();
        let references = text
            .split("\"$ref\":\"#")
            .skip(1)
            .filter_map(|rest| rest.split('"').next());
        let mut count = 0;
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
            count += 1;
        }
        assert!(count > 20, "{count} references");
    }

    #[test]
    fn operations_are_named_once() {
        let mut names: Vec<_> = ALL.iter().map(|endpoint| endpoint.operation).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

//! From the types to the CustomResourceDefinition.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::ImageBuild;

/// The CustomResourceDefinition as it is installed.
///
/// It is what the derive makes of the types, with these changes:
/// * no field is nullable, so that the API server drops a `null` as if it had not been written, which
///   is what a template that renders nothing means;
/// * number formats that OpenAPI does not know become those that it knows;
/// * the lines of a description's paragraph are one line, since whoever shows it wraps it anew;
/// * what is a Pod's own keeps its shape, and is described where Pods are;
/// * what a source and a context have in common names the field that it is in;
/// * no ImageBuild is its own context;
/// * `status` starts as `observedGeneration: -1`, so that an object which nobody has looked at yet is
///   not taken for done.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = serde_json::to_value(ImageBuild::crd()).expect("a definition is plain data");
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        tidy(schema);
        for field in ["affinity", "tolerations"] {
            let field = &mut schema["properties"]["spec"]["properties"]["pod"]["properties"][field];
            let description = field["description"].clone();
            undescribe(field);
            field["description"] = description;
        }
        let each =
            &mut schema["properties"]["spec"]["properties"]["pod"]["properties"]["perPlatform"]["items"];
        let field = &mut each["properties"]["tolerations"];
        let description = field["description"].clone();
        undescribe(field);
        field["description"] = description;
        let condition = &mut schema["properties"]["status"]["properties"]["conditions"]["items"];
        condition["description"] = json!("One aspect of the ImageBuild's state.");
        for (name, about) in CONDITION {
            condition["properties"][name]["description"] = json!(about);
        }
        // What a source and a context have in common speaks of the one that it is in.
        let context = &mut schema["properties"]["spec"]["properties"]["contexts"]["items"];
        ["git", "http"].iter().for_each(|kind| rename(&mut context["properties"][kind]));
        schema["x-kubernetes-validations"] = rules(&[(
            "!has(self.spec.contexts) || self.spec.contexts.all(c, !has(c.build) || c.build.name != self.metadata.name)",
            "contexts has this ImageBuild itself: name another one in contexts[].build",
        )]);
        schema["properties"]["status"]["default"] = json!({ "observedGeneration": -1 });
    }
    serde_json::from_value(crd).expect("the changes keep the definition's shape")
}

/// Fields of a condition.
const CONDITION: [(&str, &str); 6] = [
    ("type", "What the condition is about: `Ready`, `Reconciling`, `Stalled` or `Succeeded`."),
    ("status", "Whether it holds: `True`, `False`, or `Unknown` while that is not decided."),
    ("reason", "Why, as a word; `docs/reference/imagebuild.md` lists them."),
    ("message", "Why, in a sentence."),
    ("lastTransitionTime", "When `status` changed last."),
    ("observedGeneration", "Generation of the spec that the condition speaks of."),
];

/// Puts a context's field for a source's into all messages.
fn rename(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for key in ["message", "messageExpression"] {
                if let Some(Value::String(text)) = map.get_mut(key) {
                    *text = text.replace("source.", "contexts[].");
                }
            }
            map.values_mut().for_each(rename);
        }
        Value::Array(items) => items.iter_mut().for_each(rename),
        _ => {}
    }
}

/// Takes the descriptions out of a schema and of all that is in it.
fn undescribe(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    schema.remove("description");
    for key in ["items", "additionalProperties"] {
        schema.get_mut(key).into_iter().for_each(undescribe);
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(serde_json::Map::values_mut).for_each(undescribe);
}

fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // A property may have the same name as a keyword, but it is never a bool or a string.
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text =
                    text.split("\n\n").map(|part| part.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
            }
            match map.get("format").and_then(Value::as_str) {
                Some("uint32" | "uint64") => {
                    map.insert("format".into(), json!("int64"));
                }
                Some("uint8" | "uint16") => {
                    map.insert("format".into(), json!("int32"));
                }
                _ => {}
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Validation rules: CEL expression and message.
pub(crate) fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

/// A rule on every item of a list of texts; what refuses it names the item.
///
/// `rule` speaks of the item as `x`; `before` and `after` are what stands around it in the message,
/// and hold no single quotes.
pub(crate) fn each(rule: &str, before: &str, after: &str) -> Value {
    json!([{
        "rule": format!("self.all(x, {rule})"),
        "message": format!("{before}{after}"),
        "messageExpression": format!("'{before}: \"' + self.filter(x, !({rule}))[0] + '\"{after}'"),
    }])
}

/// Text of at most so many characters: the values of a map.
pub(crate) fn text(length_max: u32) -> Value {
    json!({ "type": "string", "maxLength": length_max })
}

const QUANTITY: &str = r"^[0-9]{1,18}([.][0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$";

/// A quantity of bytes that has to be above zero, written as a string.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 32,
        "x-kubernetes-validations": rules(&[(
            &format!("self.matches('{QUANTITY}') && quantity(self).isGreaterThan(quantity('0'))"),
            "must be an amount of bytes above zero, such as 500Mi or 20Gi",
        )]),
    })
}

/// Quantities by the name of their resource.
pub(crate) fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "pattern": QUANTITY,
        },
    })
}

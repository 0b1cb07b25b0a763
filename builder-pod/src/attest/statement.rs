//! In-toto statements: a predicate, and what it is said of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Media type of a statement.
pub(crate) const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Annotation by which a statement's kind is seen from outside.
pub(crate) const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Version of the statement.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";

/// A thing that something is said of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    /// Its name.
    #[serde(default)]
    pub(crate) name: String,
    /// Its digests by algorithm.
    #[serde(default)]
    pub(crate) digest: BTreeMap<String, String>,
}

/// What a statement is said of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SubjectOf {
    /// The result itself, by its own names and by this one.
    Itself(Option<String>),
    /// Something else.
    Other(Subject),
}

/// All that a statement is said of; none is the result itself.
pub(crate) type Subjects = Vec<SubjectOf>;

/// A statement as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    /// Of what kind the predicate is.
    #[serde(rename = "predicateType")]
    pub(crate) predicate_type: String,
    /// What it is said of.
    #[serde(default, deserialize_with = "or_none")]
    pub(crate) subject: Vec<Subject>,
    /// What is said.
    #[serde(default)]
    pub(crate) predicate: Value,
}

/// A list, which programs in Go write as `null` where it is empty.
fn or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Subject>, D::Error> {
    Ok(Option::<Vec<Subject>>::deserialize(from)?.unwrap_or_default())
}

impl Statement {
    /// A statement of something that `own` names.
    pub(crate) fn new(
        predicate_type: &str,
        subjects: &[SubjectOf],
        own: &[Subject],
        predicate: Value,
    ) -> Self {
        let itself = [SubjectOf::Itself(None)];
        let subjects = if subjects.is_empty() { &itself } else { subjects };
        let mut subject = Vec::new();
        for of in subjects {
            match of {
                SubjectOf::Other(other) => subject.push(other.clone()),
                SubjectOf::Itself(name) => {
                    for own in own {
                        subject.push(own.clone());
                        let digest = own.digest.clone();
                        subject.extend(name.clone().map(|name| Subject { name, digest }));
                    }
                }
            }
        }
        let predicate_type = predicate_type.to_owned();
        Self { kind: STATEMENT.to_owned(), predicate_type, subject, predicate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_of_the_result_where_nothing_else_is_said() {
        let own = Subject { name: "pkg:docker/x".to_owned(), digest: BTreeMap::new() };
        let of_itself = Statement::new("t", &[], std::slice::from_ref(&own), Value::Null);
        assert_eq!(of_itself.subject, std::slice::from_ref(&own));
        let named = [SubjectOf::Itself(Some("file".to_owned()))];
        let names = |statement: Statement| statement.subject.into_iter().map(|s| s.name).collect::<Vec<_>>();
        let both = Statement::new("t", &named, std::slice::from_ref(&own), Value::Null);
        assert_eq!(names(both), ["pkg:docker/x", "file"]);
        let other = SubjectOf::Other(Subject { name: "_".to_owned(), digest: BTreeMap::new() });
        assert_eq!(names(Statement::new("t", &[other], &[own], Value::Null)), ["_"]);
    }
}

//! Source policies: rules about what a build may bring from outside, and about what is taken in its place.
//!
//! Pure: rules and an operation in, the operation that counts out, or why there is none.

mod bundle;
mod context;
mod definition;
mod file;

use std::sync::Arc;

use lapstrake_api::pb::{self, SourceOp};
use lapstrake_api::sourcepolicy::{
    AttrConstraint, AttrMatch, MatchType, Policy, PolicyAction, Rule, Selector, Update,
};
use lapstrake_handoff::Reason;
use lapstrake_oci::{Platform, Reference};
use regex::{Regex, RegexBuilder};

pub(crate) use context::context;
pub(crate) use definition::applied;
pub(crate) use file::read;

use crate::error::BuildError;

/// An operation is converted so often at most: rules may turn in a circle.
const CONVERSIONS_MAX: usize = 20;
/// Somebody who decides is asked so often at most about one source, as with BuildKit.
const QUESTIONS_MAX: usize = 10;
/// Bytes of an identifier at most: conversions may make it longer each time.
const IDENTIFIER_BYTES_MAX: usize = 8 << 10;
/// Rules of all policies of a request at most.
const RULES_MAX: usize = 10_000;
/// Patterns among them at most, and the bytes that each of them takes once it is made ready, and again where it is used.
const PATTERNS_MAX: usize = 1_000;
const PATTERN_BYTES_MAX: usize = 256 << 10;
/// What stands before the name of an image.
const IMAGE: &str = "docker-image://";

/// Why a source is not what a build gets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A rule denies it.
    #[error("source {0:?} denied by policy: source denied by policy")]
    Denied(String),
    /// The client denies it.
    #[error("source {identifier:?} not allowed by policy: action {action}")]
    NotAllowed {
        /// What was asked for.
        identifier: String,
        /// What the client said.
        action: String,
        /// Why, in its words.
        messages: Vec<String>,
    },
    /// The client could not be asked, or answered something that is no answer.
    #[error("{0}")]
    Unjudged(String),
    /// Rules turn in a circle.
    #[error("too many mutations on a single source: too many operations")]
    TooMany,
    /// A rule's selector is not valid.
    #[error("error matching source policy: {0}")]
    Match(String),
    /// A rule's conversion is not valid.
    #[error("error mutating source policy: {0}")]
    Convert(String),
    /// A rule is not valid.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// As the failure of a build; `what` is what was done when the rules were asked.
    pub(crate) fn failure(&self, what: &str) -> BuildError {
        let reason = match self {
            Self::Denied(_) | Self::NotAllowed { .. } => Reason::SourceDenied,
            Self::Unjudged(_) => Reason::SourceUnavailable,
            _ => Reason::RequestInvalid,
        };
        let error = BuildError::new(reason, format!("{what}: {self}"));
        match self {
            Self::NotAllowed { messages, .. } => error.denied(messages.clone()),
            _ => error,
        }
    }
}

/// A rule made ready.
#[derive(Debug, Clone)]
struct Ready {
    action: PolicyAction,
    identifier: String,
    pattern: Pattern,
    constraints: Vec<(AttrConstraint, Option<Regex>)>,
    updates: Option<Update>,
}

/// What an identifier is compared with beside the selector's own.
#[derive(Debug, Clone)]
enum Pattern {
    Exact,
    Wildcard(Regex),
    Regex(Regex),
    /// It can't be read, which is told where it counts.
    Broken(String),
}

/// Somebody who decides beside the rules. It may take a while.
pub(crate) trait Judge: std::fmt::Debug + Send + Sync {
    /// Whether a source may be had; whether it was converted into another one, which is judged anew.
    ///
    /// # Errors
    /// It is denied, or nobody decides.
    fn check(&self, asked: &mut Question<'_>) -> Result<bool, Error>;
}

/// A source that somebody decides about.
pub(crate) struct Question<'a> {
    /// The source.
    pub(crate) op: &'a mut SourceOp,
    /// The platform that it is wanted for, where one is named.
    pub(crate) platform: Option<&'a pb::Platform>,
    left: usize,
}

impl Question<'_> {
    /// To be called before each time that somebody is asked about it.
    ///
    /// # Errors
    /// It was asked too often.
    pub(crate) fn ask(&mut self) -> Result<(), Error> {
        let too_often = || Error::Unjudged("too many policy requests".to_owned());
        self.left = self.left.checked_sub(1).ok_or_else(too_often)?;
        Ok(())
    }
}

/// The policies of a build, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies {
    rules: Vec<Vec<Ready>>,
    judge: Option<Arc<dyn Judge>>,
}

fn regex(text: &str) -> Result<Regex, String> {
    let limited =
        RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
    limited.map_err(|error| match error {
        regex::Error::Syntax(text) => {
            let line = text.lines().last().unwrap_or_default();
            format!("error parsing regexp: {}", line.trim_start_matches("error: "))
        }
        error => format!("error parsing regexp: {error}"),
    })
}

fn wildcard(text: &str) -> Result<Regex, String> {
    if text.contains("**") {
        return Err(format!("failed to translate wildcard {text:?} to regexp: invalid wildcard: \"**\""));
    }
    regex(&format!("^{}$", regex::escape(text).replace("\\*", "(.*)")))
}

impl Ready {
    fn new(rule: &Rule) -> Result<Self, Error> {
        let invalid = |what: &str| Error::Invalid(what.to_owned());
        let selector = rule.selector.as_ref().ok_or_else(|| invalid("invalid nil selector in policy"))?;
        let action = PolicyAction::try_from(rule.action).map_err(|_| {
            Error::Invalid(format!(
                "source policy: rule {} {}: unknown type",
                rule.action, selector.identifier
            ))
        })?;
        let constraints = selector.constraints.iter().map(constraint).collect::<Result<_, _>>()?;
        let (identifier, pattern) = (selector.identifier.clone(), pattern(selector)?);
        Ok(Self { action, identifier, pattern, constraints, updates: rule.updates.clone() })
    }

    fn matches(&self, op: &SourceOp) -> Result<bool, Error> {
        for (constraint, regex) in &self.constraints {
            let value = op.attrs.get(&constraint.key).map(String::as_str).unwrap_or_default();
            let holds = match (AttrMatch::try_from(constraint.condition), regex) {
                (Ok(AttrMatch::Equal), _) => value == constraint.value,
                (Ok(AttrMatch::Notequal), _) => value != constraint.value,
                (_, Some(regex)) => regex.is_match(value),
                (_, None) => false,
            };
            if !holds {
                return Ok(false);
            }
        }
        if self.identifier == op.identifier {
            return Ok(true);
        }
        match &self.pattern {
            Pattern::Exact => Ok(false),
            Pattern::Wildcard(regex) | Pattern::Regex(regex) => Ok(regex.is_match(&op.identifier)),
            Pattern::Broken(why) => Err(Error::Match(why.clone())),
        }
    }

    /// Converts an operation; whether that changed it.
    fn convert(&self, op: &mut SourceOp) -> Result<bool, Error> {
        let missing = || Error::Convert("missing destination for convert rule".to_owned());
        let updates = self.updates.as_ref().ok_or_else(missing)?;
        let to = if updates.identifier.is_empty() { &self.identifier } else { &updates.identifier };
        let too_long = || Error::Convert(format!("an identifier has more than {IDENTIFIER_BYTES_MAX} bytes"));
        if to.len() > IDENTIFIER_BYTES_MAX {
            return Err(too_long());
        }
        let to = self.format(&op.identifier, to)?;
        if to.len() > IDENTIFIER_BYTES_MAX {
            return Err(too_long());
        }
        let mut changed = false;
        if !to.is_empty() && op.identifier != to {
            op.identifier = to;
            changed = true;
        }
        for (key, value) in &updates.attrs {
            // What is not there is empty.
            if op.attrs.get(key).map(String::as_str).unwrap_or_default() != value {
                op.attrs.insert(key.clone(), value.clone());
                changed = true;
            }
        }
        Ok(changed)
    }

    /// The identifier that takes the place of one that matches.
    fn format(&self, from: &str, to: &str) -> Result<String, Error> {
        match &self.pattern {
            Pattern::Exact => Ok(to.to_owned()),
            Pattern::Regex(regex) => Ok(regex.replace_all(from, to).into_owned()),
            Pattern::Wildcard(regex) => Ok(regex.captures(from).map_or_else(
                || from.to_owned(),
                |found| {
                    let mut text = String::new();
                    found.expand(to, &mut text);
                    text
                },
            )),
            Pattern::Broken(why) => Err(Error::Convert(format!("error formatting destination: {why}"))),
        }
    }
}

/// How many patterns a rule has; a wildcard without a star is a name.
fn patterns(rule: &Rule) -> usize {
    let Some(selector) = &rule.selector else { return 0 };
    let matches = |one: &&AttrConstraint| one.condition == AttrMatch::Matches as i32;
    let own = match MatchType::try_from(selector.match_type) {
        Ok(MatchType::Exact) => false,
        Ok(MatchType::Wildcard) => selector.identifier.contains('*'),
        _ => true,
    };
    usize::from(own) + selector.constraints.iter().filter(matches).count()
}

fn constraint(one: &AttrConstraint) -> Result<(AttrConstraint, Option<Regex>), Error> {
    let regex = match AttrMatch::try_from(one.condition) {
        Ok(AttrMatch::Matches) => Some(
            regex(&one.value).map_err(|why| Error::Match(format!("invalid regex {:?}: {why}", one.value)))?,
        ),
        Ok(_) => None,
        Err(_) => return Err(Error::Match(format!("unknown attr condition: {}", one.condition))),
    };
    Ok((one.clone(), regex))
}

fn pattern(selector: &Selector) -> Result<Pattern, Error> {
    let text = &selector.identifier;
    let made = match MatchType::try_from(selector.match_type) {
        Ok(MatchType::Exact) => return Ok(Pattern::Exact),
        Ok(MatchType::Wildcard) => wildcard(text).map(Pattern::Wildcard),
        Ok(MatchType::Regex) => regex(text).map(Pattern::Regex),
        Err(_) => return Err(Error::Match(format!("unknown match type: {}", selector.match_type))),
    };
    Ok(made.unwrap_or_else(Pattern::Broken))
}

impl Policies {
    /// Reads policies; the earlier one has the first word.
    ///
    /// # Errors
    /// A rule without a selector, of an unknown kind, or with a condition that can't be read; too many rules.
    pub(crate) fn new<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Result<Self, Error> {
        let policies: Vec<_> = policies.into_iter().filter(|policy| !policy.rules.is_empty()).collect();
        let rules: usize = policies.iter().map(|policy| policy.rules.len()).sum();
        if rules > RULES_MAX {
            return Err(Error::Invalid(format!("source policies have {rules} rules, more than {RULES_MAX}")));
        }
        let patterns = policies.iter().flat_map(|policy| &policy.rules).map(patterns).sum::<usize>();
        if patterns > PATTERNS_MAX {
            let why = format!(
                "source policies have {patterns} patterns, more than {PATTERNS_MAX}; name what is known exactly"
            );
            return Err(Error::Invalid(why));
        }
        let ready = |policy: &Policy| policy.rules.iter().map(Ready::new).collect();
        let rules = policies.into_iter().map(ready).collect::<Result<_, _>>()?;
        Ok(Self { rules, judge: None })
    }

    /// The same, with somebody who decides what the rules let pass.
    pub(crate) fn with_judge(self, judge: Arc<dyn Judge>) -> Self {
        Self { judge: Some(judge), ..self }
    }

    /// Whether somebody decides beside the rules, which may take a while.
    pub(crate) fn has_judge(&self) -> bool {
        self.judge.is_some()
    }

    /// Whether nothing is ruled.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.judge.is_none()
    }

    /// These, and behind them others.
    pub(crate) fn and(&self, more: &Self) -> Self {
        let judge = self.judge.as_ref().or(more.judge.as_ref()).cloned();
        Self { rules: self.rules.iter().chain(&more.rules).cloned().collect(), judge }
    }

    /// The operation that counts in place of one: converted as long as a rule converts it. Within a policy the
    /// last rule that allows or denies wins; a conversion begins anew with the first policy.
    ///
    /// # Errors
    /// It is denied, rules turn in a circle, or one that counts can't be read.
    pub(crate) fn evaluate(&self, op: &mut SourceOp, platform: Option<&pb::Platform>) -> Result<bool, Error> {
        let mut changed = self.evaluate_alone(op, platform)?;
        // A repository may come from somewhere else than its name says.
        if !self.is_empty()
            && let Some(mut bundle) = bundle::of(op)?
            && self.evaluate_alone(&mut bundle, platform)?
        {
            bundle::put(op, bundle);
            changed = true;
        }
        Ok(changed)
    }

    fn evaluate_alone(&self, op: &mut SourceOp, platform: Option<&pb::Platform>) -> Result<bool, Error> {
        let mut changed = false;
        let mut asked = Question { op, platform, left: QUESTIONS_MAX };
        for _ in 0..=CONVERSIONS_MAX {
            let by_judge = |asked: &mut Question<'_>| match &self.judge {
                Some(judge) => judge.check(asked),
                None => Ok(false),
            };
            if !self.once(asked.op)? && !by_judge(&mut asked)? {
                return Ok(changed);
            }
            changed = true;
        }
        Err(Error::TooMany)
    }

    fn once(&self, op: &mut SourceOp) -> Result<bool, Error> {
        for policy in &self.rules {
            let mut denied = false;
            for rule in policy {
                if !rule.matches(op)? {
                    continue;
                }
                match rule.action {
                    PolicyAction::Allow => denied = false,
                    PolicyAction::Deny => denied = true,
                    PolicyAction::Convert => {
                        if rule.convert(op)? {
                            return Ok(true);
                        }
                    }
                }
            }
            if denied {
                return Err(Error::Denied(op.identifier.clone()));
            }
        }
        Ok(false)
    }

    /// The image that counts in place of one.
    ///
    /// # Errors
    /// As [`Policies::evaluate`]; what takes its place is no image.
    pub(crate) fn image(&self, reference: &Reference, platform: &Platform) -> Result<Reference, BuildError> {
        if self.is_empty() {
            return Ok(reference.clone());
        }
        const WHAT: &str = "could not resolve image due to policy";
        let mut op = SourceOp { identifier: format!("{IMAGE}{reference}"), ..SourceOp::default() };
        let platform = pb::Platform {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone().unwrap_or_default(),
            ..pb::Platform::default()
        };
        if !self.evaluate(&mut op, Some(&platform)).map_err(|error| error.failure(WHAT))? {
            return Ok(reference.clone());
        }
        let other = || {
            let why = format!(
                "{WHAT}: image {reference} can't be replaced by {}, which is no image",
                op.identifier
            );
            BuildError::new(Reason::RequestInvalid, why)
        };
        op.identifier.strip_prefix(IMAGE).and_then(|name| name.parse().ok()).ok_or_else(other)
    }

    /// Refuses a source that is fetched as it is named; one that is converted is named anew.
    ///
    /// # Errors
    /// As [`Policies::evaluate`].
    pub(crate) fn source(
        &self,
        op: &mut SourceOp,
        platform: Option<&pb::Platform>,
    ) -> Result<(), BuildError> {
        let what = "failed to load LLB: error evaluating the source policy";
        self.evaluate(op, platform).map(drop).map_err(|error| error.failure(what))
    }
}

#[cfg(test)]
mod tests;

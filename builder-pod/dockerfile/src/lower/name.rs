//! Names of steps as progress shows them: `[stage 2/4] RUN make`.

use lapstrake_oci::Platform;

use crate::expand::{Lexer, Lookup};
use crate::lower::env::Env;

/// Counts the steps of a stage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter {
    /// The stage's name; may be empty.
    pub(crate) label: String,
    pub(crate) total: usize,
    pub(crate) done: usize,
    /// The platform goes in front.
    pub(crate) with_platform: bool,
}

impl Counter {
    /// The name of the next step.
    pub(crate) fn next(
        &mut self,
        text: &str,
        platform: &Platform,
        env: Option<&Env>,
        trigger: bool,
    ) -> String {
        if self.total == 0 {
            return text.to_owned();
        }
        self.done += 1;
        let mut out = String::from("[");
        if self.with_platform {
            let target = env.and_then(target_platform).and_then(|t| cross(platform, &t));
            out.push_str(&format!("{platform}{} ", target.unwrap_or_default()));
        }
        if !self.label.is_empty() {
            out.push_str(&format!("{} ", self.label));
        }
        let width = self.total.to_string().len();
        let trigger = if trigger { "ONBUILD " } else { "" };
        out.push_str(&format!("{:width$}/{}] {trigger}{text}", self.done, self.total));
        out
    }
}

/// The platform that a stage compiles for, where its environment says so.
fn target_platform(env: &Env) -> Option<Platform> {
    if let Some(platform) = env.get("TARGETPLATFORM").and_then(|text| text.parse().ok()) {
        return Some(platform);
    }
    let (os, arch) = (env.get("TARGETOS"), env.get("TARGETARCH"));
    let variant = env.get("TARGETVARIANT");
    if os.is_none() && arch.is_none() && variant.is_none() {
        return None;
    }
    Some(Platform::new(os.unwrap_or_default(), arch.unwrap_or_default(), variant))
}

/// `->arm64` where a stage runs on another platform than it compiles for.
fn cross(base: &Platform, target: &Platform) -> Option<String> {
    let or = |own: &str, other: &str| if own.is_empty() { other.to_owned() } else { own.to_owned() };
    let os = or(&target.os, &base.os);
    let arch = or(&target.architecture, &base.architecture);
    let target = Platform::new(&os, &arch, target.variant.as_deref());
    if target.os != base.os {
        return Some(format!("->{target}"));
    }
    let variant = target.variant.as_deref().map(|v| format!("/{v}")).unwrap_or_default();
    (target.architecture != base.architecture).then(|| format!("->{}{variant}", target.architecture))
}

/// An instruction as shown: variables put in, the keyword in upper case.
pub(crate) fn shown(text: &str, lexer: &Lexer, env: &dyn Lookup) -> String {
    let text = lexer.word(text, env).map_or_else(|_| text.to_owned(), |expansion| expansion.text);
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_with_stage_and_platforms() {
        let platform = Platform::new("linux", "amd64", None);
        let mut counter = Counter { label: "build".into(), total: 12, done: 1, with_platform: false };
        assert_eq!(counter.next("RUN a", &platform, None, false), "[build  2/12] RUN a");
        counter.with_platform = true;
        let mut env = Env::default();
        env.set("TARGETPLATFORM", "linux/arm64");
        let name = counter.next("RUN a", &platform, Some(&env), true);
        assert_eq!(name, "[linux/amd64->arm64 build  3/12] ONBUILD RUN a");
        let mut none = Counter::default();
        assert_eq!(none.next("FROM x", &platform, None, false), "FROM x");
    }
}

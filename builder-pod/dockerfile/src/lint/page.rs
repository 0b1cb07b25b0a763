//! The rules as a page of the documentation.

use std::fmt::Write as _;

use crate::lint::{RULES, Rule};

const HEAD: &str = "\
# What `check` looks at

`lapstrake-builder check DIR` reads a Dockerfile, says what would keep it from being built, and what should be written
otherwise. A build says the same as warnings, for the stages that it needs.

BuildKit's rules have its names and texts, and are turned on and off as there:

- `# check=skip=Rule,Rule` at the top of the file, or above one instruction for that one; `skip=all`.
- `# check=error=true` makes an error of what rules find; `lapstrake-builder check` then ends with 10, as a build does.
- `# check=experimental=Rule` turns on a rule that is off; `experimental=all` all of BuildKit's, `experimental=lapstrake` all
  of ours. Several settings have `;` between them.
- The build argument `BUILDKIT_DOCKERFILE_CHECK` takes the place of the line in the file.

`error=true` is about BuildKit's rules, and about those of ours that the file asks for by `experimental`: a file that BuildKit
builds is built here.

This page is made from the rules (`cargo run -p lapstrake-dockerfile --example lint_page`); each example is a test.
";

/// The page, as Markdown.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    for (title, of_buildkit) in [("BuildKit's rules", true), ("Our own rules", false)] {
        let rules = || RULES.iter().filter(move |rule| rule.of_buildkit == of_buildkit);
        let _ = writeln!(out, "\n## {title}\n\n| Rule | What it asks for | |\n| --- | --- | --- |");
        for rule in rules() {
            let anchor = rule.name.to_lowercase();
            let off = if rule.by_default { "" } else { "off" };
            let _ = writeln!(out, "| [{}](#{anchor}) | {} | {off} |", rule.name, rule.description);
        }
        rules().for_each(|rule| section(&mut out, rule));
    }
    out
}

fn section(out: &mut String, rule: &Rule) {
    let _ = writeln!(out, "\n### {}\n\n{}\n", rule.name, rule.why);
    let _ = writeln!(out, "```dockerfile\n# so not\n{}```\n", rule.bad);
    let _ = writeln!(out, "```dockerfile\n# but so\n{}```", rule.good);
    if let Some(help) = rule.help {
        let _ = writeln!(out, "\nThe way out: {help}.");
    }
    if !rule.by_default {
        let _ = writeln!(out, "\nOff unless asked for: `# check=experimental={}`.", rule.name);
    }
}

//! The library alone, as a linter in CI or an editor would use it: `cargo run --example check -- Dockerfile`.

use std::io::Write as _;

use lapstrake_dockerfile::{Images, Options, Style, lint, parse};

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "Dockerfile".to_owned());
    let parsed = parse(&path, &std::fs::read_to_string(&path)?);
    let checked = lint::check(&parsed, &Options::default(), &Images::new());
    std::io::stdout().write_all(checked.findings.render(Style::Color).as_bytes())
}

//! Prints `docs/lint.md`: `cargo run -p lapstrake-dockerfile --example lint_page > docs/lint.md`.

use std::io::Write as _;

use lapstrake_dockerfile::lint;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(lint::page().as_bytes())
}

//! The operator's binary: see the library.

fn main() -> anyhow::Result<()> {
    lapstrake_operator::cli::main()
}

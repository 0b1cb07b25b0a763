//! Help in the form in which Go's command line library prints it: other people's scripts read it.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// Name, usage and options of a program.
pub(crate) fn text(command: &Command, about: &str) -> String {
    let name = command.get_name();
    let shown: Vec<_> = command.get_arguments().filter(|arg| !arg.is_hide_set()).collect();
    let left: Vec<_> = shown.iter().map(|arg| left(arg)).collect();
    let width = left.iter().map(String::len).max().unwrap_or(0) + 2;
    let mut text =
        format!("NAME:\n   {name} - {about}\n\nUSAGE:\n   {name} [global options]\n\nGLOBAL OPTIONS:\n");
    for (arg, left) in shown.iter().zip(left) {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let env = arg.get_env().map(|env| format!(" [${}]", env.to_string_lossy())).unwrap_or_default();
        writeln!(text, "   {left:width$} {help}{env}").ok(); // a String takes everything
    }
    text
}

fn left(arg: &Arg) -> String {
    let name = arg.get_long().unwrap_or_default();
    let kind = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    match (kind, arg.get_short()) {
        ("bool", Some(short)) => format!("--{name}, -{short}"),
        ("bool", None) => format!("--{name}"),
        ("strings", _) => format!("--{name} string [ --{name} string ]"),
        (kind, _) => format!("--{name} {kind}"),
    }
}

//! `HEALTHCHECK NONE` and `HEALTHCHECK [--interval=…] CMD …`.

use crate::ast::{Healthcheck, Word};
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::{Flags, Takes};
use crate::instruction::{Input, Parsed, exec_form, fail};
use crate::{go, suggest};

const MILLISECOND: i64 = 1_000_000;

pub(super) fn parse(input: &mut Input<'_>) -> Parsed<Healthcheck> {
    let Some(kind) = input.arguments().into_iter().next() else {
        return fail(input.missing("requires at least one argument"));
    };
    let text = input.line.text.get(input.rest.clone()).unwrap_or("");
    let rest = text[kind.text.len()..].trim_start();
    let rest = input.rest.end - rest.len()..input.rest.end;
    match kind.text.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => {
            Flags::none(input)?;
            Ok(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() })
        }
        "NONE" => fail(Diagnostic::error(
            "unexpected-argument",
            input.line.span(rest),
            "HEALTHCHECK NONE takes no arguments",
        )),
        "CMD" => command(input, rest),
        _ => {
            let message = format!("Unknown type {:?} in HEALTHCHECK (try CMD)", kind.text);
            let finding = Diagnostic::error("invalid-healthcheck", kind.span, message);
            fail(finding.suggest(suggest::nearest_in_case(&kind.text, ["CMD", "NONE"])))
        }
    }
}

fn command(input: &mut Input<'_>, rest: std::ops::Range<usize>) -> Parsed<Healthcheck> {
    let durations = ["interval", "timeout", "start-period", "start-interval"];
    let mut known: Vec<_> = durations.iter().map(|name| (*name, Takes::Value)).collect();
    known.push(("retries", Takes::Value));
    let flags = Flags::read(input, &known)?;
    if rest.is_empty() {
        return fail(Diagnostic::error(
            "missing-argument",
            input.whole(),
            "Missing command after HEALTHCHECK CMD",
        ));
    }
    let (args, warning) = exec_form(input.line, rest.clone())?;
    input.findings.extend(warning);
    let mut test = Vec::new();
    match args {
        Some(args) if args.is_empty() => {
            return fail(Diagnostic::error(
                "missing-argument",
                input.whole(),
                "Missing command after HEALTHCHECK CMD",
            ));
        }
        Some(args) => {
            test.push("CMD".to_owned());
            test.extend(args.into_iter().map(|word| word.text));
        }
        None => test.extend(["CMD-SHELL".to_owned(), input.line.word(rest).text]),
    }
    let [interval, timeout, start_period, start_interval] = durations;
    Ok(Healthcheck {
        test,
        interval: duration(interval, flags.value(interval))?,
        timeout: duration(timeout, flags.value(timeout))?,
        start_period: duration(start_period, flags.value(start_period))?,
        start_interval: duration(start_interval, flags.value(start_interval))?,
        retries: retries(flags.value("retries"))?,
    })
}

fn duration(flag: &str, value: Option<Word>) -> Parsed<i64> {
    let Some(word) = value else { return Ok(0) };
    let Some(nanoseconds) = go::parse_duration(&word.text) else {
        let message = format!("--{flag}={} is not a duration", word.text);
        return fail(
            Diagnostic::error("invalid-duration", word.span, message)
                .help("write a number with a unit, for example 30s, 1m30s or 500ms"),
        );
    };
    if nanoseconds != 0 && nanoseconds < MILLISECOND {
        let message = format!("Interval {flag:?} cannot be less than 1ms");
        return fail(Diagnostic::error("invalid-duration", word.span, message));
    }
    Ok(nanoseconds)
}

fn retries(value: Option<Word>) -> Parsed<i64> {
    let Some(word) = value else { return Ok(0) };
    match word.text.parse::<i32>() {
        Ok(number) if number >= 0 => Ok(i64::from(number)),
        Ok(number) => fail(Diagnostic::error(
            "invalid-retries",
            word.span,
            format!("--retries cannot be negative ({number})"),
        )),
        Err(_) => fail(Diagnostic::error(
            "invalid-retries",
            word.span,
            format!("--retries={} is not a number", word.text),
        )),
    }
}

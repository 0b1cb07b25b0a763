use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

/// What is shown of output that comes in pieces of this size.
fn shown(masks: &Masks, output: &[u8], size: usize) -> String {
    let mut filter = masks.filter();
    let mut out = Vec::new();
    for piece in output.chunks(size) {
        filter.push(0, piece, |bytes| out.extend_from_slice(bytes));
    }
    filter.finish(|_, bytes| out.extend_from_slice(bytes));
    String::from_utf8_lossy(&out).into_owned()
}

fn masks(values: &[&str]) -> Masks {
    let masks = Masks::default();
    values.iter().for_each(|value| masks.learn(value.as_bytes()));
    masks
}

#[test]
fn a_value_is_masked_wherever_reads_cut_it() {
    let masks = masks(&["hunter2-and-more\n"]);
    let output =
        b"a hunter2-and-more b\nhunter2-and-morehunter2-and-more\nhunter2-and-mor\nend hunter2-and-more";
    let expected = "a *** b\n***\nhunter2-and-mor\nend ***";
    for size in 1..output.len() + 1 {
        let shown = shown(&masks, output, size);
        assert_eq!(shown.replace("******", "***"), expected, "pieces of {size}");
    }
}

#[test]
fn each_line_of_a_key_is_masked_and_its_short_ones_are_not() {
    let masks = masks(&["-----BEGIN KEY-----\nMIIBVgIBADAN\nend\n-----END KEY-----\n"]);
    assert_eq!(shown(&masks, b"x MIIBVgIBADAN y\nthe end\n", 7), "x *** y\nthe end\n");
}

#[test]
fn overlapping_values_leave_no_rest() {
    let masks = masks(&["abcdef", "defghi", "abcd"]);
    assert_eq!(shown(&masks, b"<abcdefghi>\n", 3), "<***>\n");
    assert_eq!(masks.text("error: abcdefghi"), "error: ***");
}

fn through(program: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("program");
    child.stdin.take().expect("stdin").write_all(input).expect("written");
    child.wait_with_output().expect("output").stdout
}

#[test]
fn the_forms_that_tools_give_a_value_are_masked() {
    let value = "correct-horse-battery-staple-42";
    let masks = masks(&[value]);
    for before in ["", "u:", "me:", "token=", "x"] {
        let text = format!("{before}{value}");
        for end in ["", "\n", "and more"] {
            for program in [
                &["base64", "-w0"][..],
                &["base64"],
                &["basenc", "--base64url", "-w0"],
                &["xxd", "-p", "-c0"],
            ] {
                if program[0] == "xxd" && Command::new("xxd").arg("-v").output().is_err() {
                    continue; // a comfort of vim's: od is always there, below
                }
                let encoded = through(program, format!("{text}{end}").as_bytes());
                let shown = shown(&masks, &encoded, 5);
                assert!(shown.contains("***"), "{program:?} {text:?}: {shown}");
                // At the edges a character or two may be shared with what stands beside.
                let left = shown.replace("***", "");
                let plain = encoded.len() - left.len();
                assert!(plain + 4 >= value.len() * 8 / 6 - 2, "{program:?}: {shown}");
            }
        }
    }
    let hex: String = through(&["od", "-An", "-v", "-tx1"], value.as_bytes())
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| char::from(*byte))
        .collect();
    assert_eq!(shown(&masks, hex.as_bytes(), 9), "***");
}

#[test]
fn a_long_secret_is_masked_in_base64_over_many_lines() {
    let value: Vec<u8> = (0..5000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let masks = Masks::default();
    masks.learn(&value);
    for program in [&["base64"][..], &["base64", "-w64"]] {
        let encoded = String::from_utf8(through(program, &value)).expect("ASCII");
        let shown = shown(&masks, encoded.as_bytes(), 1000);
        for line in encoded.lines().filter(|line| line.len() > 60) {
            assert!(!shown.contains(&line[..60]), "{line}");
        }
    }
}

#[test]
fn short_values_and_none_change_nothing() {
    for masks in [masks(&[]), masks(&["", "\n", "abc", "a\nb\n"])] {
        assert_eq!(shown(&masks, b"abc a\nb c", 1), "abc a\nb c");
        let mut direct = Vec::new();
        masks.filter().push(0, b"no end", |bytes| direct.extend_from_slice(bytes));
        assert_eq!(direct, b"no end", "nothing is held back without a secret");
    }
}

#[test]
fn a_line_without_an_end_is_shown_in_time_and_masked_all_the_same() {
    let masks = masks(&["hunter2-and-more"]);
    let mut filter = masks.filter();
    let mut out = Vec::new();
    let long =
        [&b"x".repeat(HELD_BYTES_MAX - 5)[..], b"hunter2-and-more", &b"y".repeat(HELD_BYTES_MAX)].concat();
    for piece in long.chunks(1000) {
        filter.push(1, piece, |bytes| out.extend_from_slice(bytes));
    }
    assert!(out.len() > HELD_BYTES_MAX / 2, "{} bytes", out.len());
    filter.finish(|stream, bytes| {
        assert_eq!(stream, 1);
        out.extend_from_slice(bytes);
    });
    let text = String::from_utf8(out).expect("ASCII");
    assert!(text.contains("x***y") && !text.contains("hunter2"));
    assert_eq!(text.len(), long.len() - 16 + 3);
}

#[test]
fn passwords_of_addresses_are_secrets() {
    let masks = Masks::default();
    masks.learn_password("http://me:p4ssw0rd@proxy.example:3128/");
    masks.learn_password("http://proxy.example:3128");
    assert_eq!(
        masks.text("via http://me:p4ssw0rd@proxy.example:3128"),
        "via http://me:***@proxy.example:3128"
    );
}

#[test]
fn a_large_binary_secret_is_taken_in_reasonable_time_and_memory() {
    let mut seed = 1_u64;
    let value: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    })
    .take(400 * 1024)
    .collect();
    let masks = Masks::default();
    masks.learn(&value);
    assert!(masks.0.lock().expect("lock").bytes <= PATTERN_BYTES_MAX);
    assert_eq!(masks.text("ordinary"), "ordinary");
}

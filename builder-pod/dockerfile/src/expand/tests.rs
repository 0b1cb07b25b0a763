use std::collections::BTreeMap;

use super::*;

impl Lookup for BTreeMap<&str, &str> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).copied()
    }
}

fn env() -> BTreeMap<&'static str, &'static str> {
    [("a", "1"), ("empty", ""), ("path", "/usr/lib/libx.so.1"), ("s", "x y"), ("star", "a*c")].into()
}

fn word(text: &str) -> Result<String, String> {
    Lexer::new('\\').word(text, &env()).map(|e| e.text).map_err(|e| e.to_string())
}

#[test]
fn every_form_gives_what_a_shell_gives() {
    for (text, wanted) in [
        ("$a-${a}", "1-1"),
        ("$none|${none}", "|"),
        ("${none:-d}${empty:-d}${empty-d}${a:-d}", "dd1"),
        ("${none:+d}${empty:+d}${empty+d}${a:+d}", "dd"),
        ("${a:?no}${empty?no}", "1"),
        ("${none:-${a}$s}", "1x y"),
        ("${path#*/}|${path##*/}", "usr/lib/libx.so.1|libx.so.1"),
        ("${path%.*}|${path%%.*}", "/usr/lib/libx.so|/usr/lib/libx"),
        ("${path/lib/LIB}|${path//lib/LIB}", "/usr/LIB/libx.so.1|/usr/LIB/LIBx.so.1"),
        (r"${path//\//-}", "-usr-lib-libx.so.1"),
        (r"${star/\*/-}", "a-c"),
        (r"\$a \\ \x", r"$a \ x"),
        (r#""$a \" \x '$a'""#, r#"1 " \x '1'"#),
        ("'$a \\'", "$a \\"),
        ("a$", "a$"),
        ("$a_", ""),
        ("$1x$@", "x"),
        ("a < b << c", "a < b << c"),
    ] {
        assert_eq!(word(text).as_deref(), Ok(wanted), "{text}");
    }
}

#[test]
fn what_is_malformed_is_said() {
    for (text, wanted) in [
        ("'a", "missing closing quote '"),
        ("\"a", "missing closing quote \""),
        ("${a", "syntax error: missing '}'"),
        ("${a:-b", "syntax error: missing '}'"),
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:x}", "syntax error: bad substitution"),
        ("${a:#x}", "unsupported modifier (:#) in substitution"),
        ("${a^}", "unsupported modifier (^) in substitution"),
        ("${a/x}", "syntax error: missing '/' in ${}"),
        ("${none?}", "none: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${none:?custom error}", "none: custom error"),
        (r"${a#\q}", r"invalid pattern (\q) in substitution: invalid escape '\q'"),
    ] {
        assert_eq!(word(text), Err(wanted.to_owned()), "{text}");
    }
}

#[test]
fn raw_modes_leave_text_for_the_shell() {
    let lexer = Lexer { raw_quotes: true, keep_unset: true, ..Lexer::new('\\') };
    let text = lexer.word(r#"echo "$a" '$a' $none ${none:-x}"#, &env()).expect("valid").text;
    assert_eq!(text, r#"echo "1" '$a' $none ${none:-x}"#);
}

#[test]
fn words_split_after_expansion_and_outside_quotes() {
    let words = Lexer::new('\\').words(r#"$s "$s" a\ b pre${none:-x} "" "#, &env()).expect("valid");
    assert_eq!(words, ["x", "y", "x y", "a b", "prex"]);
}

#[test]
fn nesting_and_size_are_bounded() {
    let deep = "${x:-".repeat(100_000);
    assert_eq!(Lexer::new('\\').word(&deep, &()).map(|e| e.text), Err(ExpandError::Depth));
    let big = "x".repeat(600_000);
    let env: BTreeMap<&str, &str> = [("b", big.as_str())].into();
    assert_eq!(Lexer::new('\\').word("$b$b$b", &env).map(|e| e.text), Err(ExpandError::Size));
}

#[test]
fn names_that_are_missing_are_remembered() {
    let out = Lexer::new('\\').word("$a $none ${other:-x}", &env()).expect("valid");
    assert_eq!(out.unset.into_iter().collect::<Vec<_>>(), ["none", "other"]);
}

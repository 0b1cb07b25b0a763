use proptest::prelude::*;

use super::*;

fn matches(patterns: &[&str], path: &str) -> bool {
    let patterns = Patterns::new(patterns).unwrap_or_else(|e| panic!("{e}"));
    let walked = {
        let mut state = MatchState::default();
        for (at, _) in path.match_indices('/') {
            state = patterns.matches_below(&path[..at], &state).1;
        }
        patterns.matches_below(path, &state).0
    };
    let at_once = patterns.matches(path);
    assert_eq!(walked, at_once, "a walk and a single question disagree on {path}");
    at_once
}

#[test]
fn single_patterns() {
    for (pattern, path, want) in [
        // Two stars.
        ("**", "file", true),
        ("**/", "file", true),
        ("**", "dir/file", true),
        ("**/**", "dir/file", true),
        ("dir/**", "dir/a/b", true),
        ("dir/**", "dir", false),
        ("dir/**", "dirt/a", false),
        ("**/dir", "dir", true),
        ("**/dir", "a/b/dir", true),
        ("**/dir", "a/dir/file", true),
        ("**/dir", "a/mydir", false),
        ("**dir", "mydir", true),
        ("**/sub/*", "dir/sub/file", true),
        ("**/sub/**", "dir/sub/a/b", true),
        ("**/file*.txt", "a/b/file1.txt", true),
        ("**/**/*.txt", "file.txt", true),
        ("**/*.txt", "a/b.md", false),
        ("a**/*.txt", "a/b/c.txt", true),
        ("a/**/z", "a/z", true),
        ("a/**/z", "a/b/c/z", true),
        ("a/**/z", "b/z", false),
        ("a/*.txt**", "a/f.txt", true),
        ("**/.git", "bar.git", false),
        // One star and the question mark stop at a slash.
        ("a/*.txt", "a/f.txt", true),
        ("a/*.txt", "a/b/f.txt", false),
        ("*/f", "a/f", true),
        ("*/f", "a/b/f", false),
        ("a?c", "abc", true),
        ("a?c", "a/c", false),
        (".*", ".env", true),
        (".*", "env", false),
        // A directory takes all below it.
        ("docs", "docs/a/b", true),
        ("docs/", "docs/a", true),
        ("docs", "doc", false),
        ("docs", "a/docs", false),
        // Classes, escapes and characters that are special to a regex only.
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "aae", false),
        ("a[^b-d]e", "aze", true),
        ("a[.&&.]e", "a&e", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "axb", false),
        ("a\\d", "a1", false),
        ("a\\d", "ad", true),
        ("a.b", "a.b", true),
        ("a.b", "axb", false),
        ("a*.(b)|c$+{d}", "ax.(b)|c$+{d}", true),
        ("x^y*", "x^yz", true),
        // Cleaning.
        ("./a", "a", true),
        ("a/../b", "b", true),
        ("  a  ", "a", true),
        ("a//b", "a/b", true),
    ] {
        assert_eq!(matches(&[pattern], path), want, "{pattern} on {path}");
    }
}

#[test]
fn the_last_pattern_that_matches_decides() {
    for (patterns, path, want) in [
        (&["docs", "!docs/README.md"][..], "docs/README.md", false),
        (&["docs", "!docs/README.md"], "docs/other.md", true),
        (&["docs/*", "!docs/README.md"], "docs/README.md", false),
        (&["!docs/README.md", "docs"], "docs/README.md", true),
        (&["*.go", "!keep.go", "keep.go"], "keep.go", true),
        (&["**", "!util/web"], "util/web/foo", false),
        (&["**", "!util/web", "util/web/foo"], "util/web/foo", true),
        (&["**", "!dist/*.whl"], "dist/a-1.0+g1.whl", false),
        (&["*", "!src", "src/*.tmp"], "src/a.rs", false),
        (&["*", "!src", "src/*.tmp"], "src/a.tmp", true),
        (&["!only"], "only", false),
        (&[], "a/b", false),
    ] {
        assert_eq!(matches(patterns, path), want, "{patterns:?} on {path}");
    }
}

#[test]
fn malformed_patterns_are_named() {
    for (patterns, index) in
        [(&["!"][..], 0), (&["ok", "a[", "b"], 1), (&["", "x", "\\"], 2), (&["[z", "a"], 0)]
    {
        let error = Patterns::new(patterns).err().unwrap_or_else(|| panic!("{patterns:?}"));
        assert_eq!((error.index, error.pattern.as_str()), (index, patterns[index]));
    }
}

#[test]
fn directories_are_left_out_only_when_no_exception_can_be_below() {
    let patterns = Patterns::new(["**", "!src/*.rs", "!docs/a/b"]).unwrap_or_else(|e| panic!("{e}"));
    for (dir, want) in [
        ("src", true),
        ("src/deep", false),
        ("docs", true),
        ("docs/a", true),
        ("docs/a/b", true),
        ("docs/x", false),
        ("node_modules", false),
        ("doc", false),
    ] {
        // "src/*" may reach into "src/deep" only for all that the cut of a trailing wildcard knows.
        let got = patterns.may_match_below(dir, true);
        assert!(got >= want, "{dir}: an exception below was overlooked");
        if !dir.starts_with("src/") {
            assert_eq!(got, want, "{dir}");
        }
    }
}

#[test]
fn hostile_patterns_take_linear_time() {
    let pattern = "**/a*".repeat(200) + "b";
    let path = "a/".repeat(2000) + "c";
    // With backtracking this would not end in the lifetime of the machine.
    assert!(!matches(&[&pattern], &path));
    assert_eq!(crate::path::matches("a*".repeat(500).as_bytes(), "a".repeat(5000).as_bytes()), Ok(true));
    assert_eq!(
        crate::path::matches(("a*".repeat(500) + "b").as_bytes(), "a".repeat(5000).as_bytes()),
        Ok(false)
    );
}

proptest! {
    #[test]
    fn no_input_panics(patterns in prop::collection::vec("[-a-c!*?/\\[\\]^\\\\.\\PC]{0,12}", 0..6), path in "\\PC{0,20}") {
        if let Ok(patterns) = Patterns::new(&patterns) {
            patterns.matches(&path);
            patterns.matches_below(&path, &MatchState::default());
            patterns.may_match_below(&path, true);
        }
    }

    /// What the walk leaves out unseen must hold nothing that an exception brings back.
    #[test]
    fn a_cut_directory_holds_nothing_to_keep(
        patterns in prop::collection::vec("!?[ab*]{1,2}(/[ab*]{1,2}){0,2}", 1..5),
        dir in "[ab]{1,2}(/[ab]{1,2}){0,1}",
        below in "[ab]{1,2}(/[ab]{1,2}){0,1}",
    ) {
        let patterns = Patterns::new(&patterns).unwrap_or_else(|e| panic!("{e}"));
        if patterns.matches(&dir) && !patterns.may_match_below(&dir, true) {
            let path = format!("{dir}/{below}");
            prop_assert!(patterns.matches(&path));
        }
    }
}

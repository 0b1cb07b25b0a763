//! The corpus of `fuzz/`, and changes of it, once more: the same inputs in each run, without libFuzzer.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/inputs.rs"]
mod inputs;

use std::path::{Path, PathBuf};

/// Changed inputs of each seed.
const CHANGES: u64 = 20;
/// A longer seed is cut, bytes: the changes are about places, not about size.
const SEED_BYTES_MAX: usize = 2000;

fn below(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        match path.is_dir() {
            true => below(&path, out),
            false => out.push(path),
        }
    }
}

/// Seeds of a target: its corpus, and files of the tests that are such inputs.
fn seeds(target: &str, more: &[(&str, &str)]) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    below(&root.join("../../fuzz/corpus").join(target), &mut files);
    assert!(!files.is_empty(), "{target} has a corpus");
    for (dir, name) in more {
        let mut found = Vec::new();
        below(&root.join(dir), &mut found);
        found.retain(|path| path.file_name().is_some_and(|file| file == *name));
        files.extend(found);
    }
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Numbers that look random and are the same in each run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
}

/// A seed with a few places changed: bytes, words of the dictionary, pieces of another seed, cuts, repetitions.
fn changed(seed: &[u8], other: &[u8], words: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut out = seed[..seed.len().min(SEED_BYTES_MAX)].to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(out.len() + 1);
        let end = (at + numbers.below(30)).min(out.len());
        match numbers.below(6) {
            0 if at < out.len() => out[at] = u8::try_from(numbers.below(256)).unwrap(),
            1 => drop(out.drain(at..end)),
            2 => {
                let piece = out[at..end].repeat(1 + numbers.below(5));
                out.splice(at..at, piece);
            }
            3 => {
                let from = numbers.below(other.len() + 1);
                let to = (from + numbers.below(60)).min(other.len());
                out.splice(at..end, other[from..to].iter().copied());
            }
            _ => drop(out.splice(at..at, words[numbers.below(words.len())].iter().copied())),
        }
    }
    out
}

fn dictionary() -> Vec<Vec<u8>> {
    let text = include_str!("../../../fuzz/dictionary");
    let word = |line: &str| -> Vec<u8> { line.trim_matches('"').replace("\\\"", "\"").into_bytes() };
    text.lines().map(word).chain([b"\n".to_vec(), b"\\\n".to_vec(), b"\r\n".to_vec()]).collect()
}

fn replay(target: &str, more: &[(&str, &str)], check: fn(&[u8])) {
    let (seeds, words) = (seeds(target, more), dictionary());
    let mut numbers = Numbers(u64::try_from(seeds.len()).unwrap());
    for seed in &seeds {
        // A panic of any of them should say what it was about.
        let attempt = |input: &[u8]| {
            if std::panic::catch_unwind(|| check(input)).is_err() {
                panic!("{target}: {:?}", String::from_utf8_lossy(input));
            }
        };
        attempt(seed);
        for _ in 0..CHANGES {
            let other = &seeds[numbers.below(seeds.len())];
            attempt(&changed(seed, other, &words, &mut numbers));
        }
    }
}

#[test]
fn parsing_bears_the_corpus_and_changes_of_it() {
    replay("parse", &[("tests", "Dockerfile"), ("lint", "bad.Dockerfile")], inputs::parse);
}

#[test]
fn expansion_bears_the_corpus_and_changes_of_it() {
    replay("expand", &[], inputs::expand);
}

#[test]
fn ignore_files_bear_the_corpus_and_changes_of_it() {
    replay("ignore", &[("tests/projects", ".dockerignore")], inputs::ignore);
}

#[test]
fn lowering_bears_the_corpus_and_changes_of_it() {
    replay("lower", &[("tests/cases", "Dockerfile"), ("tests/projects", "Dockerfile")], inputs::lower);
}

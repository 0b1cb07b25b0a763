//! "Did you mean": the nearest of the words that would have been right.

/// Words further away than this many edits are no suggestion.
const EDITS_MAX: usize = 2;

/// The nearest of `options` to `word`, whatever their case: at most two edits away, swapped neighbours being one. `None`
/// where `word` itself is one of them.
pub fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for option in options {
        if option.eq_ignore_ascii_case(word) {
            return (option != word).then_some(option);
        }
        let Some(edits) = distance(&word.to_ascii_lowercase(), &option.to_ascii_lowercase()) else {
            continue;
        };
        if best.is_none_or(|(least, _)| edits < least) {
            best = Some((edits, option));
        }
    }
    best.map(|(_, option)| option)
}

/// The nearest of `options`, in the case that `word` is written in.
pub(crate) fn nearest_in_case<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let found = nearest(word, options)?;
    let upper = word.chars().any(char::is_uppercase);
    Some(if upper { found.to_ascii_uppercase() } else { found.to_ascii_lowercase() })
}

/// The nearest of `options` to `word` as BuildKit suggests one: at most two edits away in the same case, nothing where
/// `word` is one of them.
pub(crate) fn within_two<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for option in options {
        if option == word {
            return None;
        }
        let least = best.map_or(EDITS_MAX + 1, |(least, _)| least);
        match plain_distance(word, option) {
            Some(edits) if edits < least => best = Some((edits, option)),
            _ => {}
        }
    }
    best.map(|(_, option)| option)
}

/// Edit distance without transpositions, `None` where it is above the limit.
fn plain_distance(a: &str, b: &str) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    if a.len().abs_diff(b.len()) > EDITS_MAX {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    Some(row[b.len()]).filter(|edits| *edits <= EDITS_MAX)
}

/// Edit distance with transpositions, `None` where it is above the limit or as large as the word itself.
fn distance(a: &str, b: &str) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    if a.len().abs_diff(b.len()) > EDITS_MAX {
        return None;
    }
    let mut rows: [Vec<usize>; 3] = [vec![0; b.len() + 1], vec![0; b.len() + 1], (0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        rows.rotate_left(1);
        rows[2][0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = rows[1][j] + usize::from(x != y);
            let mut least = replaced.min(rows[1][j + 1] + 1).min(rows[2][j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(rows[0][j - 1] + 1);
            }
            rows[2][j + 1] = least;
        }
    }
    let edits = rows[2][b.len()];
    (edits <= EDITS_MAX && edits < a.len().max(1)).then_some(edits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_far_ones_are_not() {
        let options = ["env", "run", "copy", "from", "entrypoint"];
        assert_eq!(nearest_in_case("RNU", options).as_deref(), Some("RUN"));
        assert_eq!(nearest_in_case("entrypont", options).as_deref(), Some("entrypoint"));
        assert_eq!(nearest("workdir", options), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("build", ["build"]), None);
        assert_eq!(within_two("VERSON", ["OTHER", "VERSION"]), Some("VERSION"));
        assert_eq!(within_two("VERSON", ["VERSION", "VERSON"]), None);
        assert_eq!(within_two("VRESOIN", ["VERSION"]), None);
    }
}

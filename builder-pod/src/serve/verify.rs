//! Whether a result is for the platforms that were asked for, in BuildKit's words.

use std::collections::BTreeSet;

use lapstrake_oci::Platform;

/// What is to be told: `asked` is the client's list, `made` the platforms of the result, which is a map of several or not.
pub(crate) fn platforms(asked: &str, made: &[&Platform], is_map: bool) -> Vec<String> {
    let mut told = Vec::new();
    let mut wanted = BTreeSet::new();
    for text in asked.split(',').filter(|text| !text.is_empty()) {
        match text.parse::<Platform>() {
            Err(error) => told.push(format!("Invalid platform result requested {text:?}: {error}")),
            Ok(platform) => {
                if !wanted.insert(platform.to_string()) {
                    told.push(format!("Duplicate platform result requested {text:?}"));
                }
            }
        }
    }
    if !told.is_empty() || wanted.is_empty() || made.is_empty() {
        return told;
    }
    let made: BTreeSet<String> = made.iter().map(ToString::to_string).collect();
    if wanted == made {
        return told;
    }
    let list = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join(",");
    told.push(match (wanted.len(), made.len()) {
        (1, 1) => {
            format!("Requested platform {:?} does not match result platform {:?}", asked, list(&made))
        }
        (2.., _) if !is_map => "Multiple platforms requested but result is not multi-platform".to_owned(),
        _ => format!("Requested platforms {} do not match result platforms {}", list(&wanted), list(&made)),
    });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_for_other_platforms_is_told_in_buildkit_s_words() {
        let amd: Platform = "linux/amd64".parse().expect("a platform");
        let arm: Platform = "linux/arm64".parse().expect("a platform");
        for (asked, made, is_map, told) in [
            ("", &[&amd][..], false, None),
            ("linux/amd64", &[&amd], false, None),
            ("linux/amd64,linux/arm64", &[&amd, &arm], true, None),
            (
                "linux/amd64,linux/arm64",
                &[&amd],
                false,
                Some("Multiple platforms requested but result is not"),
            ),
            ("linux/arm64", &[&amd], false, Some("Requested platform \"linux/arm64\" does not match result")),
            ("linux/amd64,linux/amd64", &[&amd], false, Some("Duplicate platform result requested")),
            (
                "linux/amd64",
                &[&amd, &arm],
                true,
                Some("do not match result platforms linux/amd64,linux/arm64"),
            ),
        ] {
            let found = platforms(asked, made, is_map);
            match told {
                None => assert_eq!(found, Vec::<String>::new(), "{asked}"),
                Some(part) => {
                    assert!(matches!(&found[..], [one] if one.contains(part)), "{asked}: {found:?}")
                }
            }
        }
    }
}

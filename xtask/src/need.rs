//! What the machine must have. Each missing thing is one line with the way to get it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process::which;

/// Fails with a line for each thing that is missing.
pub(crate) fn check(root: &Path) -> Result<()> {
    let file = root.join(".ci/packages");
    let list = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut missing = missing_packages(&list);
    if fs::metadata("/proc/self").map_or(1, |me| me.uid()) != 0 {
        missing.insert(0, "root; steps and nodes make namespaces and mounts: run this as root".into());
    }
    if which("go").is_none() {
        missing.push("go; install it from https://go.dev/dl/ and put it on the PATH".into());
    }
    if !missing.is_empty() {
        for line in &missing {
            eprintln!("missing: {line}");
        }
        bail!("this machine lacks {} of the things that are needed, see above", missing.len());
    }
    Ok(())
}

fn missing_packages(list: &str) -> Vec<String> {
    entries(list)
        .filter(|(_, shown_by)| {
            if shown_by.starts_with('/') { !Path::new(shown_by).exists() } else { which(shown_by).is_none() }
        })
        .map(|(package, shown_by)| format!("{shown_by}; apt-get install {package}"))
        .collect()
}

/// Package and what shows that it is there.
fn entries(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_package_is_named_with_the_way_to_install_it() {
        let list =
            "# about\nno-such-package  no-such-program\nother  /no/such/file\nlibc-bin  /proc/self/exe\n";
        assert_eq!(
            missing_packages(list),
            ["no-such-program; apt-get install no-such-package", "/no/such/file; apt-get install other"]
        );
    }

    #[test]
    fn every_line_of_the_list_has_a_package_and_its_proof() {
        let list = fs::read_to_string(crate::root().unwrap().join(".ci/packages")).unwrap();
        let lines = list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
        assert_eq!(entries(&list).count(), lines);
    }
}

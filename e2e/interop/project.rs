//! A copy of a project's folder, the same whenever and wherever it is made.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cases::{Case, Given};
use crate::{Result, repository};

/// The time of all files: 2020-09-13.
const TIME: Duration = Duration::from_secs(1_600_000_000);

/// What is built.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) name: &'static str,
    pub(crate) dir: PathBuf,
    pub(crate) options: Vec<(String, String)>,
    pub(crate) given: &'static [Given],
    secrets: PathBuf,
}

impl Project {
    /// Copies it. Git keeps no times, and of modes one bit.
    pub(crate) fn copy(case: &Case, below: &Path) -> Result<Self> {
        let from = repository("builder-pod/dockerfile/tests/projects").join(case.name);
        let dir = below.join("projects").join(case.name);
        copy(&from, &dir)?;
        if let Some(prepare) = case.prepare {
            prepare(&dir)?;
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.metadata()?.is_file() {
                    settle(&entry.path(), 0o644)?;
                }
            }
            settle(&dir, 0o755)?;
        }
        let text = fs::read_to_string(from.join("options")).unwrap_or_default(); // most have none
        let pair = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), value.to_owned()));
        let options = text.lines().filter_map(pair).collect();
        let project = Self {
            name: case.name,
            dir,
            options,
            given: case.given,
            secrets: below.join("secrets").join(case.name),
        };
        for given in case.given {
            if let Given::Secret(id, text) = given {
                fs::create_dir_all(&project.secrets)?;
                fs::write(project.secret(id), text)?;
            }
        }
        Ok(project)
    }

    /// The file of a secret.
    pub(crate) fn secret(&self, id: &str) -> PathBuf {
        self.secrets.join(id)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))? {
        let entry = entry?;
        let (meta, at) = (entry.metadata()?, to.join(entry.file_name()));
        if meta.is_dir() {
            copy(&entry.path(), &at)?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(entry.path())?, &at)?;
            let status =
                std::process::Command::new("touch").args(["-h", "-d", "@1600000000"]).arg(&at).status()?;
            status.success().then_some(()).ok_or("touch failed")?;
        } else {
            fs::write(&at, fs::read(entry.path())?)?;
            settle(&at, if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 })?;
        }
    }
    settle(to, 0o755)
}

fn settle(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(File::open(path)?.set_modified(SystemTime::UNIX_EPOCH + TIME)?)
}

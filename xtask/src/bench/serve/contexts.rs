//! What the daemons build.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::{Daemon, Registry};
use crate::cluster;
use crate::process::{output, run};

const MIB: u64 = 1024 * 1024;
/// How often each daemon does what it has never seen: contents of its own for each time, since to forget takes longer than to
/// build.
pub(super) const COLD_RUNS: usize = 3;
/// Files of 1 MiB in the large context, of which these are used.
const LAZY_FILES: u32 = 1024;
const LAZY_USED: u32 = 25;
/// Files of the context of many, in folders of 100.
const SMALL_FILES: u32 = 20_000;
/// Bytes of the layer that is exported.
const LAYER_MIB: u64 = 200;
/// Layers of the image that is pulled, and the bytes of each.
const LAYERS: u32 = 20;
const LAYER_KIB: u32 = 2048;

/// Folders with a Dockerfile each.
#[derive(Debug)]
pub(super) struct Contexts {
    scratch: PathBuf,
    /// The registry's `host:port`.
    pub(super) registry: String,
}

impl Contexts {
    pub(super) fn make(root: &Path, programs: &Path, scratch: &Path, registry: &Registry) -> Result<Self> {
        let layout = |name: &str| -> Result<PathBuf> {
            let told = output(Command::new(cluster::tool(root)?).args(["layout", name]))?;
            Ok(PathBuf::from(told.lines().last().unwrap_or_default()))
        };
        registry.put(&layout("busybox")?, "busybox", "1")?;
        registry.put(&layout("debian")?, "debian", "1")?;
        let all = Self { scratch: scratch.join("contexts"), registry: registry.host.clone() };
        let base = format!("FROM {}/busybox:1", all.registry);
        all.dockerfile("steps40", &format!("{base}\n{}", "RUN true\n".repeat(40)))?;
        all.dockerfile("fan16", &fan(&base))?;
        all.dockerfile("diamond", &diamond(&base))?;
        for run in 0..COLD_RUNS {
            all.lazy(run)?;
            all.small(run)?;
        }
        all.layer(&base)?;
        let apt = "RUN apt-get update -q && apt-get install -y -q --no-install-recommends jq\n";
        all.dockerfile("apt", &format!("FROM {}/debian:1\n{apt}", all.registry))?;
        all.tree(&base)?;
        all.layers(&base, programs, scratch, registry)?;
        Ok(all)
    }

    /// The folder of this name.
    pub(super) fn of(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn dockerfile(&self, name: &str, text: &str) -> Result<PathBuf> {
        let folder = self.of(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        fs::write(folder.join("Dockerfile"), text)?;
        Ok(folder)
    }

    fn lazy(&self, run: usize) -> Result<()> {
        let folder = self.dockerfile(&format!("lazy-{run}"), "FROM scratch\nCOPY used /used\n")?;
        for number in 0..LAZY_FILES {
            let is_used = number < LAZY_USED;
            let place = folder.join(if is_used { "used" } else { "unused" }).join(format!("{}", number / 64));
            fs::create_dir_all(&place)?;
            let file = place.join(number.to_string());
            if is_used {
                random(&file, 1024)?;
            } else {
                // Nobody reads it: it need not take room on the disk.
                File::create(&file)?.set_len(MIB)?;
            }
        }
        Ok(())
    }

    fn small(&self, run: usize) -> Result<()> {
        let folder = self.dockerfile(&format!("small-{run}"), "FROM scratch\nCOPY files /files\n")?;
        for number in 0..SMALL_FILES {
            let place = folder.join(format!("files/{}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&place)?;
            }
            let text = format!("file {number} of {run}\n").repeat(50);
            fs::write(place.join(number.to_string()), text)?;
        }
        Ok(())
    }

    /// Images of many layers, made by a daemon of their own: neither of those that are measured has seen them.
    fn layers(&self, base: &str, programs: &Path, scratch: &Path, registry: &Registry) -> Result<()> {
        let mut text = format!("{base}\nARG RUN\n");
        for layer in 0..LAYERS {
            writeln!(text, "RUN head -c {LAYER_KIB}k /dev/urandom > /layer-{layer}")?;
        }
        let folder = self.dockerfile("layers20", &text)?;
        let maker = Daemon::ours(programs, &scratch.join("m"), registry)?;
        for run in 0..COLD_RUNS {
            let name = format!("{}/layers:{run}", self.registry);
            let mut make = maker.build(&folder);
            make.arg("--opt").arg(format!("build-arg:RUN={run}"));
            output(make.args(["--output", &format!("type=image,name={name},push=true")]))?;
            let text = format!("FROM {name}\nRUN cat /layer-* > /dev/null\n");
            self.dockerfile(&format!("pull20-{run}"), &text)?;
        }
        Ok(())
    }

    fn layer(&self, base: &str) -> Result<()> {
        // A layer of its own for each run: a blob that is known is not made again.
        let step = "ARG RUN\nRUN mkdir /layer && cp /src/* /layer/ && echo $RUN > /layer/run\n";
        let folder = self.dockerfile(
            "layer",
            &format!("{base} AS src\nCOPY src /src\n{step}\n{base}\nCOPY --from=src /layer /layer\n"),
        )?;
        let src = folder.join("src");
        fs::create_dir_all(&src)?;
        // Programs, archives and text, about as an image of a language has them.
        let go = output(Command::new("go").args(["env", "GOROOT"]))?;
        let all = src.join("all.tar");
        run(Command::new("tar").args(["-C", go.trim(), "-cf"]).arg(&all).arg("."))?;
        File::options().write(true).open(&all)?.set_len(LAYER_MIB * MIB)?;
        run(Command::new("split").args(["-b", "1M", "-a", "3"]).arg(&all).arg(src.join("part-")))?;
        Ok(fs::remove_file(&all)?)
    }

    fn tree(&self, base: &str) -> Result<()> {
        let text = format!(
            "{base} AS deps\nWORKDIR /deps\nCOPY list .\nRUN cat list > installed\n\
             {base} AS build\nWORKDIR /app\nCOPY --from=deps /deps/installed .\nCOPY src src\n\
             RUN cat src/*/* | sha256sum > out\nRUN wc -c out > size\n\
             {base}\nCOPY --from=build /app/out /app/size /\nRUN echo built > /note\nCMD [\"cat\", \"/out\"]\n"
        );
        let folder = self.dockerfile("tree", &text)?;
        fs::write(folder.join("list"), "one\ntwo\n")?;
        for number in 0..300 {
            let place = folder.join(format!("src/module-{}", number % 12));
            fs::create_dir_all(&place)?;
            fs::write(
                place.join(format!("file-{number}.txt")),
                format!("a line of file {number}\n").repeat(100),
            )?;
        }
        Ok(())
    }
}

fn random(file: &Path, kib: u32) -> Result<()> {
    let mut head = Command::new("head");
    head.args(["-c", &format!("{kib}k"), "/dev/urandom"]).stdout(File::create(file)?);
    run(&mut head)
}

/// Sixteen stages that each sleep for a second, and one that needs them all.
fn fan(base: &str) -> String {
    let mut text = String::new();
    let mut last = String::from("FROM scratch\n");
    for stage in 0..16 {
        text += &format!("{base} AS s{stage}\nRUN sleep 1 && echo {stage} > /{stage}\n");
        last += &format!("COPY --from=s{stage} /{stage} /\n");
    }
    text + &last
}

/// One stage, four that stand on it, one that joins them; each with five steps.
fn diamond(base: &str) -> String {
    let steps = |of: &str| (0..5).map(|n| format!("RUN echo {of}{n} > /{of}{n}\n")).collect::<String>();
    let mut text = format!("{base} AS top\n{}", steps("top"));
    let mut last = String::from("FROM top\n");
    for side in ["a", "b", "c", "d"] {
        text += &format!("FROM top AS {side}\n{}", steps(side));
        last += &format!("COPY --from={side} /{side}4 /\n");
    }
    text + &last + &steps("end")
}

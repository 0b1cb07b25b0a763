//! A daemon with its client, and the registry that both use.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::peer;
use crate::cluster;
use crate::process::output;

/// A daemon that is ended when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    name: &'static str,
    program: PathBuf,
    buildctl: PathBuf,
    child: Child,
    address: String,
    counted: String,
    /// Bytes that clients sent to `counted`.
    sent: Arc<AtomicU64>,
}

impl Daemon {
    pub(super) fn ours(programs: &Path, scratch: &Path, registry: &Registry) -> Result<Self> {
        let program = programs.join("lapstrake-builder");
        let mut command = Command::new(&program);
        command.arg("serve");
        let buildctl = cluster::cache().join("bench-peers/buildctl");
        Self::start("lapstrake", program, buildctl, command, scratch, "", registry)
    }

    pub(super) fn theirs(root: &Path, scratch: &Path, registry: &Registry) -> Result<Self> {
        let peers = peer::compile(root)?;
        let runc = tool(root, "runc")?;
        let program = peers.join("buildkitd");
        let mut command = Command::new(&program);
        // It refuses to start when no runc is on its PATH, whatever its configuration says.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = runc.parent().into_iter().map(Path::to_path_buf).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders)?);
        let worker = format!(
            "binary = \"{}\"\nnetworkMode = \"host\"\ndefaultCgroupParent = \"{}\"\n",
            runc.display(),
            peer::CGROUP
        );
        Self::start("buildkit", program, peers.join("buildctl"), command, scratch, &worker, registry)
    }

    fn start(
        name: &'static str,
        program: PathBuf,
        buildctl: PathBuf,
        mut command: Command,
        scratch: &Path,
        worker: &str,
        registry: &Registry,
    ) -> Result<Self> {
        let state = scratch.join(name);
        fs::create_dir_all(&state)?;
        let dir = state.display();
        let config = format!(
            "root = \"{dir}/root\"\n[grpc]\naddress = [\"unix://{dir}/s\"]\n[otel]\nsocketPath = \"{dir}/o\"\n\
             [worker.containerd]\nenabled = false\n[worker.oci]\n{worker}snapshotter = \"overlayfs\"\n\
             [registry.\"{}\"]\nhttp = true\n",
            registry.host
        );
        let file = state.join("buildkitd.toml");
        fs::write(&file, config)?;
        let child = command
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(File::create(state.join("log"))?)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let sent = Arc::new(AtomicU64::new(0));
        count(&state.join("c"), state.join("s"), Arc::clone(&sent))?;
        let address = format!("unix://{dir}/s");
        let counted = format!("unix://{dir}/c");
        let mut daemon = Self { name, program, buildctl, child, address, counted, sent };
        while !daemon.control().args(["debug", "workers"]).output()?.status.success() {
            if let Some(status) = daemon.child.try_wait()? {
                let log = fs::read_to_string(state.join("log")).unwrap_or_default();
                bail!("{name} ended with {status}:\n{log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn version(&self) -> Result<String> {
        Ok(output(Command::new(&self.program).arg("--version"))?.trim().to_owned())
    }

    /// `buildctl`, told of the daemon.
    pub(super) fn control(&self) -> Command {
        self.control_at(&self.address)
    }

    fn control_at(&self, address: &str) -> Command {
        let mut command = Command::new(&self.buildctl);
        command.args(["--addr", address]);
        command
    }

    /// A build of a folder.
    pub(super) fn build(&self, context: &Path) -> Command {
        build(self.control(), context)
    }

    /// The same over a socket that counts what the client sends.
    pub(super) fn counted_build(&self, context: &Path) -> Command {
        self.sent.store(0, Ordering::Relaxed);
        build(self.control_at(&self.counted), context)
    }

    /// What clients sent since the last [`Self::counted_build`], bytes.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// What it has used of processors' time, with its steps that have ended.
    pub(super) fn processor(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("a name in parentheses")?;
        // The kernel tells hundredths of a second, whatever its own clock is.
        let times = fields.split_whitespace().skip(11).take(4).map(str::parse::<u64>);
        Ok(Duration::from_millis(10 * times.sum::<Result<u64, _>>()?))
    }

    /// Memory now and at its highest.
    pub(super) fn memory(&self) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            let kib = line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
            kib.unwrap_or_default() / 1024
        };
        Ok(format!("{} MiB (highest {} MiB)", of("VmRSS:"), of("VmHWM:")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Asked, not killed: it takes its mounts away itself.
        let asked = Command::new("kill").arg(self.child.id().to_string()).status();
        if asked.is_ok_and(|status| status.success()) {
            self.child.wait().ok(); // It was ours and has ended, however it ended.
        }
        peer::sweep();
    }
}

fn build(mut command: Command, context: &Path) -> Command {
    command.args(["build", "--progress", "plain", "--frontend", "dockerfile.v0"]);
    for name in ["context", "dockerfile"] {
        command.arg("--local").arg(format!("{name}={}", context.display()));
    }
    command
}

/// Passes connections on and adds up what clients send.
fn count(socket: &Path, to: PathBuf, sent: Arc<AtomicU64>) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&to) else { continue };
            let (Ok(mut from_server), Ok(mut to_client)) = (server.try_clone(), client.try_clone()) else {
                continue;
            };
            let sent = Arc::clone(&sent);
            thread::spawn(move || {
                io::copy(&mut from_server, &mut to_client).ok(); // Either side may hang up.
                to_client.shutdown(std::net::Shutdown::Both).ok(); // As above.
            });
            thread::spawn(move || forward(client, server, &sent).ok()); // As above.
        }
    });
    Ok(())
}

fn forward(mut client: UnixStream, mut server: UnixStream, sent: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return server.shutdown(std::net::Shutdown::Write);
        }
        sent.fetch_add(read as u64, Ordering::Relaxed);
        server.write_all(buffer.get(..read).unwrap_or_default())?;
    }
}

/// The distribution registry, with a folder of its own.
#[derive(Debug)]
pub(super) struct Registry {
    child: Child,
    pub(super) host: String,
}

impl Registry {
    pub(super) fn start(root: &Path, scratch: &Path) -> Result<Self> {
        let program = tool(root, "registry")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = format!("127.0.0.1:{port}");
        let config = scratch.join("registry.yaml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\", secret: bench}}\n",
            scratch.join("registry").display()
        );
        fs::write(&config, text)?;
        let child = Command::new(&program)
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut registry = Self { child, host };
        while std::net::TcpStream::connect(&registry.host).is_err() {
            if let Some(status) = registry.child.try_wait()? {
                bail!("the registry ended with {status}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// Puts the image of an OCI layout there.
    pub(super) fn put(&self, layout: &Path, name: &str, tag: &str) -> Result<()> {
        let read = |path: PathBuf| -> Result<serde_json::Value> {
            let text = fs::read(&path).with_context(|| path.display().to_string())?;
            Ok(serde_json::from_slice(&text)?)
        };
        let file = |digest: &str| layout.join("blobs").join(digest.replacen(':', "/", 1));
        let index = read(layout.join("index.json"))?;
        let entry = &index["manifests"][0];
        let digest = entry["digest"].as_str().context("a layout with an image")?;
        let manifest = read(file(digest))?;
        let base = format!("http://{}/v2/{name}", self.host);
        let layers = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
        for blob in layers.iter().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().context("a blob with a digest")?;
            let mut begin = Command::new("curl");
            begin.args(["-sSf", "-o", "/dev/null", "-X", "POST", "-w", "%header{location}"]);
            let to = output(begin.arg(format!("{base}/blobs/uploads/")))?;
            let mut send = Command::new("curl");
            send.args(["-sSf", "-H", "Content-Type: application/octet-stream", "-T"]).arg(file(digest));
            output(send.arg(format!("{to}&digest={digest}")))?;
        }
        let media_type = entry["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let mut send = Command::new("curl");
        send.args(["-sSf", "-H"]).arg(format!("Content-Type: {media_type}")).arg("-T").arg(file(digest));
        output(send.arg(format!("{base}/manifests/{tag}"))).map(drop)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok(); // It may have ended.
        self.child.wait().ok(); // As above.
    }
}

/// One of the programs that a cluster is made of.
fn tool(root: &Path, name: &str) -> Result<PathBuf> {
    let ctr = output(Command::new(cluster::tool(root)?).args(["which", "ctr"]))?;
    Ok(Path::new(ctr.trim()).with_file_name(name))
}

//! OpenSSH's own client against the agent.

use std::process::Output;

use tokio::process::Command;

use super::*;

fn keygen(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let mut command = std::process::Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path);
    assert!(command.status().expect("ssh-keygen (openssh-client)").success());
    path
}

async fn ssh_add(socket: &Path, args: &[&str]) -> Output {
    Command::new("ssh-add").args(args).env("SSH_AUTH_SOCK", socket).output().await.expect("ssh-add")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A signature by way of the agent, checked by ssh-keygen.
async fn signs(socket: &Path, dir: &Path, key: &Path) -> bool {
    let public = key.with_extension("pub");
    let file = dir.join("file");
    std::fs::write(&file, "what is signed").expect("written");
    std::fs::remove_file(dir.join("file.sig")).ok();
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-Y", "sign", "-n", "test", "-f"]).arg(&public).arg(&file).env("SSH_AUTH_SOCK", socket);
    // Without the private part beside it, ssh-keygen has to ask the agent.
    let hidden = key.with_extension("hidden");
    std::fs::rename(key, &hidden).expect("renamed");
    let signed = sign.output().await.expect("ssh-keygen");
    std::fs::rename(&hidden, key).expect("renamed back");
    if !signed.status.success() {
        return false;
    }
    let allowed = dir.join("allowed");
    let who = std::fs::read_to_string(&public).expect("public part");
    std::fs::write(&allowed, format!("me@test {who}")).expect("written");
    let mut verify = Command::new("ssh-keygen");
    verify.args(["-Y", "verify", "-n", "test", "-I", "me@test", "-f"]).arg(&allowed);
    verify.arg("-s").arg(dir.join("file.sig")).stdin(std::fs::File::open(&file).expect("file"));
    verify.output().await.expect("ssh-keygen").status.success()
}

#[tokio::test]
async fn openssh_lists_and_signs_and_everything_else_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let path = keygen(dir.path(), "mine");
    let agent = Arc::new(Agent::Keys(Key::open_all(std::slice::from_ref(&path)).expect("key")));
    let place = dir.path().join("socket");
    let socket = Socket::serve(agent, place.clone(), 0o600, 0, 0).expect("socket");
    let listed = ssh_add(&socket.path(), &["-l"]).await;
    assert!(listed.status.success() && text(&listed).contains("mine"), "{listed:?}");
    assert!(signs(&socket.path(), dir.path(), &path).await);
    let other = keygen(dir.path(), "other");
    for args in
        [&["-D"][..], &["-x"], &[other.to_str().expect("UTF-8")], &["-d", path.to_str().expect("UTF-8")]]
    {
        let mut command = Command::new("ssh-add");
        command.args(args).env("SSH_AUTH_SOCK", socket.path()).stdin(std::process::Stdio::null());
        assert!(!command.output().await.expect("ssh-add").status.success(), "{args:?}");
    }
    assert_eq!(text(&ssh_add(&socket.path(), &["-l"]).await).lines().count(), 1);
    assert!(!signs(&socket.path(), dir.path(), &other).await, "a key that the agent does not have");
    drop(socket);
    assert!(!place.exists());
}

#[tokio::test]
async fn another_agent_is_asked_but_can_not_be_changed() {
    let dir = tempfile::tempdir().expect("directory");
    let path = keygen(dir.path(), "theirs");
    let behind = Arc::new(Agent::Keys(Key::open_all(std::slice::from_ref(&path)).expect("key")));
    let behind = Socket::serve(behind, dir.path().join("behind"), 0o600, 0, 0).expect("socket");
    let agent = Arc::new(Agent::Forward(behind.path()));
    // A path that is longer than the kernel takes for a socket.
    let deep = dir.path().join("a".repeat(120));
    let socket = Socket::serve(agent, deep, 0o600, 0, 0).expect("socket");
    let short = dir.path().join("short");
    std::os::unix::fs::symlink(socket.path(), &short).expect("link");
    assert!(text(&ssh_add(&short, &["-l"]).await).contains("theirs"));
    assert!(signs(&short, dir.path(), &path).await);
    assert!(!ssh_add(&short, &["-D"]).await.status.success());
    drop(behind);
    assert!(!ssh_add(&short, &["-l"]).await.status.success(), "nobody behind it");
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_its_connection_only() {
    let dir = tempfile::tempdir().expect("directory");
    let agent = Arc::new(Agent::Keys(Vec::new()));
    let socket = Socket::serve(agent, dir.path().join("s"), 0o600, 0, 0).expect("socket");
    let mut client = UnixStream::connect(socket.path()).await.expect("connected");
    client.write_all(&[0xff; 16]).await.expect("written");
    assert_eq!(next(&mut client).await.ok().flatten(), None);
    assert!(text(&ssh_add(&socket.path(), &["-l"]).await).contains("no identities"));
}

//! Signatures made by `ssh-keygen -Y sign`.

use std::path::Path;
use std::process::Command;

use super::*;

fn run(args: &[&str], dir: &Path) {
    let status = Command::new("ssh-keygen").args(args).current_dir(dir).status();
    assert!(status.expect("ssh-keygen (openssh-client)").success(), "{args:?}");
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).expect("a file of ssh-keygen")
}

#[test]
fn signatures_of_every_kind_of_key_are_taken_and_those_of_anything_else_are_not() {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path();
    std::fs::write(at.join("data"), b"what is signed").expect("file");
    run(&["-q", "-t", "ed25519", "-N", "", "-f", "other"], at);
    let other = read(at, "other.pub");
    for (kind, bits, hash) in [
        ("ed25519", "", "sha512"),
        ("ecdsa", "256", "sha256"),
        ("ecdsa", "384", "sha512"),
        ("ecdsa", "521", "sha512"),
        ("rsa", "2048", "sha256"),
    ] {
        let name = format!("{kind}{bits}");
        let bits: &[&str] = if bits.is_empty() { &[] } else { &["-b", bits] };
        run(&[&["-q", "-t", kind, "-N", "", "-f", &name], bits].concat(), at);
        run(&["-q", "-Y", "sign", "-f", &name, "-n", "git", "-O", &format!("hashalg={hash}"), "data"], at);
        let (signature, key) = (read(at, "data.sig"), read(at, &format!("{name}.pub")));
        std::fs::remove_file(at.join("data.sig")).expect("it is there");
        assert!(is_signature(&signature));
        assert_eq!(verify(&signature, b"what is signed", &key, "git"), Ok(()), "{name}");
        assert_eq!(verify(&signature, b"what is not", &key, "git"), Err(SignatureError::Wrong), "{name}");
        assert_eq!(verify(&signature, b"what is signed", &other, "git"), Err(SignatureError::OtherKey));
        let namespace = SignatureError::Namespace("git".to_owned());
        assert_eq!(verify(&signature, b"what is signed", &key, "file"), Err(namespace));
    }
}

#[test]
fn what_is_no_signature_is_refused_whatever_is_cut() {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path();
    std::fs::write(at.join("data"), b"x").expect("file");
    run(&["-q", "-t", "ed25519", "-N", "", "-f", "k"], at);
    run(&["-q", "-Y", "sign", "-f", "k", "-n", "git", "data"], at);
    let (signature, key) = (read(at, "data.sig"), read(at, "k.pub"));
    let whole = unarmored(&signature).expect("a signature");
    for length in 0..whole.len() {
        let cut = format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(&whole[..length]));
        assert!(verify(&cut, b"x", &key, "git").is_err(), "{length}");
    }
    assert!(matches!(verify(&signature, b"x", "no key", "git"), Err(SignatureError::Key(_))));
    assert!(matches!(verify("text", b"x", &key, "git"), Err(SignatureError::Malformed(_))));
}

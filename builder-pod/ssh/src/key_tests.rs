//! Keys made by `ssh-keygen` and `openssl`; signatures checked by `ssh-keygen` would need a whole protocol,
//! so they are checked by the public part.

use std::process::Command;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512,
    UnparsedPublicKey,
};

use super::*;

fn keygen(dir: &Path, name: &str, args: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-C", "a comment", "-f"]).arg(&path).args(args);
    assert!(command.status().expect("ssh-keygen (openssh-client)").success(), "{args:?}");
    path
}

/// The public part that ssh-keygen writes beside the key.
fn public_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path.with_extension("pub")).expect("public part");
    text.split(' ').nth(1).expect("base64").to_owned()
}

fn base64(bytes: &[u8]) -> String {
    let mut child = Command::new("base64")
        .arg("-w0")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("base64");
    std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), bytes).expect("written");
    String::from_utf8(child.wait_with_output().expect("output").stdout).expect("ASCII")
}

#[test]
fn every_kind_and_form_of_key_has_the_public_part_that_ssh_keygen_says() {
    let dir = tempfile::tempdir().expect("directory");
    let kinds: [(&str, &[&str]); 8] = [
        ("ed25519", &["-t", "ed25519", "-N", ""]),
        ("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]),
        ("rsa-odd", &["-t", "rsa", "-b", "2056", "-N", ""]),
        ("p256", &["-t", "ecdsa", "-b", "256", "-N", ""]),
        ("p384", &["-t", "ecdsa", "-b", "384", "-N", ""]),
        ("p521", &["-t", "ecdsa", "-b", "521", "-N", ""]),
        ("rsa-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""]),
        ("p256-pem", &["-t", "ecdsa", "-b", "256", "-m", "PEM", "-N", ""]),
    ];
    for (name, args) in kinds {
        let path = keygen(dir.path(), name, args);
        let key = Key::open(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(base64(key.public()), public_of(&path), "{name}");
        let flags = if name.starts_with("rsa") { wire::SHA2_256 } else { 0 };
        assert!(key.sign(b"data", flags).is_some(), "{name}");
    }
    // Numbers with leading zeros are written without them: half of these have one.
    for at in 0..8 {
        let path = keygen(dir.path(), &format!("p521-{at}"), &["-t", "ecdsa", "-b", "521", "-N", ""]);
        assert_eq!(base64(Key::open(&path).expect("key").public()), public_of(&path));
    }
    let keys = Key::open_all(&[dir.path().join("rsa"), dir.path().join("p256")]).expect("both");
    assert_eq!(keys.len(), 2);
}

#[test]
fn pkcs8_of_openssl_is_read_too() {
    let dir = tempfile::tempdir().expect("directory");
    for (name, algorithm) in [("ed", "ED25519"), ("rsa", "RSA"), ("ec", "EC")] {
        let path = dir.path().join(name);
        let mut command = Command::new("openssl");
        command.args(["genpkey", "-algorithm", algorithm, "-out"]).arg(&path);
        if algorithm == "EC" {
            command.args(["-pkeyopt", "ec_paramgen_curve:P-256"]);
        }
        assert!(command.output().expect("openssl").status.success());
        let key = Key::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut set = std::fs::metadata(&path).expect("key").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut set, 0o600);
        std::fs::set_permissions(&path, set).expect("mode");
        let shown =
            Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output().expect("ssh-keygen").stdout;
        let shown = String::from_utf8(shown).expect("ASCII");
        if let Some(public) = shown.split_whitespace().nth(1) {
            assert_eq!(base64(key.public()), public, "{name}");
        } else {
            assert_eq!(name, "ed", "ssh-keygen may not read Ed25519 in this form");
        }
    }
}

/// The strings of a signature or public part.
fn strings(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (string, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        out.push(string.to_vec());
        bytes = rest;
    }
    out
}

#[test]
fn signatures_are_those_of_the_key() {
    let dir = tempfile::tempdir().expect("directory");
    let data = b"what is signed";
    let key = Key::open(&keygen(dir.path(), "e", &["-t", "ed25519", "-N", ""])).expect("key");
    let signature = strings(&key.sign(data, 0).expect("signed"));
    assert_eq!(signature[0], b"ssh-ed25519");
    UnparsedPublicKey::new(&ED25519, &strings(key.public())[1]).verify(data, &signature[1]).expect("good");

    let key = Key::open(&keygen(dir.path(), "r", &["-t", "rsa", "-b", "2048", "-N", ""])).expect("key");
    assert!(key.sign(data, 0).is_none(), "no SHA-1");
    let public = strings(key.public());
    let public = der::sequence(&[&public[2], &public[1]]);
    let signature = strings(&key.sign(data, wire::SHA2_256).expect("signed"));
    assert_eq!(signature[0], b"rsa-sha2-256");
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public).verify(data, &signature[1]).expect("good");
    let signature = strings(&key.sign(data, wire::SHA2_512 | wire::SHA2_256).expect("signed"));
    assert_eq!(signature[0], b"rsa-sha2-512");
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA512, &public).verify(data, &signature[1]).expect("good");

    let key = Key::open(&keygen(dir.path(), "c", &["-t", "ecdsa", "-b", "256", "-N", ""])).expect("key");
    let signature = strings(&key.sign(data, 0).expect("signed"));
    let fixed: Vec<u8> = strings(&signature[1])
        .iter()
        .flat_map(|number| {
            let digits = der::without_zeros(number);
            let mut fixed = vec![0; 32 - digits.len()];
            fixed.extend(digits);
            fixed
        })
        .collect();
    let public = strings(key.public());
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &public[2]).verify(data, &fixed).expect("good");
}

#[test]
fn keys_that_can_not_be_used_are_refused_with_the_way_out() {
    let dir = tempfile::tempdir().expect("directory");
    let refused = |path: &Path| Key::open(path).expect_err("refused").to_string();
    let locked = keygen(dir.path(), "l", &["-t", "ed25519", "-N", "passphrase"]);
    assert!(refused(&locked).contains("ssh-add"));
    let locked = keygen(dir.path(), "lp", &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "passphrase"]);
    assert!(refused(&locked).contains("passphrase"));
    assert!(refused(&locked.with_extension("pub")).contains("is it the public part?"));
    let small = keygen(dir.path(), "s", &["-t", "rsa", "-b", "1024", "-N", ""]);
    assert!(refused(&small).contains("can't be used"));
    std::fs::write(dir.path().join("t"), "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n").expect("written");
    let text = refused(&dir.path().join("t"));
    assert!(text.contains("ends too early") && !text.contains("c2VjcmV0"), "{text}");
    assert!(refused(&dir.path().join("none")).contains("/none"));
}

#[test]
fn a_key_has_no_private_part_in_its_debug_form() {
    let dir = tempfile::tempdir().expect("directory");
    let key = Key::open(&keygen(dir.path(), "d", &["-t", "ed25519", "-N", ""])).expect("key");
    assert_eq!(format!("{key:?}"), "Key { comment: \"a comment\", .. }");
}

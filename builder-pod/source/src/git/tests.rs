//! Against real repositories on disk.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::*;

struct World {
    dir: TempDir,
    git: Git,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        let git = Git::new(dir.path().join("cache")).allow_local();
        Self { dir, git }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }

    /// Runs git in the repository `name`; returns what it prints.
    fn run(&self, name: &str, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"])
            .args(args)
            .current_dir(self.path(name))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "t")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "t@t.example")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_DATE"), "1700000000 +0000")))
            .output()
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap_or_else(|e| panic!("{e}"));
        std::fs::write(path, content).unwrap_or_else(|e| panic!("{e}"));
    }

    fn init(&self, name: &str) {
        std::fs::create_dir_all(self.path(name)).unwrap_or_else(|e| panic!("{e}"));
        self.run(name, &["init", "--quiet"]);
    }

    fn commit(&self, name: &str, message: &str) -> String {
        self.run(name, &["add", "--all"]);
        self.run(name, &["commit", "--quiet", "--message", message]);
        self.run(name, &["rev-parse", "HEAD"])
    }

    /// A repository with three commits on main, tags at the first two, and a branch.
    fn shop(&self) -> [String; 3] {
        self.init("shop");
        self.write("shop/a.txt", "one");
        self.write("shop/sub/run.sh", "#!/bin/sh");
        self.write("shop/sub/deep/x", "x");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(self.path("shop/sub/run.sh"), executable).unwrap_or_else(|e| panic!("{e}"));
        let first = self.commit("shop", "first");
        self.run("shop", &["tag", "light"]);
        self.write("shop/a.txt", "two");
        let second = self.commit("shop", "second");
        self.run("shop", &["tag", "--annotate", "--message", "m", "v1"]);
        self.run("shop", &["branch", "feat/x"]);
        self.write("shop/a.txt", "three");
        let third = self.commit("shop", "third");
        [first, second, third]
    }

    async fn get(&self, url: &str, want: &GitRef, options: &CheckoutOptions) -> Result<TempDir, Error> {
        let dest = TempDir::new_in(self.dir.path()).unwrap_or_else(|e| panic!("{e}"));
        let found = self.git.resolve(url, want).await?;
        self.git.fetch(url, &found).await?;
        self.git.checkout(url, &found.commit, dest.path(), options).await?;
        Ok(dest)
    }
}

fn read(dir: &Path, path: &str) -> String {
    std::fs::read_to_string(dir.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[tokio::test]
async fn refs_lead_to_their_commits() {
    let world = World::new();
    let [first, second, third] = world.shop();
    let url = world.url("shop");
    let any = |name: &str| GitRef::Any(name.to_owned());
    for (want, commit, reference) in [
        // The default branch has a name of its own.
        (GitRef::Default, &third, Some("refs/heads/main")),
        (GitRef::Branch("main".to_owned()), &third, Some("refs/heads/main")),
        (GitRef::Branch("refs/heads/feat/x".to_owned()), &second, Some("refs/heads/feat/x")),
        (GitRef::Tag("light".to_owned()), &first, Some("refs/tags/light")),
        // The commit, not the tag's own object.
        (GitRef::Tag("v1".to_owned()), &second, Some("refs/tags/v1")),
        (any("v1"), &second, Some("refs/tags/v1")),
        (any("feat/x"), &second, Some("refs/heads/feat/x")),
        (any("refs/heads/main"), &third, Some("refs/heads/main")),
        (any(&first), &first, None),
        (GitRef::Commit(second.to_ascii_uppercase()), &second, None),
    ] {
        let got = world.git.resolve(&url, &want).await.unwrap_or_else(|e| panic!("{want:?}: {e}"));
        assert_eq!((&got.commit, got.reference.as_deref()), (commit, reference), "{want:?}");
    }
}

#[tokio::test]
async fn a_commit_is_written_plainly() {
    let world = World::new();
    let [first, _, _] = world.shop();
    let options = CheckoutOptions { time: FileTime::Commit, ..CheckoutOptions::default() };
    let dir = world
        .get(&world.url("shop"), &GitRef::Commit(first), &options)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read(dir.path(), "a.txt"), "one");
    assert!(!dir.path().join(".git").exists());
    for (path, mode) in [("a.txt", 0o644), ("sub/run.sh", 0o755), ("sub", 0o755), ("sub/deep", 0o755)] {
        use std::os::unix::fs::MetadataExt;
        let meta = dir.path().join(path).metadata().unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (mode, 1_700_000_000), "{path}");
    }
}

#[tokio::test]
async fn only_the_wanted_commit_is_fetched() {
    let world = World::new();
    let [first, second, _] = world.shop();
    let url = world.url("shop");
    world.get(&url, &GitRef::Default, &CheckoutOptions::default()).await.unwrap_or_else(|e| panic!("{e}"));
    let repository = world.git.repository(&url);
    assert!(!world.git.has(&repository, &second).await, "depth 1");
    // One that no ref points to is fetched by its id, or with all the rest.
    world
        .get(&url, &GitRef::Commit(first.clone()), &CheckoutOptions::default())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(world.git.has(&repository, &first).await);
    // And what is here is not fetched again.
    std::fs::rename(world.path("shop"), world.path("gone")).unwrap_or_else(|e| panic!("{e}"));
    world
        .get(&url, &GitRef::Commit(first), &CheckoutOptions::default())
        .await
        .unwrap_or_else(|e| panic!("{e}"));
}

#[tokio::test]
async fn a_subdirectory_is_written_alone() {
    let world = World::new();
    world.shop();
    let url = world.url("shop");
    let found = world.git.resolve(&url, &GitRef::Default).await.unwrap_or_else(|e| panic!("{e}"));
    world.git.fetch(&url, &found).await.unwrap_or_else(|e| panic!("{e}"));
    let dest = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let options = |subdir: &str| CheckoutOptions { subdir: subdir.to_owned(), ..CheckoutOptions::default() };
    let dir = world
        .git
        .checkout(&url, &found.commit, dest.path(), &options("/sub/"))
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read(&dir, "deep/x"), "x");
    assert!(!dest.path().join("a.txt").exists());
    for missing in ["nope", "a.txt", "sub/run.sh", "*"] {
        let result = world.git.checkout(&url, &found.commit, dest.path(), &options(missing)).await;
        assert!(result.as_ref().is_err_and(|e| e.class() == Class::NotFound), "{missing}: {result:?}");
    }
}

#[tokio::test]
async fn submodules_come_along_when_asked_for() {
    let world = World::new();
    world.init("leaf");
    world.write("leaf/leaf.txt", "leaf");
    world.commit("leaf", "leaf");
    world.init("lib");
    world.write("lib/lib.txt", "lib");
    world.run("lib", &["submodule", "--quiet", "add", "../leaf", "nested/leaf"]);
    world.commit("lib", "lib");
    world.init("app");
    world.write("app/app.txt", "app");
    let url = world.url("lib");
    world.run("app", &["submodule", "--quiet", "add", &url, "third/lib"]);
    world.commit("app", "app");
    let with = |submodules, subdir: &str| CheckoutOptions {
        submodules,
        subdir: subdir.to_owned(),
        ..CheckoutOptions::default()
    };
    let get = async |options| {
        world.get(&world.url("app"), &GitRef::Default, &options).await.unwrap_or_else(|e| panic!("{e}"))
    };
    let dir = get(with(true, "")).await;
    assert_eq!(read(dir.path(), "third/lib/lib.txt"), "lib");
    assert_eq!(read(dir.path(), "third/lib/nested/leaf/leaf.txt"), "leaf");
    let dir = get(with(true, "third")).await;
    assert_eq!(read(dir.path(), "third/lib/lib.txt"), "lib");
    let dir = get(with(false, "")).await;
    assert!(!dir.path().join("third/lib/lib.txt").exists());
}

#[tokio::test]
async fn a_kept_git_directory_has_the_commit_and_no_credentials() {
    let world = World::new();
    let [first, _, _] = world.shop();
    let reference = Some("refs/heads/kept".to_owned());
    let options = CheckoutOptions { keep_git_dir: true, reference, ..CheckoutOptions::default() };
    let commit = GitRef::Commit(first.clone());
    let dir = world.get(&world.url("shop"), &commit, &options).await.unwrap_or_else(|e| panic!("{e}"));
    let at = dir.path().to_string_lossy().into_owned();
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(["-C", &at]).args(args).output();
        String::from_utf8_lossy(&output.unwrap_or_else(|e| panic!("{e}")).stdout).trim().to_owned()
    };
    assert_eq!(git(&["rev-parse", "HEAD"]), first);
    assert_eq!(git(&["rev-parse", "refs/heads/kept"]), first, "it has the name by which it was asked for");
    assert_eq!(git(&["rev-list", "--count", "HEAD"]), "1");
    assert_eq!(git(&["status", "--porcelain"]), "");
    let options = CheckoutOptions { subdir: "sub".to_owned(), ..options };
    let dir = world.get(&world.url("shop"), &commit, &options).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(!dir.path().join("sub/.git").exists() && !dir.path().join(".git").exists());
}

#[tokio::test]
async fn failures_say_what_was_not_found() {
    let world = World::new();
    world.shop();
    let url = world.url("shop");
    let branch = |name: &str| GitRef::Branch(name.to_owned());
    let fail = async |url: &str, want: GitRef| match world.get(url, &want, &CheckoutOptions::default()).await
    {
        Ok(_) => panic!("{want:?} was found"),
        Err(error) => (error.class(), error.to_string()),
    };
    let (class, text) = fail(&url, branch("nope")).await;
    assert_eq!((class, text.ends_with("at nope: no such branch")), (Class::NotFound, true), "{text}");
    let (class, text) = fail(&world.url("none"), GitRef::Default).await;
    assert_eq!((class, text.contains("none")), (Class::NotFound, true), "{text}");
    let (class, text) = fail(&url, GitRef::Commit("0123456789".repeat(4))).await;
    assert_eq!(class, Class::NotFound, "{text}");
    let (class, text) = fail("http://127.0.0.1:1/a.git", GitRef::Default).await;
    assert_eq!(class, Class::Unavailable, "{text}");
    let (_, text) = fail("http://me:secret@127.0.0.1:1/a.git", GitRef::Default).await;
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn options_in_disguise_are_refused() {
    let world = World::new();
    world.shop();
    let url = world.url("shop");
    let pwned = world.path("pwned");
    let upload = format!("--upload-pack=touch {}", pwned.display());
    for url in [upload.as_str(), "-u", "", "ext::sh -c true", "fd::17", "a\nb"] {
        let result = world.git.resolve(url, &GitRef::Default).await;
        assert!(matches!(result, Err(Error::Invalid(_))), "{url}: {result:?}");
    }
    assert!(world.git.check_url("https://[2001:db8::1]:8443/a.git").is_ok(), "an address is no program");
    for name in ["-x", "--upload-pack=x", "", "a b", "a..b", "*", "a:b", "a^", "x.lock", "@{1}", "/a", "a/"] {
        for want in
            [GitRef::Branch(name.to_owned()), GitRef::Tag(name.to_owned()), GitRef::Any(name.to_owned())]
        {
            let result = world.git.resolve(&url, &want).await;
            assert!(matches!(result, Err(Error::Invalid(_))), "{want:?}: {result:?}");
        }
    }
    let strict = Git::new(world.path("strict"));
    for url in [url.as_str(), "/srv/x", "ftp://h/x", "./x"] {
        let result = strict.resolve(url, &GitRef::Default).await;
        assert!(matches!(result, Err(Error::Invalid(_))), "{url}: {result:?}");
    }
    assert!(!pwned.exists());
}

#[tokio::test]
async fn a_repository_that_a_kill_left_behind_is_used_or_made_anew() {
    let world = World::new();
    world.shop();
    let url = world.url("shop");
    let repository = world.git.repository(&url);
    std::fs::create_dir_all(repository.join("objects")).unwrap_or_else(|e| panic!("{e}"));
    std::fs::write(repository.join("shallow.lock"), "").unwrap_or_else(|e| panic!("{e}"));
    world.get(&url, &GitRef::Default, &CheckoutOptions::default()).await.unwrap_or_else(|e| panic!("{e}"));
    // A second process, after the first was killed in a fetch.
    std::fs::write(repository.join("shallow.lock"), "").unwrap_or_else(|e| panic!("{e}"));
    let second = Git::new(world.path("cache")).allow_local();
    let found = second.resolve(&url, &GitRef::Tag("v1".to_owned())).await.unwrap_or_else(|e| panic!("{e}"));
    second.fetch(&url, &found).await.unwrap_or_else(|e| panic!("{e}"));
}

#[tokio::test]
async fn a_dropped_call_kills_its_git() {
    let world = World::new();
    // A server that takes the connection and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|e| panic!("{e}"));
    let port = listener.local_addr().map_or(0, |address| address.port());
    let url = format!("git://127.0.0.1:{port}/x");
    let call = world.git.resolve(&url, &GitRef::Default);
    let mut stream = tokio::select! {
        result = call => panic!("{result:?}"),
        accepted = listener.accept() => accepted.unwrap_or_else(|e| panic!("{e}")).0,
    };
    // The call is gone; so is the other end of the connection, once what it sent was read.
    let mut rest = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    tokio::time::timeout(std::time::Duration::from_secs(30), ended)
        .await
        .unwrap_or_else(|_| panic!("git still lives"))
        .ok(); // a reset is an end, too
}

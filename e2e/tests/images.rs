//! What is pushed is an image to everybody: to skopeo, to containerd, to the kubelet.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lapstrake_crds::annotation;
use lapstrake_e2e::{Test, ready, run};
use serde_json::{Value, json};

fn skopeo(arguments: &[&str]) -> Result<String> {
    let output = Command::new("skopeo").args(arguments).output().context("apt-get install skopeo")?;
    if !output.status.success() {
        bail!("skopeo {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Copies an image into a folder, which checks every digest and size on the way.
fn copy(test: &Test, image: &str, folder: &Path) -> Result<Value> {
    let check = format!("--src-tls-verify={}", !test.cluster.plain_http);
    let destination = format!("oci:{}:copied", folder.display());
    // Digests are kept, so that a manifest that skopeo would write otherwise fails the copy.
    skopeo(&["copy", "--quiet", "--preserve-digests", &check, &format!("docker://{image}"), &destination])?;
    Ok(serde_json::from_str(&fs::read_to_string(folder.join("index.json"))?)?)
}

fn blob(folder: &Path, digest: &Value) -> Result<Value> {
    let digest = digest.as_str().context("a digest")?;
    let path = folder.join("blobs").join(digest.replace(':', "/"));
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[test]
fn skopeo_copies_the_image_and_finds_what_the_specification_wants() {
    run("skopeo", async |test| {
        let dockerfile = "\
ARG BASE
FROM ${BASE}
ENV GREETING=hello
LABEL from=dockerfile
EXPOSE 8080/tcp
VOLUME /data
WORKDIR /work
USER 65532
RUN true
COPY . .
STOPSIGNAL SIGINT
ENTRYPOINT [\"echo\"]
CMD [\"done\"]
";
        let manifest = test
            .manifest("image", dockerfile)
            .set("/spec/source/inline/files", json!([{ "path": "file", "content": "text" }]))
            .set("/spec/output/tags", json!(["1.0", "1"]))
            .set("/spec/output/labels", json!({ "more": "from the spec" }))
            .set("/spec/output/annotations", json!({ "org.opencontainers.image.source": "here" }));
        let build = test.build(&manifest).await?;
        let status = build.status.unwrap_or_default();
        let folder = tempfile::tempdir()?;
        let index = copy(test, &status.image.unwrap_or_default(), folder.path())?;
        let digest = status.digest.context("a digest")?;
        assert_eq!(index["manifests"][0]["digest"], json!(digest));

        let image = blob(folder.path(), &index["manifests"][0]["digest"])?;
        assert_eq!(image["schemaVersion"], 2);
        assert_eq!(image["mediaType"], "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(image["annotations"]["org.opencontainers.image.source"], "here");
        let config = blob(folder.path(), &image["config"]["digest"])?;
        let layers = image["layers"].as_array().context("layers")?;
        let diffs = config["rootfs"]["diff_ids"].as_array().context("diff ids")?;
        let history = config["history"].as_array().context("a history")?;
        assert_eq!(layers.len(), diffs.len());
        let with_layers = history.iter().filter(|entry| entry["empty_layer"] != true).count();
        assert_eq!(with_layers, layers.len(), "each layer has its entry in the history: {history:#?}");
        let run = &config["config"];
        assert_eq!(run["User"], "65532");
        assert_eq!(run["WorkingDir"], "/work");
        assert_eq!(run["Labels"], json!({ "from": "dockerfile", "more": "from the spec" }));
        assert_eq!(run["ExposedPorts"], json!({ "8080/tcp": {} }));
        assert_eq!(run["Volumes"], json!({ "/data": {} }));
        assert_eq!(run["StopSignal"], "SIGINT");
        assert!(run["Env"].as_array().is_some_and(|env| env.contains(&json!("GREETING=hello"))), "{run}");

        for tag in ["1.0", "1"] {
            let reference = format!("docker://{}:{tag}", test.image("image"));
            let verify = format!("--tls-verify={}", !test.cluster.plain_http);
            let found = skopeo(&["inspect", &verify, "--format", "{{.Digest}}", &reference])?;
            assert_eq!(found.trim(), digest, "{tag}");
        }
        Ok(())
    });
}

/// Files that are easily broken on their way into a layer and out of it again.
const TREE: &str = r#"
ARG BASE
FROM ${BASE} AS tree
RUN mkdir -p /tree/gone /tree/opaque/old /tree/sticky /tree/becomes-file /tree/becomes-link && \
    echo a > /tree/gone/a && echo b > /tree/gone/b && echo c > /tree/removed && echo o > /tree/opaque/old/o && \
    echo d > /tree/becomes-directory && echo t > /tree/target && ln -s target /tree/kept-link
RUN rm -r /tree/gone/a /tree/removed /tree/opaque && mkdir /tree/opaque && echo n > /tree/opaque/new && \
    rm -r /tree/becomes-file && echo f > /tree/becomes-file && \
    rm /tree/becomes-directory && mkdir /tree/becomes-directory && echo i > /tree/becomes-directory/inside && \
    rm -r /tree/becomes-link && ln -s target /tree/becomes-link
RUN cd /tree && echo hard > hard-1 && ln hard-1 hard-2 && mkdir deep && ln hard-1 deep/hard-3 && \
    echo su > set-user && chown 1234:5678 set-user && chmod 6755 set-user && chmod 1777 sticky && \
    ln -s loop-b loop-a && ln -s loop-a loop-b && ln -s /nowhere/at/all dangling && mkfifo pipe && \
    dd if=/dev/zero of=sparse bs=1 count=1 seek=10M 2>/dev/null && \
    echo odd > odd-owner && chown 65534:60000 odd-owner && echo none > no-rights && chmod 0 no-rights && \
    n=$(printf 'n%.0s' $(seq 1 150)) && mkdir -p $n/$n && echo long > $n/$n/$n && \
    s=$(printf 's%.0s' $(seq 1 200)) && ln -s $s/$s long-link && \
    printf x > "with space" && printf x > "quote'\"back\\slash" && printf x > "umlaut-ü-漢字" && \
    : > empty && mkdir empty-directory && touch -d @1 old-time && touch -d @4102444800 new-time
RUN chmod 700 /tree/sticky && chown 7:8 /tree/deep && touch /tree/hard-2
FROM ${BASE}
COPY --from=tree /tree /copied
COPY --from=tree /tree /tree
COPY list /list
RUN sh /list /tree | sed 's/^/TREE /'
CMD ["sh", "/list", "/tree"]
"#;

/// Prints all that there is to know of every file.
const LIST: &str = r#"
cd "$1" || exit 1
find . | sort | while IFS= read -r f; do
  stat -c '%n %A %u:%g %h %Y' "$f"
  if [ -L "$f" ]; then readlink "$f"; elif [ -f "$f" ]; then stat -c %s "$f"; sha256sum < "$f"; fi
done
"#;

#[test]
fn a_tricky_tree_comes_out_of_the_image_as_it_went_in() {
    run("tree", async |test| {
        let manifest = test
            .manifest("tree", TREE)
            .set("/spec/source/inline/files", json!([{ "path": "list", "content": LIST }]));
        let build = test.build(&manifest).await?;
        let log = test.log(&build).await?;
        // `#12 0.123 TREE ./file …` of the step that listed the tree.
        let before: Vec<&str> = log
            .lines()
            .filter(|line| line.starts_with('#'))
            .filter_map(|line| line.split_once(" TREE ").map(|(_, listed)| listed))
            .collect();
        let after = test.run_image("image", &build.status.and_then(|s| s.image).unwrap_or_default()).await?;
        let after: Vec<&str> = after.lines().collect();
        assert!(before.len() > 60, "the step listed the tree:\n{log}");
        let differ: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert!(differ.is_empty() && before.len() == after.len(), "{differ:#?}\n{}", after.join("\n"));
        for wanted in ["./set-user -rwsr-sr-x 1234:5678", "./sticky drwx------", "./no-rights ----------"] {
            assert!(after.iter().any(|line| line.starts_with(wanted)), "{wanted}\n{}", after.join("\n"));
        }
        assert!(!after.iter().any(|line| line.contains("removed") || line.contains("opaque/old")));
        Ok(())
    });
}

#[test]
fn containerd_unpacks_it() {
    run("containerd", async |test| {
        if !test.cluster.own {
            println!("SKIPPED, CLUSTER=current: its containerd is not ours to ask");
            return Ok(());
        }
        let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN echo here > /file\n";
        let build = test.build(&test.manifest("image", dockerfile)).await?;
        let image = build.status.and_then(|status| status.image).unwrap_or_default();
        let ctr = |arguments: &[&str]| test.cluster.tool(&[&["ctr", "-n", "e2e"], arguments].concat());
        ctr(&["images", "pull", "--plain-http", &image])?;
        let listed = ctr(&["images", "check"])?;
        let line = listed.lines().find(|line| line.starts_with(&image)).context("the image is listed")?;
        assert!(line.contains("complete") && line.contains("true"), "complete and unpacked: {line}");
        ctr(&["images", "rm", &image])?;
        Ok(())
    });
}

#[test]
fn the_same_input_gives_the_same_digest_from_an_empty_cache() {
    run("same", async |test| {
        // What a step writes has its time in it; what is copied and set has not, once an epoch is given.
        let dockerfile = "ARG BASE\nFROM ${BASE}\nCOPY . /src\nENV A=b\nLABEL c=d\n";
        let manifest = test
            .manifest("same", dockerfile)
            .arg("SOURCE_DATE_EPOCH", "1700000000")
            .set(
                "/spec/source/inline/files",
                json!([{ "path": "a/b", "content": "text", "executable": true }]),
            )
            .without_cache();
        let first = test.build(&manifest).await?.status.unwrap_or_default();
        test.annotate("same", annotation::REBUILD, "again").await?;
        let second = test
            .until("same", "built again", |build| {
                let status = build.status.as_ref();
                status.is_some_and(|s| s.last_handled_rebuild.as_deref() == Some("again")) && ready(build)
            })
            .await?
            .status
            .unwrap_or_default();
        assert_eq!(second.platforms.first().and_then(|platform| platform.cached_steps), Some(0));
        assert_eq!(first.digest, second.digest);
        Ok(())
    });
}

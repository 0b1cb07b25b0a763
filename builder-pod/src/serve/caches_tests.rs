use super::*;
use lapstrake_handoff::Compression;

fn asked(all: &[(&str, &str)]) -> Vec<(String, Attributes)> {
    let pair = |field: &str| {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        (key.to_owned(), value.to_owned())
    };
    let attributes = |text: &str| text.split(';').filter(|field| !field.is_empty()).map(pair).collect();
    all.iter().map(|(kind, text)| ((*kind).to_owned(), attributes(text))).collect()
}

#[test]
fn exports_have_buildkits_defaults() {
    let all = exports(asked(&[
        ("registry", "ref=r.example/c"),
        ("local", "dest=/d;tag=t"),
        ("inline", "mode=max"),
    ]));
    let all = all.unwrap();
    let registry = CacheTarget::Registry { reference: "r.example/c".into(), insecure: false };
    let expected =
        [registry, CacheTarget::Local { dest: "/d".into(), tag: Some("t".into()) }, CacheTarget::Inline];
    assert_eq!(all, expected.map(CacheExport::new));
}

#[test]
fn every_attribute_of_an_export_is_read() {
    let text = "ref=r.example/c;mode=max;oci-mediatypes=false;compression=zstd;compression-level=7;\
                force-compression;ignore-error=true;registry.insecure=true";
    let all = exports(asked(&[("registry", text)])).unwrap();
    assert_eq!((all[0].mode, all[0].image_manifest, all[0].oci_media_types), (CacheMode::Max, false, false));
    assert_eq!((all[0].compression, all[0].compression_level), (Compression::Zstd, Some(7)));
    assert!(all[0].force_compression && all[0].ignore_error);
}

#[test]
fn what_buildkit_passes_over_is_passed_over() {
    let all = exports(asked(&[
        ("local", "dest=/d;mode=all;ignore-error=x;what=ever"),
        ("inline", ""),
        ("inline", "a=b"),
    ]));
    let all = all.unwrap();
    assert_eq!(all.len(), 2, "a second inline cache is the first");
    assert_eq!((all[0].mode, all[0].ignore_error), (CacheMode::Min, false));
}

#[test]
fn what_buildkit_refuses_is_refused_in_its_words() {
    for (all, why) in [
        (&[("tape", "")][..], "unknown cache exporter: \"tape\""),
        (&[("local", "")], "failed to configure local cache exporter: local cache exporter requires dest"),
        (&[("registry", "")], "failed to configure registry cache exporter: missing ref"),
        (&[("registry", "ref=r.example/c;compression=x")], "unsupported compression type x"),
        (&[("registry", "ref=r.example/c;image-manifest=x")], "failed to parse image-manifest"),
        (&[("local", "dest=/d"), ("local", "dest=/d")], "duplicate cache exports [local]"),
        (
            &[("gha", "token=t")],
            "failed to configure gha cache exporter: url not set for github actions cache",
        ),
        (
            &[("s3", "region=r")],
            "failed to configure s3 cache exporter: bucket ($AWS_BUCKET) not set for s3 cache",
        ),
        (
            &[("azblob", "")],
            "failed to configure azblob cache exporter: failed to create azblob config: either",
        ),
    ] {
        let error = exports(asked(all)).expect_err(why);
        assert!(error.failure().message.contains(why), "{error}");
    }
}

#[test]
fn records_of_a_build_and_errors_hold_no_credential_of_a_cache() {
    let attributes =
        "bucket=b;region=r;access_key_id=AKIA;secret_access_key=hush;session_token=tok;compression=zstd";
    let export = exports(asked(&[("s3", attributes)])).unwrap().remove(0);
    assert_eq!(export.compression, lapstrake_handoff::Compression::Zstd);
    let import = imports(asked(&[("s3", attributes)])).remove(0);
    let told = format!("{export:?} {import:?}");
    let text =
        r#"[{"Type":"s3","Attrs":{"bucket":"b","secret_access_key":"hush","access_key_id":"AKIA"}},7]"#;
    let opts = HashMap::from([("cache-imports".to_owned(), text.to_owned())]);
    let kept = without_credentials(&opts)["cache-imports"].clone();
    assert!(kept.contains(r#""bucket":"b""#), "{kept}");
    for secret in ["AKIA", "hush", "tok\""] {
        assert!(!told.contains(secret) && !kept.contains(secret), "{told} {kept}");
    }
    let broken = HashMap::from([("cache-imports".to_owned(), "hush".to_owned())]);
    assert!(without_credentials(&broken).is_empty(), "what can't be read can't be shown");
}

#[test]
fn an_import_that_is_wrong_fails_only_itself() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let local = format!("src=/c;digest={digest}");
    let all = imports(asked(&[
        ("registry", "ref=r.example/c;registry.insecure=true"),
        ("local", &local),
        ("local", "src=/c"),
        ("gha", ""),
        ("tape", ""),
        ("registry", "ref=r.example/c;registry.insecure=true"),
    ]));
    assert_eq!(all.len(), 5, "each once");
    let told: Vec<String> = all
        .iter()
        .map(|import| match &import.cache {
            Ok(_) => format!("{} ok", import.shown),
            Err(error) => error.failure().message.clone(),
        })
        .collect();
    assert_eq!(told[..2], ["r.example/c ok", "local:/c ok"]);
    assert!(told[2].contains("requires explicit digest"), "{told:?}");
    assert!(told[3].contains("token not set for github actions cache"), "{told:?}");
    assert!(told[4].contains("unknown cache importer: tape"), "{told:?}");
}

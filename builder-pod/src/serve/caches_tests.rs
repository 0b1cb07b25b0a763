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
        (&[("s3", "bucket=b")], "cache exporter \"s3\" is not supported yet"),
    ] {
        let error = exports(asked(all)).expect_err(why);
        assert!(error.failure().message.contains(why), "{error}");
    }
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
    assert!(told[3].contains("not supported yet"), "{told:?}");
    assert!(told[4].contains("unknown cache importer: tape"), "{told:?}");
}

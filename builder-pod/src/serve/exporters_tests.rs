use super::*;
use crate::client::{OutputFile, Tree};
use crate::options::Context;
use lapstrake_handoff::Compression;

#[derive(Debug)]
struct Nobody;

#[async_trait::async_trait]
impl Receiver for Nobody {
    async fn file(
        &self,
        _: usize,
        _: &BTreeMap<String, String>,
    ) -> Result<Option<Box<dyn OutputFile>>, BuildError> {
        Ok(None)
    }

    async fn tree(&self, _: usize, _: Tree) -> Result<(), BuildError> {
        Ok(())
    }

    async fn blob(
        &self,
        _: &str,
        _: &lapstrake_oci::Descriptor,
        _: &lapstrake_registry::BlobSource,
    ) -> Result<(), BuildError> {
        Ok(())
    }
}

fn attributes(text: &str) -> Attributes {
    let pair = |field: &str| {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        (key.to_owned(), value.to_owned())
    };
    text.split(';').filter(|field| !field.is_empty()).map(pair).collect()
}

fn one(kind: &str, text: &str) -> Result<Exporter, BuildError> {
    let mut all = read([(kind.to_owned(), attributes(text))], &Attributes::new())?;
    Ok(all.remove(0))
}

fn applied(exporter: &Exporter, platforms: &[&str]) -> Result<BuildOptions, BuildError> {
    let mut options = BuildOptions::new(Context::Inline(BTreeMap::new()));
    options.platforms = platforms.iter().map(|p| p.parse().unwrap()).collect();
    let nobody: Arc<dyn Receiver> = Arc::new(Nobody);
    exporter.apply(&mut options, Some("from.example/result"), Some(7), &nobody, &[])?;
    Ok(options)
}

#[test]
fn an_image_is_pushed_under_all_its_names() {
    let said = "name=r.example/a:1,r.example/b;push;registry.insecure=1;compression=zstd;compression-level=9;\
                force-compression;oci-mediatypes=false;rewrite-timestamp=true;source-date-epoch=5";
    let options = applied(&one("image", said).unwrap(), &[]).unwrap();
    let [Output::Push(image)] = &options.outputs[..] else { panic!("{:?}", options.outputs) };
    assert_eq!(image.names.len(), 2);
    assert_eq!(image.asked_name.as_deref(), Some("r.example/a:1,r.example/b"));
    assert_eq!((image.compression, image.level, image.force_compression), (Compression::Zstd, Some(9), true));
    assert!(image.docker_media_types && image.insecure && !image.keep_times);
    assert_eq!(options.source_date_epoch, Some(5));
}

#[test]
fn an_image_without_push_or_name_is_kept() {
    for said in ["name=r.example/a", "push=true", "push=false;name=r.example/a"] {
        let options = applied(&one("image", said).unwrap(), &[]).unwrap();
        assert!(matches!(&options.outputs[..], [Output::Image(image)] if image.keep_times), "{said}");
        assert_eq!(options.source_date_epoch, Some(7), "the result's own");
    }
}

#[test]
fn a_star_is_what_the_result_calls_itself() {
    let options = applied(&one("oci", "name=*;tar=false").unwrap(), &[]).unwrap();
    let [Output::Oci { image, tar: false, dest: Destination::Client(client) }] = &options.outputs[..] else {
        panic!("{:?}", options.outputs)
    };
    assert_eq!(image.names[0].to_string(), "from.example/result");
    assert_eq!(client.exporter, 0);
}

#[test]
fn files_are_as_they_are_asked_for() {
    let options =
        applied(&one("local", "mode=delete;platform-split=false;src=/etc;source-date-epoch=").unwrap(), &[])
            .unwrap();
    let [Output::Local(Directory::Client(_), files)] = &options.outputs[..] else {
        panic!("{:?}", options.outputs)
    };
    let expected =
        Files { platform_split: Some(false), source: Some("/etc".into()), delete: true, ..Files::default() };
    assert_eq!(files, &expected, "an empty time is none, whatever the result has");
}

#[test]
fn the_epoch_of_the_build_holds_where_the_exporter_has_none() {
    let frontend = Attributes::from([(EPOCH_ARG.to_owned(), "11".to_owned())]);
    let asked = [("tar", ""), ("tar", "source-date-epoch=12")].map(|(k, a)| (k.to_owned(), attributes(a)));
    let all = read(asked, &frontend).unwrap();
    assert_eq!(all.iter().map(|e| e.epoch.or(Some(1))).collect::<Vec<_>>(), [Some(11), Some(12)]);
    assert_eq!((all[1].id, all[1].kind), (1, Kind::Tar));
    let frontend = Attributes::from([(EPOCH_ARG.to_owned(), "context".to_owned())]);
    let all = read([("tar".to_owned(), Attributes::new())], &frontend).unwrap();
    assert_eq!(all[0].epoch, Epoch::OfResult, "what is no number is the frontend's to say");
}

#[test]
fn annotations_go_where_their_keys_say() {
    let said = "annotation.a=1;annotation-index.b=2;annotation-manifest[linux/arm64].c=3;\
                annotation-manifest-descriptor.d=4;annotations=5;annotation-.e=6";
    let exporter = one("image", said).unwrap();
    let options = applied(&exporter, &["linux/amd64", "linux/arm64"]).unwrap();
    let (amd, arm) = ("linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap());
    let keys = |place, p| options.annotations.of(place, p).into_keys().collect::<String>();
    assert_eq!(keys(Place::Manifest, &amd), "a");
    assert_eq!(keys(Place::Manifest, &arm), "ac");
    assert_eq!(keys(Place::Index, &amd), "b");
    assert_eq!(keys(Place::ManifestDescriptor, &amd), "d");
    assert_eq!(exporter.ignored().collect::<Vec<_>>(), ["annotation-.e", "annotations"]);
}

#[test]
fn what_buildkit_refuses_is_refused_in_its_words() {
    for (kind, said, why) in [
        ("floppy", "", "exporter \"floppy\" could not be found"),
        (
            "image",
            "push=maybe",
            "non-bool value specified for push: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        ),
        ("oci", "tar=2", "non-bool value specified for tar"),
        ("image", "compression=lzma", "unsupported compression type lzma"),
        ("image", "compression-level=high", "non-integer value high specified for compression-level"),
        ("image", "force-compression=x", "non-bool value x specified for force-compression"),
        ("image", "compression=estargz;oci-mediatypes=false", "\"compression=estargz\" conflicts"),
        ("image", "oci-artifact=true;oci-mediatypes=false", "\"oci-artifact=true\" conflicts"),
        ("image", "annotation-layer.a=b", "unrecognized annotation type layer"),
        ("local", "mode=move", "invalid local exporter mode \"move\""),
        ("local", "src=", "empty value for src"),
        ("tar", "platform-split=x", "non-bool value for platform-split: x"),
        (
            "tar",
            "source-date-epoch=now",
            "invalid source-date-epoch: strconv.ParseInt: parsing \"now\": invalid syntax",
        ),
    ] {
        let error = one(kind, said).expect_err(said);
        assert!(error.failure().message.contains(why), "{said}: {error}");
    }
}

#[test]
fn what_buildkit_refuses_once_it_has_the_result_is_refused_then() {
    for (kind, said, platforms, why) in [
        ("docker", "", &["linux/amd64", "linux/arm64"][..], "manifest lists"),
        ("image", "annotation-index.a=b", &["linux/amd64"], "index annotations not supported"),
        ("image", "annotation-manifest[linux/arm64].a=b", &["linux/amd64"], "no platform linux/arm64"),
        ("image", "annotation-index.a=b;oci-mediatypes=false", &["linux/amd64"], "cannot export annotations"),
        ("image", "name=r.example/a:1;push=true;push-by-digest=true", &[], "can't push tagged ref"),
        ("oci", "name=Bad Name", &[], "failed to parse Bad Name"),
    ] {
        let error = applied(&one(kind, said).unwrap(), platforms).expect_err(said);
        assert!(error.failure().message.contains(why), "{said}: {error}");
    }
}

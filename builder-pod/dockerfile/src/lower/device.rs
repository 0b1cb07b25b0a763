//! `RUN --device=…`.

use lapstrake_llb::pb;

use crate::ast::Word;
use crate::diagnostic::Diagnostic;
use crate::go;
use crate::lower::mount::{Field, fields};
use crate::lower::stage::Lower;
use crate::options::{AllowedDevices, Options};
use crate::suggest;

const KEYS: [&str; 2] = ["name", "required"];

/// Reads `[name=]VENDOR/CLASS[=DEVICE][,required[=BOOL]]`. As in BuildKit, a device that is not there is left out
/// unless it is required.
pub(super) fn device(word: &Word, options: &Options) -> Lower<pb::CdiDevice> {
    let (mut name, mut required) = (None::<Word>, false);
    for field in fields(word)? {
        match (field.key.as_str(), &field.value) {
            ("required", None) => required = true,
            ("required", Some(value)) => required = boolean(value)?,
            ("name", Some(value)) => match &name {
                Some(known) => {
                    let message = format!("device name already set to {}", known.text);
                    return Err(invalid(value, message));
                }
                None => name = Some(value.clone()),
            },
            // Also with a value: the name of a device may have an equals sign.
            _ if name.is_none() => name = Some(field.word.clone()),
            (_, None) => {
                let message = format!("invalid field '{}' must be a key=value pair", field.word.text);
                return Err(invalid(&field.word, message));
            }
            (_, Some(_)) => return Err(unexpected(&field)),
        }
    }
    let Some(name) = name.filter(|name| !name.text.is_empty()) else {
        let finding = invalid(word, "RUN --device names no device".to_owned());
        return Err(Box::new(finding.help("write --device=vendor.example/class=name, as CDI has it")));
    };
    if !allows(&options.allow_devices, &name.text) {
        let message = format!("device {} is not allowed", name.text);
        let help = format!("allow it for this build (--allow device={}), or leave --device out", name.text);
        return Err(Box::new(Diagnostic::error("device", name.span, message).help(help)));
    }
    Ok(pb::CdiDevice { name: name.text, optional: !required })
}

/// Whether a device is allowed, by its own name or that of its kind.
fn allows(allowed: &AllowedDevices, name: &str) -> bool {
    match allowed {
        AllowedDevices::All => true,
        AllowedDevices::Named(names) => {
            let kind = name.split_once('=').map_or(name, |(kind, _)| kind);
            names.contains(name) || names.contains(kind)
        }
    }
}

fn boolean(value: &Word) -> Lower<bool> {
    go::bool(&value.text).ok_or_else(|| invalid(value, format!("invalid value for required: {}", value.text)))
}

fn unexpected(field: &Field) -> Box<Diagnostic> {
    let message = format!("unexpected key '{}' in '{}'", field.key, field.word.text);
    let finding = invalid(&field.word, message);
    Box::new(finding.suggest(suggest::nearest(&field.key, KEYS)))
}

fn invalid(word: &Word, message: String) -> Box<Diagnostic> {
    Box::new(Diagnostic::error("invalid-device", word.span, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Span;

    fn read(text: &str, options: &Options) -> Result<(String, bool), String> {
        let word = Word { text: text.to_owned(), span: Span::default() };
        let device = device(&word, options).map_err(|finding| finding.message.clone())?;
        Ok((device.name, device.optional))
    }

    #[test]
    fn devices_read_as_buildkit_reads_them() {
        let options = Options::default();
        let cases = [
            ("vendor.com/gpu", "vendor.com/gpu", true),
            ("vendor.com/gpu=0", "vendor.com/gpu=0", true),
            ("vendor.com/gpu=*,required", "vendor.com/gpu=*", false),
            ("name=vendor.com/gpu=1,required=true", "vendor.com/gpu=1", false),
            ("required=false,name=class", "class", true),
        ];
        for (text, name, optional) in cases {
            assert_eq!(read(text, &options), Ok((name.to_owned(), optional)), "{text}");
        }
        for (text, why) in [
            ("a/b,nmae=c", "unexpected key 'nmae'"),
            ("a/b,c", "must be a key=value pair"),
            ("name=a,name=b", "already set to a"),
            ("a/b,required=maybe", "invalid value for required: maybe"),
            ("required", "names no device"),
        ] {
            let error = read(text, &options).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_device_is_allowed_by_its_name_or_its_kind() {
        let allowed = |names: &[&str]| Options {
            allow_devices: AllowedDevices::Named(names.iter().map(|n| (*n).to_owned()).collect()),
            ..Options::default()
        };
        assert!(read("a/b=1", &allowed(&["a/b"])).is_ok());
        assert!(read("a/b=1", &allowed(&["a/b=1"])).is_ok());
        for names in [&[][..], &["a/b=2"], &["a/c"]] {
            assert!(read("a/b=1", &allowed(names)).expect_err("refused").contains("is not allowed"));
        }
    }
}

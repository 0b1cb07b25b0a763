//! Annotations as `--annotation` has them: each says which documents it is for.

use std::collections::BTreeMap;

use lapstrake_oci::Platform;

/// A document or an entry that can have annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A platform's manifest.
    Manifest,
    /// The index over all platforms.
    Index,
    /// A manifest's entry in the index (or, of a single image, in a layout's index).
    ManifestDescriptor,
    /// The index' entry in a layout's index.
    IndexDescriptor,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Annotation {
    place: Place,
    platform: Option<Platform>,
    key: String,
    value: String,
}

/// All annotations of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Annotations(Vec<Annotation>);

impl Annotations {
    /// The same annotations for each place.
    pub(crate) fn everywhere(map: &BTreeMap<String, String>, places: &[Place]) -> Self {
        let mut all = Self::default();
        for (key, value) in map {
            for place in places {
                all.set(*place, None, key, value);
            }
        }
        all
    }

    fn set(&mut self, place: Place, platform: Option<Platform>, key: &str, value: &str) {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.0.push(Annotation { place, platform, key, value });
    }

    /// Adds those; they win over what is there.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Adds one: of a platform's document, or of all.
    pub(crate) fn put(&mut self, place: Place, platform: Option<Platform>, key: &str, value: &str) {
        self.set(place, platform, key, value);
    }

    /// Adds one where that place has none of this key for all platforms.
    pub(crate) fn default_to(&mut self, place: Place, key: &str, value: &str) {
        if !self.0.iter().any(|a| a.place == place && a.platform.is_none() && a.key == key) {
            // What is given for one platform comes later and wins.
            let (key, value) = (key.to_owned(), value.to_owned());
            self.0.insert(0, Annotation { place, platform: None, key, value });
        }
    }

    /// Adds what `[TYPE[,TYPE…][[PLATFORM]]:]KEY=VALUE` says; without a type it is for manifests.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), String> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| format!("--annotation {text}: it is not KEY=VALUE"))?;
        let (types, key) = match key.split_once(':') {
            Some((types, key)) => (types, key),
            None => ("manifest", key),
        };
        if key.is_empty() {
            return Err(format!("--annotation {text}: it has no key"));
        }
        for kind in types.split(',') {
            let (kind, platform) = match kind.strip_suffix(']').and_then(|kind| kind.split_once('[')) {
                None => (kind, None),
                Some((kind, platform)) => {
                    let platform = platform.parse().map_err(|e| format!("--annotation {text}: {e}"))?;
                    (kind, Some(platform))
                }
            };
            let place = match kind {
                "manifest" => Place::Manifest,
                "index" => Place::Index,
                "manifest-descriptor" => Place::ManifestDescriptor,
                "index-descriptor" => Place::IndexDescriptor,
                other => {
                    return Err(format!(
                        "--annotation {text}: {other} is not manifest, index, manifest-descriptor or \
                         index-descriptor"
                    ));
                }
            };
            if platform.is_some() && matches!(place, Place::Index | Place::IndexDescriptor) {
                return Err(format!("--annotation {text}: an index is for all platforms"));
            }
            self.set(place, platform, key, value);
        }
        Ok(())
    }

    /// Those of a place; of a platform's document also those for all platforms.
    pub(crate) fn of(&self, place: Place, platform: &Platform) -> BTreeMap<String, String> {
        let fits = |a: &&Annotation| {
            a.place == place && a.platform.as_ref().is_none_or(|p| p.to_string() == platform.to_string())
        };
        self.0.iter().filter(fits).map(|a| (a.key.clone(), a.value.clone())).collect()
    }

    /// Whether some are of an index or of its descriptor.
    pub(crate) fn has_index_or_its_descriptor(&self) -> bool {
        self.0.iter().any(|a| matches!(a.place, Place::Index | Place::IndexDescriptor))
    }

    /// Whether some are of what Docker's media types have no annotations for.
    pub(crate) fn needs_oci(&self) -> bool {
        self.0.iter().any(|a| a.place != Place::Manifest)
    }

    /// Those that make no sense without an index.
    pub(crate) fn has_index(&self) -> bool {
        self.0.iter().any(|a| a.place == Place::Index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn annotations_go_where_they_say() {
        let mut all = Annotations::default();
        for text in [
            "a=1",
            "index,manifest-descriptor:b=x=y",
            "manifest[linux/arm64/v8]:c=3",
            "index-descriptor:org.example/d=",
        ] {
            all.add(text).expect("valid");
        }
        let (amd, arm) = (platform("linux/amd64"), platform("linux/arm64"));
        let keys = |place, p: &Platform| all.of(place, p).into_keys().collect::<Vec<_>>().join(" ");
        assert_eq!(keys(Place::Manifest, &amd), "a");
        assert_eq!(keys(Place::Manifest, &arm), "a c");
        assert_eq!(all.of(Place::Index, &amd).get("b").map(String::as_str), Some("x=y"));
        assert_eq!(keys(Place::ManifestDescriptor, &amd), "b");
        assert_eq!(keys(Place::IndexDescriptor, &amd), "org.example/d");
        assert!(all.has_index());
    }

    #[test]
    fn what_is_given_wins_over_what_is_filled_in() {
        let mut all = Annotations::default();
        all.add("a=mine").expect("valid");
        all.default_to(Place::Manifest, "a", "filled");
        all.default_to(Place::Manifest, "b", "filled");
        let map = all.of(Place::Manifest, &platform("linux/amd64"));
        assert_eq!(map.get("a").map(String::as_str), Some("mine"));
        assert_eq!(map.get("b").map(String::as_str), Some("filled"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            ("a", "not KEY=VALUE"),
            ("layer:a=b", "layer is not"),
            ("index[linux/amd64]:a=b", "all platforms"),
            ("manifest[linux]:a=b", "platform"),
        ] {
            let error = Annotations::default().add(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

use std::collections::BTreeSet;

use lapstrake_oci::{Manifest, media_type};
use proptest::prelude::*;

use super::*;
use crate::{Alternatives, NodeId, Records, content_record, inline, record_digest};

fn layer(number: u8) -> Descriptor {
    Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&[number]), u64::from(number))
}

fn time(second: i64) -> Option<Timestamp> {
    Timestamp::from_second(second).ok()
}

/// A step of a made-up build: what it is, the steps that it is over, its layers.
type Step = (u8, Vec<usize>, Vec<u8>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        (any::<u8>(), prop::collection::vec(any::<usize>(), 0..3), prop::collection::vec(0..6u8, 0..4));
    prop::collection::vec(step, 1..24)
}

/// Puts steps into a draft; what each is in it.
fn draft_of(steps: &[Step]) -> (Draft, Vec<RecordId>) {
    let mut draft = Draft::new();
    let mut ids: Vec<RecordId> = Vec::new();
    for (what, inputs, layers) in steps {
        let inputs = inputs_of(inputs, ids.len()).map(|at| vec![(ids[at], Some(Digest::of(b"path")))]);
        let id = draft.record(record_digest(&Digest::of(&[*what]), 0), inputs).unwrap();
        draft.result(id, layers.iter().copied().map(layer).collect(), time(1));
        ids.push(id);
    }
    (draft, ids)
}

fn inputs_of(inputs: &[usize], known: usize) -> impl Iterator<Item = usize> + '_ {
    inputs.iter().filter(move |_| known > 0).map(move |input| input % known.max(1))
}

/// Looks each step up as a build would: by what it is and the steps that it is over.
fn found(records: &Records, steps: &[Step]) -> Vec<BTreeSet<NodeId>> {
    let mut found: Vec<BTreeSet<NodeId>> = Vec::new();
    for (what, inputs, _) in steps {
        let inputs: Vec<Alternatives> = inputs_of(inputs, found.len())
            .map(|at| vec![(found[at].clone(), Some(Digest::of(b"path")))])
            .collect();
        found.push(records.find(&record_digest(&Digest::of(&[*what]), 0), &inputs));
    }
    found
}

proptest! {
    #[test]
    fn what_was_written_is_found_again_with_its_layers(steps in steps()) {
        let (draft, ids) = draft_of(&steps);
        let (config, layers) = draft.finish();
        let records = Records::parse(&serde_json::to_vec(&config).unwrap(), &layers).unwrap();
        for (at, nodes) in found(&records, &steps).into_iter().enumerate() {
            prop_assert!(!nodes.is_empty(), "step {at} of {steps:?}");
            for origin in nodes.iter().map(|node| records.origin(*node).unwrap()) {
                let own = &draft.nodes[ids[at].0];
                prop_assert_eq!(origin.digest, own.digest);
                let links = |inputs: &[Links]| inputs.iter().map(|links| links.iter().map(|(_, s)| s.clone()).collect::<Vec<_>>()).collect::<Vec<_>>();
                let read: Vec<Vec<String>> =
                    origin.inputs.iter().map(|links| links.iter().map(|(_, s)| s.clone()).collect()).collect();
                prop_assert_eq!(read, links(&own.inputs));
            }
            let written = draft.nodes[ids[at].0].result.as_ref().map(|(layers, _)| layers.clone());
            let read = nodes.iter().flat_map(|node| records.results(*node)).map(|r| r.layers.clone()).next();
            prop_assert_eq!(read, written);
        }
    }

    #[test]
    fn a_step_that_was_not_written_is_not_found(steps in steps(), other in any::<u8>()) {
        let (draft, _) = draft_of(&steps);
        let (config, layers) = draft.finish();
        let records = Records::new(&config, &layers).unwrap();
        let inputs = vec![vec![(found(&records, &steps)[0].clone(), Some(Digest::of(b"another path")))]];
        prop_assert!(records.find(&record_digest(&Digest::of(&[other]), 0), &inputs).is_empty());
        prop_assert!(records.find(&record_digest(&Digest::of(&[other]), 1), &[]).is_empty());
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_of_making(steps in steps(), seed in any::<u64>()) {
        // Independent steps in another order.
        let roots: Vec<Step> = steps.iter().map(|(what, _, layers)| (*what, Vec::new(), layers.clone())).collect();
        let mut shuffled: Vec<Step> = Vec::new();
        let mut seen = BTreeSet::new();
        for step in &roots {
            if seen.insert(step.0) {
                shuffled.push(step.clone());
            }
        }
        let ordered = shuffled.clone();
        let turn = usize::try_from(seed % shuffled.len() as u64).unwrap();
        shuffled.rotate_left(turn);
        prop_assert_eq!(draft_of(&ordered).0.finish(), draft_of(&shuffled).0.finish());
    }

    #[test]
    fn no_text_makes_reading_panic_or_loop(text in "[\\[\\]{}\",:a-z0-9-]{0,80}", links in prop::collection::vec((any::<i8>(), any::<i8>()), 0..8)) {
        Records::parse(text.as_bytes(), &[]).ok();
        let records: Vec<_> = links.iter().map(|(link, layer)| serde_json::json!({
            "digest": Digest::of(b"x").to_string(),
            "inputs": [[{"link": link}]],
            "layers": [{"layer": layer, "createdAt": "2020-01-01T00:00:00Z"}],
        })).collect();
        let layers: Vec<_> = links.iter().map(|(_, parent)| serde_json::json!({
            "blob": Digest::of(b"y").to_string(), "parent": parent,
        })).collect();
        let config = serde_json::json!({"records": records, "layers": layers}).to_string();
        Records::parse(config.as_bytes(), &[]).ok();
    }

    #[test]
    fn an_inline_cache_is_found_as_far_as_the_image_goes(steps in steps(), image in prop::collection::btree_set(0..6u8, 1..6)) {
        let (draft, ids) = draft_of(&steps);
        let image: Vec<Descriptor> = image.into_iter().map(layer).collect();
        let digests: Vec<Digest> = image.iter().map(|layer| layer.digest).collect();
        let Some(text) = inline::write(&draft, &digests).unwrap() else { return Ok(()) };
        let diff_ids: Vec<Digest> = digests.iter().map(|digest| Digest::of(digest.as_bytes())).collect();
        let config = serde_json::json!({"rootfs": {"diff_ids": diff_ids}, "moby.buildkit.cache.v0": text}).to_string();
        let manifest = Manifest {
            schema_version: 2, media_type: None, artifact_type: None, subject: None,
            config: Descriptor::of(media_type::OCI_CONFIG, config.as_bytes()),
            layers: image.clone(), annotations: Default::default(),
        };
        let records = inline::read(config.as_bytes(), &manifest).unwrap().unwrap();
        for (at, nodes) in found(&records, &steps).into_iter().enumerate() {
            let wanted = draft.nodes[ids[at].0].result.as_ref().map(|(layers, _)| layers.iter().map(|l| l.digest).collect::<Vec<_>>());
            let inside = wanted.filter(|wanted| wanted.iter().all(|layer| digests.contains(layer)));
            let read = nodes.iter().flat_map(|node| records.results(*node)).next();
            let read = read.map(|r| r.layers.iter().map(|l| l.digest).collect::<Vec<_>>());
            prop_assert_eq!(read, inside);
        }
    }
}

#[test]
fn an_input_may_be_found_by_its_name_or_by_its_contents() {
    let mut draft = Draft::new();
    let (op, contents) = (Digest::of(b"op"), Digest::of(b"contents"));
    let named = draft.record(record_digest(&Digest::of(b"in"), 0), []).unwrap();
    let content = draft.record(content_record(&contents), []).unwrap();
    let links = vec![(named, Some(Digest::of(b"path"))), (content, None)];
    let id = draft.record(record_digest(&op, 0), [links]).unwrap();
    draft.result(id, vec![layer(1)], time(1));
    let (config, layers) = draft.finish();
    let records = Records::new(&config, &layers).unwrap();
    let by = |record: Digest, selector| {
        let from = records.find(&record, &[]);
        records.find(&record_digest(&op, 0), &[vec![(from, selector)]])
    };
    let by_name = by(record_digest(&Digest::of(b"in"), 0), Some(Digest::of(b"path")));
    assert_eq!(by_name.len(), 1);
    assert_eq!(by(content_record(&contents), None), by_name);
    assert!(by(record_digest(&Digest::of(b"in"), 0), None).is_empty());
}

#[test]
fn all_inputs_must_lead_to_the_same_record() {
    let mut draft = Draft::new();
    let root =
        |draft: &mut Draft, name: &[u8]| draft.record(record_digest(&Digest::of(name), 0), []).unwrap();
    let (a, b) = (root(&mut draft, b"a"), root(&mut draft, b"b"));
    let op = record_digest(&Digest::of(b"op"), 0);
    draft.record(op, [vec![(a, None)], vec![(b, None)]]).unwrap();
    draft.record(op, [vec![(b, None)], vec![(a, None)]]).unwrap();
    let (config, layers) = draft.finish();
    let records = Records::new(&config, &layers).unwrap();
    let at = |name: &[u8]| records.find(&record_digest(&Digest::of(name), 0), &[]);
    assert_eq!(records.find(&op, &[vec![(at(b"a"), None)], vec![(at(b"b"), None)]]).len(), 1);
    assert!(records.find(&op, &[vec![(at(b"a"), None)], vec![(at(b"a"), None)]]).is_empty());
    assert!(draft.record(op, [vec![], vec![(a, None)]]).is_none());
}

#[test]
fn a_record_that_leads_to_itself_and_a_position_beyond_the_end_are_damage() {
    let digest = Digest::of(b"x");
    for (records, says) in [
        (serde_json::json!([{"digest": digest, "inputs": [[{"link": 0}]]}]), "leads to itself"),
        (
            serde_json::json!([{"digest": digest, "inputs": [[{"link": 1}]]}, {"digest": digest, "inputs": [[{"link": 0}]]}]),
            "leads to itself",
        ),
        (serde_json::json!([{"digest": digest, "inputs": [[{"link": 7}]]}]), "number 7"),
        (serde_json::json!([{"digest": digest, "inputs": [[]]}]), "empty input"),
        (
            serde_json::json!([{"digest": digest, "layers": [{"layer": 3, "createdAt": "2020-01-01T00:00:00Z"}]}]),
            "number 3",
        ),
    ] {
        let config = serde_json::json!({"records": records}).to_string();
        let error = Records::parse(config.as_bytes(), &[]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_config_that_is_longer_than_buildkit_reads_is_read_and_one_beyond_the_bound_is_refused() {
    let mut draft = Draft::new();
    let name = |number: u32| record_digest(&Digest::of(&number.to_be_bytes()), 0);
    let mut below = draft.record(name(0), []).unwrap();
    for number in 1..8000 {
        below = draft.record(name(number), [vec![(below, None)]]).unwrap();
        draft.result(below, vec![layer(1)], time(1));
    }
    let (config, layers) = draft.finish();
    let mut text = serde_json::to_vec(&config).unwrap();
    assert!(text.len() as u64 > crate::limits::BUILDKIT_BYTES_MAX, "{} bytes", text.len());
    let records = Records::parse(&text, &layers).unwrap();
    let mut found = records.find(&name(0), &[]);
    for number in 1..8000 {
        found = records.find(&name(number), &[vec![(found, None)]]);
    }
    assert!(found.iter().any(|node| !records.results(*node).is_empty()), "the last of the chain");

    text.resize(usize::try_from(crate::limits::DOCUMENT_BYTES_MAX).unwrap() + 1, b' ');
    let error = Records::parse(&text, &layers).unwrap_err().to_string();
    assert!(error.contains("16777217") && error.contains("16777216"), "{error}");
}

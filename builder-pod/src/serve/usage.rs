//! What the store takes, as `du` and `prune` of BuildKit's clients see it.
//!
//! Holds: the sizes of all records add up to what the disk says, as long as there is one; nothing in use is removed. An empty store
//! has no records, as clients expect of one that they pruned.

use std::time::{Duration, SystemTime};

use lapstrake_api::control::{DiskUsageRequest, DiskUsageResponse, PruneRequest, UsageRecord};
use lapstrake_api::types::GcPolicy;
use lapstrake_daemon::GcRule;
use lapstrake_store::{ItemId, Kind, Limits, Rule, Store, UsageItem};
use tonic::Status;

use super::clock;
use super::filter::Filter;
use crate::engine::ABOUT;

/// The record that stands for what goes with the last of the others: the index, what is being made. It is not in use: clients wait
/// until nothing is.
const REST_ID: &str = "index-and-rest";
const INTERNAL: &str = "internal";

/// Control's DiskUsage. Blocking.
pub(crate) fn disk_usage(store: &Store, request: &DiskUsageRequest) -> Result<DiskUsageResponse, Status> {
    let filter = parse("diskusage", &request.filter)?;
    let unused_for = duration(request.age_limit)?;
    let usage = store.usage().map_err(failed)?;
    let now = SystemTime::now();
    let old_enough = |item: &UsageItem| now.duration_since(item.last_used).unwrap_or_default() >= unused_for;
    let items = usage
        .items
        .iter()
        .filter(|item| unused_for.is_zero() || old_enough(item))
        .map(|item| record(store, item));
    let rest = (unused_for.is_zero() && !usage.items.is_empty()).then(|| rest(usage.other_bytes));
    let record = items.chain(rest).filter(|record| matches(&filter, record)).collect();
    Ok(DiskUsageResponse { record })
}

/// Control's Prune: removes and tells what it removed. Blocking.
pub(crate) fn prune(store: &Store, request: &PruneRequest) -> Result<Vec<UsageRecord>, Status> {
    let bytes = |name: &str, number: i64| {
        u64::try_from(number)
            .map_err(|_| Status::invalid_argument(format!("{name} must not be negative: {number}")))
    };
    let rule = GcRule {
        all: request.all,
        filters: request.filter.clone(),
        keep: duration(request.keep_duration)?,
        reserved_bytes: bytes("reservedSpace", request.reserved_space)?,
        max_used_bytes: bytes("maxUsedSpace", request.max_used_space)?,
        min_free_bytes: bytes("minFreeSpace", request.min_free_space)?,
    };
    collect(store, &rule)
}

/// Applies the rules of the configuration one after the other; how many bytes went. Blocking.
pub(crate) fn collect_by(store: &Store, rules: &[GcRule]) -> Result<u64, Status> {
    let mut freed = 0;
    for rule in rules {
        let removed = collect(store, rule)?;
        freed += removed.iter().map(|record| u64::try_from(record.size).unwrap_or(0)).sum::<u64>();
    }
    Ok(freed)
}

fn collect(store: &Store, rule: &GcRule) -> Result<Vec<UsageRecord>, Status> {
    let filter = parse("prune", &rule.filters)?;
    let usage = store.usage().map_err(failed)?;
    let until_bytes = match budget(rule) {
        None => None,
        Some(limits) => {
            let free = store.disk().map_err(failed)?.free_bytes;
            let budget = limits.budget_bytes(usage.total_bytes(), free);
            if budget >= usage.total_bytes() {
                return Ok(Vec::new());
            }
            Some(budget)
        }
    };
    let ids = (!filter.is_any()).then(|| {
        let named = usage.items.iter().filter(|item| matches(&filter, &record(store, item)));
        named.map(|item| item.id.to_string()).collect()
    });
    // Here nothing is shared in BuildKit's sense (with an image outside the cache), and only the index is internal.
    let rule = Rule { kinds: None, ids, unused_for: rule.keep, shared: true, until_bytes };
    let collected = store.collect(&rule).map_err(failed)?;
    if !collected.removed.is_empty() {
        store.flush().map_err(failed)?;
    }
    Ok(collected.removed.iter().map(|item| record(store, item)).collect())
}

/// What a rule says of all, as limits of the store.
pub(crate) fn limits(rule: &GcRule) -> Limits {
    Limits {
        max_bytes: Some(rule.max_used_bytes).filter(|bytes| *bytes > 0),
        min_free_bytes: rule.min_free_bytes,
        reserved_bytes: rule.reserved_bytes,
    }
}

/// The rules as clients see them.
pub(crate) fn policies(rules: &[GcRule]) -> Vec<GcPolicy> {
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let policy = |rule: &GcRule| GcPolicy {
        all: rule.all,
        keep_duration: i64::try_from(rule.keep.as_nanos()).unwrap_or(i64::MAX),
        filters: rule.filters.clone(),
        reserved_space: number(rule.reserved_bytes),
        max_used_space: number(rule.max_used_bytes),
        min_free_space: number(rule.min_free_bytes),
    };
    rules.iter().map(policy).collect()
}

/// Where to stop; none: nowhere.
fn budget(rule: &GcRule) -> Option<Limits> {
    let (max, free, reserved) = (rule.max_used_bytes, rule.min_free_bytes, rule.reserved_bytes);
    if (max, free, reserved) == (0, 0, 0) {
        return None;
    }
    // A reserve alone is what is kept of all.
    let max_bytes = if max > 0 { Some(max) } else { (free == 0).then_some(reserved) };
    Some(Limits { max_bytes, min_free_bytes: free, reserved_bytes: reserved })
}

fn parse(of: &str, filters: &[String]) -> Result<Filter, Status> {
    Filter::parse(filters).map_err(|wrong| {
        Status::invalid_argument(format!(
            "failed to parse {of} filters {filters:?}: {wrong}: invalid argument"
        ))
    })
}

fn duration(nanos: i64) -> Result<Duration, Status> {
    let wrong = |_| Status::invalid_argument(format!("a duration must not be negative: {nanos}"));
    u64::try_from(nanos).map(Duration::from_nanos).map_err(wrong)
}

fn failed(error: lapstrake_store::Error) -> Status {
    Status::internal(format!("the store: {error}"))
}

fn matches(filter: &Filter, record: &UsageRecord) -> bool {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let flag = |set: bool| set.then(String::new);
    filter.matches(|path| match path.first().map(String::as_str)? {
        "id" => text(&record.id),
        "parents" => text(&record.parents.join(";")),
        "description" => text(&record.description),
        "inuse" => flag(record.in_use),
        "mutable" => flag(record.mutable),
        "immutable" => flag(!record.mutable),
        "type" => text(&record.record_type),
        "shared" => flag(record.shared),
        "private" => flag(!record.shared),
        _ => None,
    })
}

fn record(store: &Store, item: &UsageItem) -> UsageRecord {
    let mutable = matches!(item.kind, Kind::CacheMount | Kind::GitCheckout);
    let record_type = match item.kind {
        // BuildKit counts a layer's packed form with the layer.
        Kind::Blob | Kind::Layer => Kind::Layer.name(),
        kind => kind.name(),
    };
    let description = match (&item.id, item.description.as_str()) {
        (ItemId::Blob(_), "") => "packed layer or document of an image".to_owned(),
        (ItemId::Side { group, .. }, "") => format!("source of {group}"),
        (ItemId::Layer(id), description) => {
            let about = store.get(ABOUT, id.to_string().as_bytes());
            about.and_then(|text| String::from_utf8(text).ok()).unwrap_or_else(|| description.to_owned())
        }
        (_, description) => description.to_owned(),
    };
    let used = Some(clock::stamp(item.last_used));
    UsageRecord {
        id: item.id.to_string(),
        mutable,
        in_use: item.in_use,
        size: i64::try_from(item.bytes).unwrap_or(i64::MAX),
        created_at: used,
        last_used_at: used,
        usage_count: 1,
        description,
        record_type: record_type.to_owned(),
        shared: false,
        parents: item.parent.iter().map(ToString::to_string).collect(),
        ..UsageRecord::default()
    }
}

fn rest(bytes: u64) -> UsageRecord {
    UsageRecord {
        id: REST_ID.to_owned(),
        size: i64::try_from(bytes).unwrap_or(i64::MAX),
        created_at: Some(clock::now()),
        usage_count: 1,
        description: "the store's index, and what is being made".to_owned(),
        record_type: INTERNAL.to_owned(),
        ..UsageRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_store::{CommitOptions, measure};

    use super::*;

    /// A store with two layers, one on the other, and two blobs.
    fn store() -> (Store, tempfile::TempDir) {
        let (store, dir) = Store::temporary().expect("a store");
        let mut parent = None;
        for name in ["below", "above"] {
            let active = store.prepare(parent).expect("prepared");
            std::fs::write(active.upper().join(name), vec![7; 40_000]).expect("written");
            parent = Some(store.commit(active, CommitOptions::default()).expect("committed"));
        }
        store.put_blob(&[1; 9000]).expect("put");
        store.put_blob(b"small").expect("put");
        store.flush().expect("flushed");
        (store, dir)
    }

    fn filtered(store: &Store, filters: &[&str]) -> Vec<UsageRecord> {
        let filter = filters.iter().map(|f| (*f).to_owned()).collect();
        disk_usage(store, &DiskUsageRequest { filter, age_limit: 0 }).expect("valid").record
    }

    fn ids(records: &[UsageRecord]) -> Vec<&str> {
        records.iter().map(|record| record.id.as_str()).collect()
    }

    #[test]
    fn records_add_up_to_what_the_disk_says() {
        let (store, _dir) = store();
        let all = filtered(&store, &[]);
        let sum: i64 = all.iter().map(|record| record.size).sum();
        assert_eq!(u64::try_from(sum).ok(), Some(measure(store.root())));
        assert_eq!(all.len(), 5);
        let child = all.iter().find(|record| !record.parents.is_empty()).expect("a layer on another");
        assert!(ids(&all).contains(&child.parents[0].as_str()));
    }

    #[test]
    fn filters_choose_records_by_their_fields() {
        let (store, _dir) = store();
        assert_eq!(filtered(&store, &["type==regular"]).len(), 4);
        assert_eq!(filtered(&store, &["inuse"]), [], "clients wait for that");
        assert_eq!(filtered(&store, &["parents"]).len(), 1);
        assert_eq!(filtered(&store, &["id~=^sha256:", "type==internal"]).len(), 3);
        assert_eq!(filtered(&store, &["mutable"]).len(), 0);
        let request = DiskUsageRequest { filter: vec!["type=x".to_owned()], age_limit: 0 };
        let wrong = disk_usage(&store, &request).expect_err("no filter");
        assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
        let request = DiskUsageRequest { filter: Vec::new(), age_limit: 3_600_000_000_000 };
        assert_eq!(disk_usage(&store, &request).expect("valid").record, [], "all was used just now");
    }

    #[test]
    fn pruning_removes_what_is_named_and_tells_each() {
        let (store, _dir) = store();
        let before = filtered(&store, &["id~=^sha256:"]);
        let filter = vec!["id~=^sha256:".to_owned()];
        let removed = prune(&store, &PruneRequest { filter, ..PruneRequest::default() }).expect("valid");
        let sorted = |mut records: Vec<UsageRecord>| {
            records.sort_by(|a, b| a.id.cmp(&b.id));
            records.into_iter().map(|record| (record.id, record.size)).collect::<Vec<_>>()
        };
        assert_eq!(sorted(removed), sorted(before));
        assert_eq!(filtered(&store, &["type==regular"]).len(), 2);
        let all = prune(&store, &PruneRequest { all: true, ..PruneRequest::default() }).expect("valid");
        assert_eq!(all.len(), 2);
        assert_eq!(filtered(&store, &[]), []);
    }

    #[test]
    fn pruning_stops_where_it_is_told_to() {
        let (store, _dir) = store();
        let hour = PruneRequest { keep_duration: 3_600_000_000_000, ..PruneRequest::default() };
        assert_eq!(prune(&store, &hour).expect("valid"), []);
        let much = PruneRequest { max_used_space: i64::MAX, ..PruneRequest::default() };
        assert_eq!(prune(&store, &much).expect("valid"), []);
        let reserved = PruneRequest { reserved_space: i64::MAX, ..PruneRequest::default() };
        assert_eq!(prune(&store, &reserved).expect("valid"), []);
        let free = PruneRequest { min_free_space: 1, ..PruneRequest::default() };
        assert_eq!(prune(&store, &free).expect("valid"), [], "that much is free");
        let wrong = PruneRequest { max_used_space: -1, ..PruneRequest::default() };
        assert_eq!(prune(&store, &wrong).expect_err("negative").code(), tonic::Code::InvalidArgument);
        let little = PruneRequest { max_used_space: 1, ..PruneRequest::default() };
        assert_eq!(prune(&store, &little).expect("valid").len(), 4);
    }

    #[test]
    fn rules_of_the_configuration_are_applied_in_order() {
        let (store, _dir) = store();
        let hour = Duration::from_secs(3600);
        let keep = GcRule { keep: hour, max_used_bytes: 1, ..GcRule::default() };
        assert_eq!(collect_by(&store, std::slice::from_ref(&keep)).expect("valid"), 0);
        let layers =
            GcRule { filters: vec!["id~=^sha256:".to_owned()], max_used_bytes: 1, ..GcRule::default() };
        assert!(collect_by(&store, &[keep, layers]).expect("valid") > 9000);
        assert_eq!(filtered(&store, &["type==regular"]).len(), 2);
    }
}

//! `lapstrake-builder du` and `lapstrake-builder prune`: what the state directory takes, and less of it.

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Parser;
use lapstrake_handoff::Reason;
use lapstrake_store::{ItemId, Kind, Limits, Rule, Store, Usage, UsageItem};
use serde_json::json;

use super::size::{ago, parse as size, parse_duration};
use crate::error::BuildError;
use crate::progress::bytes;

/// Flags of `du`, named as `docker buildx du` names them.
#[derive(Debug, Parser)]
pub(crate) struct DuArgs {
    /// Only what matches: `type=exec.cachemount`, `until=24h` (not used for that long), `id=…`, `shared=true`.
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
    /// All that is known of each entry.
    #[arg(long)]
    verbose: bool,
    /// Directory of blobs, snapshots and cache.
    #[arg(long, value_name = "STATE", env = "LAPSTRAKE_ROOT", default_value = super::build::ROOT_DEFAULT)]
    root: PathBuf,
}

/// Flags of `prune`, named as `docker buildx prune` names them.
#[derive(Debug, Parser)]
pub(crate) struct PruneArgs {
    /// Also what several others lie on: shared layers.
    #[arg(short, long)]
    all: bool,
    /// Only what matches: `until=24h` (not used for that long), `type=exec.cachemount`, `id=…`.
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
    /// Stop when no more than this is taken.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_used_space: Option<u64>,
    /// Stop when this much of the disk is free.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    min_free_space: Option<u64>,
    /// Keep at least this much.
    #[arg(long, alias = "keep-storage", value_name = "SIZE", value_parser = size)]
    reserved_space: Option<u64>,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
    /// Name what was removed.
    #[arg(long)]
    verbose: bool,
    /// Directory of blobs, snapshots and cache.
    #[arg(long, value_name = "STATE", env = "LAPSTRAKE_ROOT", default_value = super::build::ROOT_DEFAULT)]
    root: PathBuf,
}

/// What a listing is restricted to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    kinds: Option<Vec<Kind>>,
    ids: Option<Vec<String>>,
    unused_for: Duration,
    shared: Option<bool>,
}

fn usage_error(message: String) -> BuildError {
    BuildError::new(Reason::RequestInvalid, message)
}

impl Filter {
    fn parse(texts: &[String]) -> Result<Self, String> {
        let mut filter = Self::default();
        for text in texts.iter().flat_map(|t| t.split(',')) {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                format!("--filter {text}: give a name and a value, such as until=24h or type=exec.cachemount")
            })?;
            let (name, not) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
            match (name, not) {
                ("until" | "unused-for", false) => filter.unused_for = parse_duration(value)?,
                ("type", _) => filter.add_kinds(value, not)?,
                ("id", false) => {
                    // The listing marks ids that something lies on.
                    let id = value.trim_end_matches('*').to_owned();
                    filter.ids.get_or_insert_default().push(id);
                }
                ("shared", false) => {
                    let shared = value.parse().map_err(|_| format!("--filter {text}: give true or false"))?;
                    filter.shared = Some(shared);
                }
                _ => {
                    return Err(format!("--filter {text}: known are until, type, type!, id and shared"));
                }
            }
        }
        Ok(filter)
    }

    fn add_kinds(&mut self, value: &str, not: bool) -> Result<(), String> {
        if !Kind::ALL.iter().any(|kind| kind.name() == value) {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            return Err(format!("--filter type={value}: known types are {}", known.join(", ")));
        }
        if not {
            let kinds = self.kinds.get_or_insert_with(|| Kind::ALL.to_vec());
            kinds.retain(|kind| kind.name() != value);
        } else {
            let kind = Kind::ALL.iter().find(|kind| kind.name() == value);
            self.kinds.get_or_insert_default().extend(kind);
        }
        Ok(())
    }

    fn takes(&self, item: &UsageItem, now: SystemTime) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&item.kind))
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&item.id.to_string()))
            && self.shared.is_none_or(|shared| shared == item.shared)
            && now.duration_since(item.last_used).unwrap_or_default() >= self.unused_for
    }
}

/// Shows what the state directory takes.
pub(crate) fn du(args: &DuArgs, out: &mut dyn Write) -> Result<(), BuildError> {
    let filter = Filter::parse(&args.filters).map_err(usage_error)?;
    let store = open(&args.root)?;
    let now = SystemTime::now();
    let all = store.usage()?;
    let shown = Usage {
        items: all.items.iter().filter(|item| filter.takes(item, now)).cloned().collect(),
        other_bytes: all.other_bytes,
    };
    let text = if args.json { json_text(&shown, &all) } else { table(&shown, &all, args.verbose, now) };
    out.write_all(text.as_bytes()).ok(); // a closed pipe wants nothing
    Ok(())
}

/// Removes what nobody uses and says how much that was.
pub(crate) fn prune(args: &PruneArgs, out: &mut dyn Write) -> Result<(), BuildError> {
    let rule = rule(args).map_err(usage_error)?;
    let store = open(&args.root)?;
    if !args.force && !confirmed(args.all) {
        return Ok(());
    }
    let until_bytes = match (args.max_used_space, args.min_free_space, args.reserved_space) {
        (None, None, None) => None,
        (max_bytes, free, reserved) => {
            let (min_free_bytes, reserved_bytes) = (free.unwrap_or(0), reserved.unwrap_or(0));
            // A reserve alone is what is kept of all.
            let max_bytes = max_bytes.or(free.is_none().then_some(reserved_bytes));
            let limits = Limits { max_bytes, min_free_bytes, reserved_bytes };
            Some(limits.budget_bytes(store.usage()?.total_bytes(), store.disk()?.free_bytes))
        }
    };
    let done = store.collect(&Rule { until_bytes, ..rule })?;
    store.flush()?;
    let text = if args.json {
        let removed: Vec<_> = done.removed.iter().map(json_item).collect();
        let total = store.usage()?.total_bytes();
        format!("{}\n", json!({"removed": removed, "freedBytes": done.freed_bytes, "totalBytes": total}))
    } else {
        let mut text = String::new();
        if args.verbose {
            for item in &done.removed {
                text.push_str(&format!("{}\t{}\t{}\n", item.id, item.kind, bytes(item.bytes)));
            }
        }
        format!("{text}Total:\t{}\n", bytes(done.freed_bytes))
    };
    out.write_all(text.as_bytes()).ok(); // as above
    Ok(())
}

fn rule(args: &PruneArgs) -> Result<Rule, String> {
    let filter = Filter::parse(&args.filters)?;
    Ok(Rule {
        kinds: filter.kinds,
        // Who names it means it.
        shared: args.all || filter.shared == Some(true) || filter.ids.is_some(),
        ids: filter.ids,
        unused_for: filter.unused_for,
        until_bytes: None,
    })
}

/// Asks as `docker` does; whoever is not there to answer has not agreed.
fn confirmed(all: bool) -> bool {
    let what = if all { "all build cache" } else { "build cache, except shared layers," };
    let ask = format!("WARNING! This will remove {what} that is not in use. Continue? [y/N] ");
    let mut err = std::io::stderr();
    err.write_all(ask.as_bytes()).and_then(|()| err.flush()).ok(); // then nobody answers
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer).is_ok();
    let yes = read && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes");
    if !yes && !std::io::stdin().is_terminal() {
        writeln!(err, "nothing was removed: answer y, or give --force").ok(); // as above
    }
    yes
}

/// Opens the state directory, but makes none.
fn open(root: &std::path::Path) -> Result<Store, BuildError> {
    if !root.is_dir() {
        return Err(usage_error(format!("--root {}: there is no such directory", root.display())));
    }
    Ok(Store::open(root)?)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn json_item(item: &UsageItem) -> serde_json::Value {
    json!({
        "id": item.id.to_string(),
        "type": item.kind.name(),
        "sizeBytes": item.bytes,
        "lastUsedAt": crate::time::rfc3339(i64::try_from(seconds(item.last_used)).unwrap_or(0)),
        "inUse": item.in_use,
        "shared": item.shared,
        "reclaimable": !item.in_use,
        "parent": item.parent.map(|id| id.to_string()),
        "description": item.description,
    })
}

fn json_text(shown: &Usage, all: &Usage) -> String {
    let items: Vec<_> = shown.items.iter().map(json_item).collect();
    let value = json!({
        "items": items,
        "otherBytes": all.other_bytes,
        "sharedBytes": sum(shown, |item| item.shared),
        "privateBytes": sum(shown, |item| !item.shared),
        "reclaimableBytes": shown.reclaimable_bytes(),
        "totalBytes": all.total_bytes(),
    });
    format!("{value}\n")
}

fn sum(usage: &Usage, which: impl Fn(&UsageItem) -> bool) -> u64 {
    usage.items.iter().filter(|item| which(item)).map(|item| item.bytes).sum()
}

/// A digest is shown short, as `docker` shows one.
fn shown_id(id: &ItemId) -> String {
    match id {
        ItemId::Blob(digest) => format!("sha256:{}", digest.short()),
        id => id.to_string(),
    }
}

fn table(shown: &Usage, all: &Usage, verbose: bool, now: SystemTime) -> String {
    let mut items: Vec<&UsageItem> = shown.items.iter().collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.bytes));
    let mut text = String::new();
    if verbose {
        for item in items {
            let parent = item.parent.map(|id| format!("Parent:\t\t{id}\n")).unwrap_or_default();
            let about = match item.description.as_str() {
                "" => String::new(),
                about => format!("Description:\t{about}\n"),
            };
            let (used, size) =
                (ago(now.duration_since(item.last_used).unwrap_or_default()), bytes(item.bytes));
            text.push_str(&format!(
                "ID:\t\t{}\n{parent}Reclaimable:\t{}\nShared:\t\t{}\nSize:\t\t{size}\n{about}Last used:\t{used}\nType:\t\t{}\n\n",
                item.id, !item.in_use, item.shared, item.kind
            ));
        }
    } else {
        text.push_str(&format!(
            "{:<44} {:<19} {:<11} {:>10}  LAST ACCESSED\n",
            "ID", "TYPE", "RECLAIMABLE", "SIZE"
        ));
        for item in items {
            let star = if item.shared { "*" } else { "" };
            let id = format!("{}{star}", shown_id(&item.id));
            let used = ago(now.duration_since(item.last_used).unwrap_or_default());
            text.push_str(&format!(
                "{id:<44} {:<19} {:<11} {:>10}  {used}\n",
                item.kind,
                !item.in_use,
                bytes(item.bytes)
            ));
        }
    }
    for (name, size) in [
        ("Shared:", sum(shown, |item| item.shared)),
        ("Private:", sum(shown, |item| !item.shared)),
        ("Index and rest:", all.other_bytes),
        ("Reclaimable:", shown.reclaimable_bytes()),
        ("Total:", all.total_bytes()),
    ] {
        text.push_str(&format!("{name:<16}{}\n", bytes(size)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(texts: &[&str]) -> Result<Filter, String> {
        Filter::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn filters_are_those_of_buildx() {
        let parsed = filter(&["until=24h,type=exec.cachemount", "type=regular"]).expect("valid");
        assert_eq!(parsed.unused_for, Duration::from_secs(86_400));
        assert_eq!(parsed.kinds, Some(vec![Kind::CacheMount, Kind::Layer]));
        let parsed = filter(&["type!=exec.cachemount"]).expect("valid");
        assert_eq!(parsed.kinds.map(|kinds| kinds.contains(&Kind::CacheMount)), Some(false));
        for wrong in ["until", "until=soon", "type=fish", "moon=full", "shared=maybe"] {
            assert!(filter(&[wrong]).is_err(), "{wrong}");
        }
    }
}

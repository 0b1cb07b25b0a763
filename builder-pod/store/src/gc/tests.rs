use proptest::prelude::*;

use super::*;

fn id(n: usize) -> SnapshotId {
    let digit = |n: usize| char::from(b"0123456789abcdefghjkmnpqrstvwxyz"[n % 32]);
    format!("00000000{}{}", digit(n / 32), digit(n)).parse().unwrap()
}

fn at(hours: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3600)
}

fn layer(n: usize, parent: Option<usize>, bytes: u64, hours: u64) -> UsageItem {
    UsageItem {
        id: ItemId::Layer(id(n)),
        kind: Kind::Layer,
        bytes,
        last_used: at(hours),
        in_use: false,
        shared: false,
        parent: parent.map(id),
        description: String::new(),
    }
}

fn mount(n: usize, bytes: u64, hours: u64) -> UsageItem {
    UsageItem { id: ItemId::CacheMount(id(n)), kind: Kind::CacheMount, ..layer(n, None, bytes, hours) }
}

const NOW: u64 = 10_000;

fn chosen(items: &[UsageItem], rule: &Rule) -> Vec<usize> {
    let total = items.iter().map(|item| item.bytes).sum();
    choose(items, rule, total, at(NOW))
}

#[test]
fn what_was_used_longest_ago_goes_first_and_no_more_than_needed() {
    let items = [layer(0, None, 10, 9990), layer(1, None, 10, 9980), layer(2, None, 10, 9995)];
    assert_eq!(chosen(&items, &Rule::down_to(15)), [1, 0]);
    assert_eq!(chosen(&items, &Rule::down_to(20)), [1]);
    assert_eq!(chosen(&items, &Rule::down_to(30)), [0usize; 0]);
}

#[test]
fn a_cache_mount_goes_before_a_layer_unless_that_is_two_days_older() {
    let items = [layer(0, None, 10, 9900), mount(1, 10, 9940), mount(2, 10, 9960)];
    assert_eq!(chosen(&items, &Rule::down_to(0)), [1, 0, 2]);
}

#[test]
fn what_lies_on_another_goes_before_it_and_saves_it_while_it_is_in_use() {
    let mut items = [layer(0, None, 10, 1), layer(1, Some(0), 10, 9000), layer(2, Some(1), 10, 9999)];
    assert_eq!(chosen(&items, &Rule::down_to(0)), [2, 1, 0]);
    items[2].in_use = true;
    assert_eq!(chosen(&items, &Rule::down_to(0)), [0usize; 0]);
}

#[test]
fn age_kind_and_sharing_restrict_a_rule() {
    let mut items = [layer(0, None, 10, NOW - 1), mount(1, 10, NOW - 50), layer(2, None, 10, NOW - 50)];
    items[2].shared = true;
    let rule = Rule { unused_for: Duration::from_secs(48 * 3600), until_bytes: None, ..Rule::down_to(0) };
    assert_eq!(chosen(&items, &rule), [1, 2]);
    assert_eq!(chosen(&items, &Rule { shared: false, ..rule.clone() }), [1]);
    assert_eq!(chosen(&items, &Rule { kinds: Some(vec![Kind::Layer]), ..rule }), [2]);
}

#[test]
fn the_budget_is_buildkits() {
    let limits = Limits { max_bytes: Some(100), min_free_bytes: 20, reserved_bytes: 10 };
    assert_eq!(limits.budget_bytes(50, 1000), 100);
    assert_eq!(limits.budget_bytes(50, 5), 35, "15 bytes less, so that 20 are free");
    assert_eq!(limits.budget_bytes(20, 0), 10, "the reserve stays");
    assert_eq!(Limits::default().budget_bytes(50, 0), u64::MAX);
}

prop_compose! {
    /// Layers on each other, mounts among them.
    fn some_items()(seeds in prop::collection::vec((any::<u16>(), 0u64..50, 0u64..NOW, 0u8..8), 0..40)) -> Vec<UsageItem> {
        let make = |(n, (seed, bytes, hours, kind)): (usize, &(u16, u64, u64, u8))| {
            let parent = (n > 0 && *kind > 2).then(|| usize::from(*seed) % n);
            let mut item = match kind {
                0 => mount(n, *bytes, *hours),
                _ => layer(n, parent, *bytes, *hours),
            };
            item.in_use = *kind == 7;
            item
        };
        seeds.iter().enumerate().map(make).collect()
    }
}

proptest! {
    #[test]
    fn nothing_needed_goes_and_the_goal_is_reached_where_it_can_be(items in some_items(), until in 0u64..1200) {
        let gone = chosen(&items, &Rule::down_to(until));
        let kept: Vec<&UsageItem> = (0..items.len()).filter(|n| !gone.contains(n)).map(|n| &items[n]).collect();
        for n in &gone {
            prop_assert!(!items[*n].in_use);
            if let ItemId::Layer(id) = items[*n].id {
                prop_assert!(kept.iter().all(|item| item.parent != Some(id)), "something kept lies on it");
            }
        }
        for (at, n) in gone.iter().enumerate() {
            let later = &gone[at + 1..];
            prop_assert!(later.iter().all(|l| items[*l].parent.map(ItemId::Layer) != Some(items[*n].id.clone())));
        }
        let left: u64 = kept.iter().map(|item| item.bytes).sum();
        let needed = |item: &UsageItem| {
            item.in_use || kept.iter().any(|k| k.parent.map(ItemId::Layer) == Some(item.id.clone()))
        };
        prop_assert!(left <= until || kept.iter().all(|item| needed(item)));
        // Without the last one it would not have been enough.
        if let Some(last) = gone.last() {
            prop_assert!(left + items[*last].bytes > until);
        }
    }
}

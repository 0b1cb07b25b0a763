use proptest::prelude::*;

use super::*;

fn step(id: StepId, event: StepEvent) -> ProgressLine {
    ProgressLine::Step { id, event }
}

fn secs(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn lines_of_buildkit_are_read() {
    let cases = [
        ("#5 [build 2/4] RUN make", step(5, StepEvent::started("[build 2/4] RUN make"))),
        ("#12 [2/2] RUN sleep 0.3s", step(12, StepEvent::started("[2/2] RUN sleep 0.3s"))),
        ("#5 0.123 cc -c main.c", step(5, StepEvent::log(secs(123), "cc -c main.c"))),
        ("#5 71.04 ", step(5, StepEvent::log(secs(71_040), ""))),
        ("#5 DONE 1.2s", step(5, StepEvent::Done { took: secs(1200) })),
        ("#5 CACHED", step(5, StepEvent::Cached)),
        ("#5 CANCELED", step(5, StepEvent::Canceled)),
        (
            "#5 ERROR: process \"/bin/sh -c false\" did not complete",
            step(5, StepEvent::failed("process \"/bin/sh -c false\" did not complete")),
        ),
        ("#9 exporting layers 0.3s done", step(9, StepEvent::part("exporting layers", secs(300), true))),
        (
            "#4 sha256:ab 3.15MB / 3.42MB 0.2s",
            step(4, StepEvent::part("sha256:ab 3.15MB / 3.42MB", secs(200), false)),
        ),
        ("#9 exporting to image", step(9, StepEvent::started("exporting to image"))),
        ("", ProgressLine::Text(String::new())),
        ("#x y", ProgressLine::Text("#x y".to_owned())),
        ("# 5", ProgressLine::Text("# 5".to_owned())),
        ("plain", ProgressLine::Text("plain".to_owned())),
    ];
    for (text, line) in cases {
        assert_eq!(ProgressLine::parse(text), line, "{text}");
    }
}

#[test]
fn a_name_never_reads_as_an_end() {
    for name in ["CACHED", "DONE 0.1s", "0.1 x", "ERROR: no", "push 0.1s", ""] {
        let line = step(1, StepEvent::started(name)).to_string();
        assert!(
            matches!(ProgressLine::parse(&line), ProgressLine::Step { event: StepEvent::Started { .. }, .. }),
            "{line}"
        );
    }
}

#[test]
fn output_of_many_lines_keeps_every_line_under_its_number() {
    let mut writer = Writer::new(Vec::new());
    writer.event(1, &StepEvent::started("[1/1] RUN x")).unwrap();
    writer.output(1, secs(5), "a\n\nb\r\n").unwrap();
    writer.event(2, &StepEvent::started("[2/2] RUN y")).unwrap();
    writer.event(1, &StepEvent::Done { took: secs(40) }).unwrap();
    let text = String::from_utf8(writer.into_inner()).unwrap();
    assert_eq!(text, "#1 [1/1] RUN x\n#1 0.005 a\n#1 0.005 \n#1 0.005 b\n\n#2 [2/2] RUN y\n#1 DONE 0.0s\n");
}

#[test]
fn output_without_an_end_is_cut_into_lines_and_loses_nothing() {
    let text = "ä".repeat(PROGRESS_TEXT_BYTES_MAX);
    let mut writer = Writer::new(Vec::new());
    writer.output(3, secs(0), &text).unwrap();
    let written = String::from_utf8(writer.into_inner()).unwrap();
    let read: String = written
        .lines()
        .map(|line| match ProgressLine::parse(line) {
            ProgressLine::Step { event: StepEvent::Log { text, .. }, .. } => text,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read, text);
    assert!(written.lines().count() > 1);
}

#[test]
fn the_tracker_counts_each_step_once() {
    let log = "#1 [a 1/2] FROM x\n#1 CACHED\n\n#2 [a 2/2] RUN y\n#2 0.1 hi\n#1 CACHED\n#3 [b 1/1] RUN z\n#2 [a 2/2] RUN y\n";
    let mut tracker = Tracker::default();
    for line in log.lines() {
        tracker.see(&ProgressLine::parse(line));
    }
    assert_eq!((tracker.steps, tracker.cached, tracker.ended), (3, 1, 1));
    assert_eq!(tracker.current(), Some("[b 1/1] RUN z"));
}

/// Durations as the grammar keeps them.
fn tenths() -> impl Strategy<Value = Duration> {
    (0_u64..1_000_000).prop_map(|n| secs(n * 100))
}

fn event() -> impl Strategy<Value = StepEvent> {
    let text = "\\PC{0,60}|(DONE|CACHED|CANCELED|ERROR:|[0-9]\\.[0-9]s?)( \\PC{0,9})?";
    prop_oneof![
        text.prop_map(|name| StepEvent::started(&name)),
        ((0_u64..10_000_000).prop_map(secs), "(?s).{0,60}").prop_map(|(at, text)| StepEvent::log(at, &text)),
        (text, tenths(), any::<bool>()).prop_map(|(text, took, done)| StepEvent::part(&text, took, done)),
        tenths().prop_map(|took| StepEvent::Done { took }),
        Just(StepEvent::Cached),
        "(?s).{0,60}".prop_map(|message| StepEvent::failed(&message)),
        Just(StepEvent::Canceled),
    ]
}

proptest! {
    #[test]
    fn a_written_line_reads_back_as_itself(id in 1_u32.., event in event()) {
        let line = step(id, event);
        let text = line.to_string();
        prop_assert!(!text.contains('\n'), "one line: {text:?}");
        prop_assert_eq!(ProgressLine::parse(&text), line, "{}", text);
    }

    #[test]
    fn reading_never_fails_and_keeps_every_character(text in "\\PC{0,80}") {
        let line = ProgressLine::parse(&text);
        if let ProgressLine::Text(kept) = line {
            prop_assert_eq!(kept, text);
        }
    }
}

//! What runs side by side, what waits, and what never runs.

use crate::lab::{Fate, Lab};

const TWO_STAGES: &str = "\
FROM @base AS a
RUN sleep 1; echo one >/out
FROM @base AS b
RUN sleep 1; echo two >/out
FROM @base AS unused
RUN echo never
FROM scratch
COPY --from=a /out /a
COPY --from=b /out /b
";

#[test]
fn independent_stages_run_side_by_side_and_unused_ones_never() {
    let lab = Lab::new();
    let ran = lab.build(lab.dockerfile(TWO_STAGES)).ok();
    let (a, b) = ("echo one", "echo two");
    let last_start = ran.position(a, "started").max(ran.position(b, "started"));
    let first_end = ran.position(a, "done").min(ran.position(b, "done"));
    assert!(last_start < first_end, "{}", ran.stderr());
    assert_eq!(ran.fate("never"), Fate::Absent);
}

#[test]
fn a_stage_that_is_copied_onto_runs_beside_the_one_that_is_copied_from() {
    let lab = Lab::new();
    let text = "FROM @base AS runtime\nRUN sleep 1; echo onto >/out\nFROM @base AS build\nRUN sleep 1; echo from >/out\n\
                FROM runtime\nCOPY --from=build /out /build\nRUN cat /build\n";
    let dir = lab.dockerfile(text);
    for anew in [&[][..], &["--no-cache"]] {
        let mut build = lab.build(&dir);
        build.0.args(anew);
        let ran = build.ok();
        let (onto, from) = ("echo onto", "echo from");
        let last_start = ran.position(onto, "started").max(ran.position(from, "started"));
        let first_end = ran.position(onto, "done").min(ran.position(from, "done"));
        assert!(last_start < first_end, "{anew:?}: {}", ran.stderr());
    }
}

#[test]
fn stages_see_each_other_alive_while_both_run() {
    // Both must be running at once, or each would wait for the other in vain.
    let lab = Lab::new();
    let meet = "i=0; until wget -q -O- http://127.0.0.1:@port 2>/dev/null | grep -q hello; \
                do i=$((i+1)); [ $i -lt 600 ] || exit 1; usleep 50000; done";
    let port = free_port();
    let text = format!(
        "FROM @base AS server\nRUN printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p {port} >/dev/null; touch /out\n\
         FROM @base AS client\nRUN {}; touch /out\n\
         FROM scratch\nCOPY --from=server /out /a\nCOPY --from=client /out /b\n",
        meet.replace("@port", &port.to_string())
    );
    lab.build(lab.dockerfile(&text)).ok();
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_same_instruction_in_two_stages_runs_once() {
    let lab = Lab::new();
    let text = "FROM @base AS a\nRUN echo same >/out\nFROM @base AS b\nRUN echo same >/out\n\
                FROM scratch\nCOPY --from=a /out /a\nCOPY --from=b /out /b\n";
    let ran = lab.build(lab.dockerfile(text)).ok();
    let runs = ran.ran().into_iter().filter(|name| name.starts_with("RUN")).count();
    assert_eq!(runs, 1, "{}", ran.stderr());
}

#[test]
fn a_failure_stops_what_only_it_needed_and_ends_the_rest() {
    let lab = Lab::new();
    let text = "FROM @base AS a\nRUN echo started; sleep 600\nFROM @base AS b\nRUN usleep 300000; exit 7\n\
                FROM scratch\nCOPY --from=a /x /a\nCOPY --from=b /x /b\n";
    let ran = lab.build(lab.dockerfile(text)).fails(10);
    ran.says(&["exit code 7", "Dockerfile:4"]);
    assert_eq!(ran.fate("sleep 600"), Fate::Canceled, "{}", ran.stderr());
}

//! Texts that are much of one thing.

use lapstrake_dockerfile::limits;

/// Texts of about this many bytes, each with what it begins with.
pub(crate) fn texts(size: usize) -> Vec<(String, String)> {
    let fill = |unit: &str| unit.repeat(size / unit.len());
    let counted = |unit: &dyn Fn(usize) -> String| {
        let mut text = String::from("FROM debian AS s0\n");
        let mut count = 0;
        while text.len() < size {
            count += 1;
            text.push_str(&unit(count));
        }
        text
    };
    let line = |unit: &str| unit.repeat(limits::LINE_BYTES_MAX * 9 / 10 / unit.len());
    let texts = [
        fill("\n"),
        fill("x\n"),
        fill("#\n"),
        fill("FROM a\n"),
        fill("\\\n"),
        fill("RUN \\\n"),
        fill("RUN <<a\n"),
        format!("FROM a\n{}", fill("RUN x\n")),
        format!("FROM a\n{}", fill("COPY --from=$x a b\n")),
        format!("FROM a\nCOPY {} /x\n{}", line("<<a "), fill("a\n")),
        format!("FROM a\nENV {}\n{}", line("a=b "), fill("RUN x\n")),
        format!("FROM a\nENV x={}\n", line("${a:-")),
        format!("FROM a\nENV x={}\n", line("$aa")),
        format!("FROM a\nEXPOSE {}\n", line("0-65535 ")),
        format!("ARG a={}\n{}FROM a\n", line("y"), fill("ARG b=$a$a$a$a\n")),
        format!("FROM a\nENV a={}\n{}", line("y"), fill("ENV b$a=$a$a$a$a\n")),
        format!("FROM a\nENV a={}\n{}", line("y"), fill("RUN $a\n")),
        format!("FROM a AS b\n{}FROM b\n", fill("ONBUILD RUN x\n")),
        format!("FROM a\nCOPY {}{} /x\n", line("--exclude=x "), "s ".repeat(2000)),
        format!("FROM a\nENV d={}\nCOPY {} $d\n", line("y"), "s ".repeat(20_000)),
        format!("FROM a\nRUN {} x\n", line("--mount=target=/x ")),
        counted(&|n| format!("FROM s{} AS s{n}\n", n - 1)),
        counted(&|n| format!("FROM s{} AS s{n}\nENV a{n}=1\n", n - 1)),
        counted(&|n| format!("FROM s0 AS s{n}\nCOPY --from=s{} a b\n", n - 1)),
        counted(&|n| format!("FROM i{n} AS s{n}\nCOPY --from=s{} a b\n", n - 1)),
        counted(&|n| format!("FROM s0 AS s{n}\nCOPY --from=s{} a b\n", n + 1)),
        counted(&|n| format!("ENV a{n}=1\n")),
        counted(&|n| format!("LABEL a{n}=1\nRUN {n}\n")),
        counted(&|n| format!("ARG a{n}=1\nRUN {n}\n")),
        format!("ARG a0=1\n{}", counted(&|n| format!("ARG a{n}=1\nRUN echo $a0 $a{n} $b{n}\n"))),
        counted(&|n| format!("FROM $a{n} AS t{n}\nCOPY a{n} /x{n}\nRUN chown -R a /x{n}\n")),
        counted(&|n| format!("# check=skip=R{n}\nRUN cd /x{n} | apt-get install {n} && apk add {n}\n")),
        format!("# check=skip={}\nFROM a\n{}", line("Rule,"), fill("# check=skip=a\nENV a b\n")),
        format!("FROM a\nRUN {}\n", line("apt-get install a && ")),
        format!("FROM a\nRUN {}\n", line("$a'\"")),
        counted(&|n| format!("ONBUILD RUN x\nFROM s{} AS s{n}\n", n - 1)),
    ];
    let name = |text: &String| text.chars().filter(|c| !c.is_control()).take(48).collect();
    texts.into_iter().map(|text| (name(&text), text)).collect()
}
